"""What each task is, in words: its problems counted, its bad rows too. Reads tables on this machine, and no hub's."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from entrostat.actors.tasks import huggingface
from entrostat.actors.tasks.gym_library import create_dataset
from entrostat.actors.tasks.table import Table, scan, why_refused
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import HuggingFace, ReasoningGym, RowSettings, TaskSettings
from entrostat.protocol.verifier_settings import (
    AnyVerifier,
    Choice,
    Code,
    Custom,
    Exact,
    Format,
    GymScorer,
    Math,
    Numeric,
    Weighted,
)
from entrostat.task_checks import table_of


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A task as `entrostat explain` shows it."""

    lines: tuple[str, ...]
    count: int | None  # of its prompts; None where they are not here
    notes: tuple[str, ...] = ()


def look(task: TaskSettings) -> Look:
    """What a task would bring to a run."""
    if isinstance(task, ReasoningGym):
        parameters = ", ".join(f"{key} {value}" for key, value in task.parameters.items())
        named = f"{task.dataset} ({parameters})" if parameters else task.dataset
        line = f"{task.size:,} generated problems of {named}, level {task.level or task.dataset!r}"
        return Look(lines=(line, *_shown(task)), count=task.size, notes=_refused_by_the_library(task))
    if isinstance(task, HuggingFace) and not huggingface.is_local(task) and not Path(task.dataset).is_absolute():
        line = f"{task.dataset}, split {task.split}: of the Hugging Face hub, read when a run begins"
        return Look(lines=(line, *_chosen(task), *_shown(task)), count=None)
    try:
        table = scan(task)
    except TaskError as error:
        lines = (f"{table_of(task)}: not on this machine, or not to be read", *_chosen(task), *_shown(task))
        return Look(lines=lines, count=None, notes=(f"a run would end at once, with exit code 2: {error}",))
    refusal = why_refused(task, table)
    return Look(
        lines=(f"{table.shown}: {len(table.problems):,} problems{_bad(task, table)}", *_chosen(task), *_shown(task)),
        count=len(table.problems),
        notes=(f"a run would end at once, with exit code 2: {refusal}",) if refusal else (),
    )


def _refused_by_the_library(task: ReasoningGym) -> tuple[str, ...]:
    try:
        create_dataset(msgspec.structs.replace(task, size=1))  # some are made as large as they are asked for, at once
    except TaskError as error:
        return (f"a run would end at once, with exit code 2: {error}",)
    return ()


def prompts_together(looks: list[Look]) -> int | None:
    """The prompts of all of them; None where one's are not known."""
    counts = [one.count for one in looks if one.count is not None]
    return sum(counts) if len(counts) == len(looks) else None


def verifier_words(verifier: AnyVerifier) -> str:
    """What judges responses, in few words."""
    match verifier:
        case Math():
            return "math-verify"
        case Numeric():
            return "the last number"
        case Exact():
            return "the same text"
        case Choice(choices=choices):
            return f"the letter of {choices}"
        case GymScorer():
            return "the dataset's own scorer"
        case Code(unconfined=unconfined):
            return f"a program's tests{' (not confined where the kernel cannot)' if unconfined else ''}"
        case Format(tags=tags):
            return f"the form {', '.join(tags)}"
        case Custom(function=function):
            return function
        case Weighted(parts=parts):
            return " + ".join(f"{part.weight:g} × {verifier_words(part.verifier)}" for part in parts)


def _bad(task: RowSettings, table: Table) -> str:
    if not table.bad:
        return ""
    what = "left out" if task.bad_rows == "skip" else "a run is refused"
    return f"; {table.bad:,} of {table.rows:,} rows can't be used ({what}), the first: {table.named[0]}"


def _chosen(task: RowSettings) -> Iterator[str]:
    """Which of a table's rows."""
    if task.part == "train":
        yield f"without the {task.test_share:.0%} of the questions that seed {task.seed} holds out"
    if task.part == "test":
        yield f"only the {task.test_share:.0%} of the questions that seed {task.seed} holds out"
    if task.shuffle:
        yield f"shuffled by seed {task.seed}"
    if task.limit:
        yield f"at most {task.limit:,} of them, the first{' after shuffling' if task.shuffle else ''}"


def _shown(task: TaskSettings) -> Iterator[str]:
    """What the policy reads around a question."""
    if task.chat:
        options = ", ".join(f"{key} = {value}" for key, value in task.chat_options.items())
        yield f"in the tokenizer's chat template{f' with {options}' if options else ''}"
    if task.few_shot:
        form = "as turns of the chat" if task.chat else "as text"
        count = len(task.few_shot)
        yield f"after {count} solved example{'s' if count > 1 else ''}, {form}"
