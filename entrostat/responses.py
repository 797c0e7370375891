"""Responses from a file with one JSON object a line, and what is wrong with the lines that hold none."""

import codecs
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import Prompt

REQUIRED = ("answer", "response")
FIELDS = (*REQUIRED, "prompt", "entry")  # what a verifier may be given besides, where the file has it


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """One line: a response, and the prompt with the answer that was expected of it."""

    index: int  # of the line, from 0
    prompt: Prompt
    text: str
    bytes: int  # of the line


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A line that can't be judged."""

    index: int
    reason: str  # begins with the place


def read(path: Path, fields: Mapping[str, str], answer_after: str = "") -> Iterator[Response | Fault]:
    """One of either for each line, in order; a few lines are held in memory at a time.

    Bytes that are not UTF-8 become replacement characters. Empty lines at the file's end are none.

    Args:
        path: the file.
        fields: which key holds the answer and which the response; dots lead into objects inside.
        answer_after: the answer is what follows the last occurrence of this mark.

    Raises:
        TaskError: the file can't be read.
    """
    index = 0
    empty: list[int] = []  # lines that are faults if another one follows
    try:
        with path.open("rb") as file:
            for index, whole in enumerate(file):
                line = whole if index else whole.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    empty.append(index)
                    continue
                yield from (Fault(index=one, reason=f"{path}:{one + 1} is empty") for one in empty)
                empty.clear()
                yield _line(path, index, line, fields, answer_after)
    except OSError as error:
        raise TaskError(
            f"{path} can't be read ({error.strerror}): expected a file with one JSON object a line"
        ) from error


def _line(path: Path, index: int, line: bytes, fields: Mapping[str, str], answer_after: str) -> Response | Fault:
    place = f"{path}:{index + 1}"
    try:
        row = _decoded(line)
        if not isinstance(row, dict):
            raise ValueError(f"holds {_shape(row)}; expected an object like {{…}}")
        values = {role: _text(row, role, key) for role, key in fields.items()}
        if answer_after:
            _, mark, values["answer"] = values["answer"].rpartition(answer_after)
            if not mark:
                raise ValueError(f"has no {answer_after!r} in {fields['answer']!r}, after which the answer is expected")
    except ValueError as error:
        return Fault(index=index, reason=f"{place} {error}")
    prompt = Prompt(
        id=index,
        name=f"{path.name}:{index + 1}",
        level="",
        task=0,
        text=values.get("prompt", ""),
        answer=values["answer"].strip(),
        entry=values.get("entry", ""),
    )
    return Response(index=index, prompt=prompt, text=values["response"], bytes=len(line))


def _decoded(line: bytes) -> Any:
    """The line's value.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # Python's own reads what others write: half a surrogate pair, NaN; and bytes that are not UTF-8 are replaced.
    try:
        return json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        shown = line.strip()[:60].decode(errors="replace")
        raise ValueError(f"is not JSON ({error}): {shown!r}") from error


def _text(row: dict[str, Any], role: str, key: str) -> str:
    """A field as text; numbers are written out, an entry's object as JSON.

    Raises:
        ValueError: there is no such field, or it is neither.
    """
    value: Any = row
    for step in [key] if key in row else key.split("."):
        if not isinstance(value, dict) or step not in value:
            raise ValueError(f"has no field {key!r} for the {role}; it has: {', '.join(sorted(row)) or 'none'}")
        value = value[step]
    if role == "entry" and isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"has {_shape(value)} in {key!r}; expected text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"has {value} in {key!r}; expected text or a number")
    try:
        return str(value)
    except ValueError as error:
        raise ValueError(f"has a number in {key!r} of more digits than can be written out") from error


def _shape(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
