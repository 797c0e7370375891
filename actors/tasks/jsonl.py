"""Problems from a file with one JSON object a line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from entrostat.actors.tasks.problem import Problem
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import Jsonl


def read(settings: Jsonl) -> list[Problem]:
    """The file's problems, in its order; empty lines are passed over.

    Raises:
        TaskError: the file is missing, empty or not UTF-8; a line is not a JSON object, lacks a field or the mark.
    """
    path = Path(settings.path)
    problems: list[Problem] = []
    for number, line in _lines(path):
        problems.append(_problem(settings, path, number, _row(path, number, line)))
        if len(problems) == settings.limit:
            break
    if not problems:
        raise TaskError(f"{path} is empty: expected one JSON object a line, with the field {settings.question!r}")
    return problems


def count_rows(settings: Jsonl) -> int | None:
    """How many problems the file holds, without reading them; None where there is no such file."""
    path = Path(settings.path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    return min(rows, settings.limit) if settings.limit else rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise TaskError(f"{path} can't be read ({error.strerror}): expected a JSONL file of problems") from error


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        shown = line.strip()[:60].decode(errors="replace")
        raise TaskError(f"{path}:{number} is not JSON ({error}): {shown!r}; expected one object a line") from error
    if not isinstance(row, dict):
        raise TaskError(f"{path}:{number} holds a {type(row).__name__}; expected an object like {{...}}")
    return row


def _problem(settings: Jsonl, path: Path, number: int, row: dict[str, Any]) -> Problem:
    answer = _text(path, number, row, settings.answer, "answer")
    if settings.answer_after:
        _, mark, answer = answer.rpartition(settings.answer_after)
        if not mark:
            raise TaskError(
                f"{path}:{number}: the field {settings.answer!r} does not contain the mark "
                f"{settings.answer_after!r} (answer_after), after which the answer is expected"
            )
    if not answer.strip():
        raise TaskError(f"{path}:{number}: the answer is empty")
    return Problem(
        name=f"{path.name}:{number}",
        level=_text(path, number, row, settings.level, "level") if settings.level else path.stem,
        question=_text(path, number, row, settings.question, "question"),
        answer=answer.strip(),
    )


def _text(path: Path, number: int, row: dict[str, Any], field: str, setting: str) -> str:
    """A field as text; numbers are written out."""
    if field not in row:
        raise TaskError(
            f"{path}:{number} has no field {field!r} (the task's setting {setting} names it); "
            f"it has: {', '.join(sorted(row)) or 'none'}"
        )
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TaskError(f"{path}:{number}: {field!r} is {_shape(value)}; expected text or a number")
    text = str(value)
    if not text.strip():
        raise TaskError(f"{path}:{number}: {field!r} is empty; expected text or a number")
    return text


def _shape(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
