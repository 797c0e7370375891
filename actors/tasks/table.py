"""A table's rows → problems: the same for every kind of table."""

import logging
from typing import Any

import msgspec
import xxhash

from entrostat.actors.tasks import huggingface, jsonl, parquet
from entrostat.actors.tasks.conversation import Conversation, conversation
from entrostat.actors.tasks.problem import Problem
from entrostat.actors.tasks.row import BadRow, Fields, answer_text, look_up, text
from entrostat.actors.tasks.source import Source
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import HuggingFace, Jsonl, Parquet, RowSettings
from entrostat.protocol.verifier_settings import Choice, Exact, Math, Numeric

log = logging.getLogger(__name__)

SHOWN = 5  # bad rows that are named in an error or a warning
HASHES = 1 << 64


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of a table, the bad rows too."""

    shown: str  # where it lies
    problems: list[Problem]
    rows: int  # read, good and bad: all, or up to the task's limit
    bad: int
    named: tuple[str, ...]  # the first bad rows, each with its place and what is wrong
    other_part: int  # good rows that are not of the task's part
    structured: bool  # its answers are lists or objects


def read(settings: RowSettings, *, quiet: bool = False) -> list[Problem]:
    """The problems of a table, as its settings say. `quiet`: nothing that is left out is logged.

    Raises:
        TaskError: it can't be read, has bad rows that are not to be skipped, or nothing is left.
    """
    table = scan(settings)
    if refusal := why_refused(settings, table):
        raise TaskError(refusal)
    if table.bad and not quiet:
        log.warning("%s", "\n".join([f"{_counted(table)} and are left out:", *_listed(table)]))
    if table.structured and not quiet and isinstance(settings.verifier, Math | Numeric | Exact | Choice):
        log.warning(
            "%s: the answers are lists or objects, and the %s verifier gets them as JSON: to judge by one item name "
            "it, as answer = %r",
            table.shown,
            type(settings.verifier).__name__.lower(),
            f"{settings.answer}.0",
        )
    return table.problems


def why_refused(settings: RowSettings, table: Table) -> str:
    """Why a run can't use what was read of a table; empty where it can."""
    if not table.rows:
        return f"{table.shown} is empty: expected problems with the field {settings.question!r}"
    if table.bad and settings.bad_rows == "refuse":
        head = f'{_counted(table)}: mend them, or leave them out with bad_rows = "skip"'
        return "\n".join([head, *_listed(table)])
    if not table.problems and table.bad == table.rows:
        return "\n".join([f"{_counted(table)}: nothing is left", *_listed(table)])
    if not table.problems:
        return (
            f'{table.shown}: none of the {table.other_part} problems falls into part = "{settings.part}" with '
            f"test_share = {settings.test_share:g} and seed = {settings.seed}: take more rows, or another share or seed"
        )
    return ""


def scan(settings: RowSettings) -> Table:
    """Reads a table, its bad rows too.

    Raises:
        TaskError: it can't be read at all.
    """
    source = open_source(settings)
    problems: list[Problem] = []
    places: dict[str, str] = {}  # of those that have an id
    named: list[str] = []
    rows = bad = other_part = 0
    structured = False
    for number, row in source.rows:
        rows += 1
        place = f"{settings.name or source.name}:{number}"
        try:
            if isinstance(row, BadRow):
                raise row
            problem = _problem(settings, source, place, row)
            if settings.id:
                _check_new(problem, place, places)
        except BadRow as reason:
            bad += 1
            if len(named) < SHOWN:
                named.append(f"{place}: {reason}")
            continue
        if not in_part(settings, problem.asked):
            other_part += 1
            continue
        structured = structured or (not problems and isinstance(look_up(row, settings.answer, "answer"), list | dict))
        problems.append(problem)
        if len(problems) == settings.limit and not settings.shuffle:
            break
    if settings.shuffle:
        problems.sort(key=lambda problem: (_hash(f"shuffle {problem.name}", settings.seed), problem.name))
    return Table(
        shown=source.shown,
        problems=problems[: settings.limit] if settings.limit else problems,
        rows=rows,
        bad=bad,
        named=tuple(named),
        other_part=other_part,
        structured=structured,
    )


def open_source(settings: RowSettings) -> Source:
    """The table itself.

    Raises:
        TaskError: it can't be opened.
    """
    match settings:
        case Jsonl():
            return jsonl.open_table(settings)
        case Parquet():
            return parquet.open_table(settings)
        case HuggingFace():
            return huggingface.open_table(settings)


def in_part(settings: RowSettings, question: str) -> bool:
    """Whether a question, with all that was said before it, is of the task's part.

    It depends on these words, blanks apart, and on the seed alone: rows that come or go move no other from part to
    part, and a question that stands in a table twice is in one part.
    """
    if settings.part == "all":
        return True
    held_out = _hash(" ".join(question.split()), settings.seed) < settings.test_share * HASHES
    return held_out == (settings.part == "test")


def _hash(what: str, seed: int) -> int:
    # Lone surrogates, which JSON can carry, are not UTF-8.
    return xxhash.xxh3_64_intdigest(what.encode(errors="surrogatepass"), seed)


def _problem(settings: RowSettings, source: Source, place: str, row: Fields) -> Problem:
    asked = _asked(look_up(row, settings.question, "question"), settings.question)
    answer = answer_text(look_up(row, settings.answer, "answer"), settings.answer)
    if settings.answer_after:
        _, mark, answer = answer.rpartition(settings.answer_after)
        if not mark:
            raise BadRow(
                f"the field {settings.answer!r} does not contain the mark {settings.answer_after!r} (answer_after), "
                "after which the answer is expected"
            )
        if not answer.strip():
            raise BadRow(f"the answer after the mark {settings.answer_after!r} is empty")
    name = place
    if settings.id:
        name = f"{settings.name or source.name}#{text(look_up(row, settings.id, 'id'), settings.id)}"
    return Problem(
        name=name,
        level=text(look_up(row, settings.level, "level"), settings.level) if settings.level else source.level,
        question=asked.question,
        answer=answer.strip(),
        system=asked.system,
        turns=asked.turns,
    )


def _asked(value: Any, field: str) -> Conversation:
    return conversation(value, field) if isinstance(value, list) else Conversation("", (), text(value, field))


def _check_new(problem: Problem, place: str, places: dict[str, str]) -> None:
    other = places.setdefault(problem.name, place)
    if other != place:
        raise BadRow(f"has the same id as {other} ({problem.name}); ids name problems, each its own")


def _counted(table: Table) -> str:
    return f"{table.shown}: {table.bad} of {table.rows} rows can't be used"


def _listed(table: Table) -> list[str]:
    more = table.bad - len(table.named)
    return [f"  {each}" for each in table.named] + ([f"  and {more} more"] if more else [])
