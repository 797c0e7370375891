"""A row of any table, and its fields: by name, inside others by dots, in lists by number."""

import math
from decimal import Decimal
from typing import Any

import msgspec

Fields = dict[str, Any]
INTEGRAL = 1e15  # below it a float holds every whole number


class BadRow(Exception):
    """A row that makes no problem; its text says why, and whoever catches it says where."""


def look_up(row: Fields, field: str, setting: str) -> Any:
    """The value of `choices`, of `reward_model.ground_truth` or of `choices.0`; a field that is called so goes first.

    Raises:
        BadRow: there is no such field; names those there are.
    """
    if field in row:
        return row[field]
    value: Any = row
    walked = ""
    for key in field.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise BadRow(
                f"no field {field!r} (the task's setting {setting} names it); {_inside(value, walked)}",
            )
        walked = f"{walked}.{key}" if walked else key
    return value


def text(value: Any, field: str) -> str:
    """Text as it is; numbers written out, whole ones without a point: a table may hold 27 as 27.0.

    Raises:
        BadRow: it is neither, or blank, or not finite.
    """
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"{field!r} is empty; expected text or a number")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise BadRow(f"{field!r} is {shape(value)}; expected text or a number")
    if isinstance(value, float) and value.is_integer() and abs(value) < INTEGRAL:
        return str(int(value))
    if not isinstance(value, int) and not math.isfinite(value):  # an integer may be too large for a float
        raise BadRow(f"{field!r} is {value}; expected text or a finite number")
    return str(value)


def answer_text(value: Any, field: str) -> str:
    """As `text`; a list or an object, such as a program's tests, as its JSON.

    Raises:
        BadRow: it is nothing of these, or empty.
    """
    if not isinstance(value, list | dict):
        return text(value, field)
    if not value:
        raise BadRow(f"{field!r} is an empty {type(value).__name__}; expected an answer")
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, msgspec.MsgspecError) as error:
        raise BadRow(f"{field!r} can't be written as JSON ({error})") from error


def shape(value: object) -> str:
    """What a value is, for a message about one that isn't what was expected."""
    return "null" if value is None else f"a {type(value).__name__}"


def _inside(value: Any, walked: str) -> str:
    where = walked or "it"
    if isinstance(value, dict):
        return f"{where} has: {', '.join(sorted(str(key) for key in value)) or 'none'}"
    return f"{where} is a list of {len(value)}" if isinstance(value, list) else f"{where} is {shape(value)}"
