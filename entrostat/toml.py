"""TOML as people write it: read with line numbers, changed from the command line, written back."""

import json
import re
import tomllib
from collections.abc import Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from entrostat.protocol.errors import ConfigError

Place = tuple[str | int, ...]  # keys, and positions in lists counted from 0
Table = dict[str, Any]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_LONG_QUOTES = re.compile(r"""\"{3}|'{3}""")
_ASSIGNMENT = re.compile(r"""\s*([A-Za-z0-9_\-."' ]+?)\s*=""")


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(path: Path) -> tuple[Table, str]:
    """A file's content as a table, and its text.

    Raises:
        ConfigError: there is no such file, or it is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no configuration {path}: expected a TOML file, like those in deploy/runs/"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read ({error}): expected a TOML file in UTF-8") from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def lines(text: str) -> dict[Place, int]:
    """The line, from 1, on which each key and each header of a TOML text stands."""
    found: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    section: Place = ()
    inside = ""  # the quotes of a string over several lines: nothing in it is a key
    for number, line in enumerate(text.splitlines(), start=1):
        was_inside, inside = inside, _still_inside(inside, line)
        if was_inside:
            continue
        if header := _HEADER.match(line):
            *outer, last = _keys(header[2])
            path = (*_resolve((), outer, counts), last)
            if header[1] == "[[":
                counts[path] = counts.get(path, 0) + 1
            section = _resolve(path[:-1], [last], counts)
            found.setdefault(section, number)
        elif assignment := _ASSIGNMENT.match(line):
            found.setdefault((*section, *_keys(assignment[1])), number)
    return found


def _still_inside(quotes: str, line: str) -> str:
    """Which long string, if any, a line leaves open."""
    for mark in _LONG_QUOTES.findall(line):
        quotes = mark if not quotes else "" if mark == quotes else quotes
    return quotes


def _keys(dotted: str) -> list[str]:
    return [key.strip().strip("\"'") for key in dotted.split(".")]


def _resolve(start: Place, keys: Sequence[str], counts: dict[Place, int]) -> Place:
    """The place that keys lead to, in the last table so far of each list of tables."""
    place = start
    for key in keys:
        place = (*place, key)
        if place in counts:
            place = (*place, counts[place] - 1)
    return place


# ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def override(table: Table, text: str) -> Place:
    """Applies one `section.key=value` to `table`, in place; says where.

    The value is TOML; what isn't is text. A new `kind` replaces the whole table it stands in, whose other keys belong
    to the old kind. Positions in lists count from 0: `tasks.0.size=64`.

    Raises:
        ConfigError: it has no `=`, or leads through something that is no table.
    """
    dotted, equals, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}: expected SECTION.KEY=VALUE, as in --set learner.lr=1e-4")
    place: Place = ()
    inner: Any = table
    for key in keys[:-1]:
        inner, step = _enter(inner, key, text)
        place = (*place, step)
    if not isinstance(inner, dict):
        raise ConfigError(f"--set {text}: {'.'.join(keys[:-1])} is no table")
    parsed = parse_value(value.strip())
    if keys[-1] == "kind" and inner.get("kind", parsed) != parsed:
        inner.clear()
    inner[keys[-1]] = parsed
    return (*place, keys[-1])


def _enter(inner: Any, key: str, text: str) -> tuple[Any, str | int]:
    if isinstance(inner, dict):
        return inner.setdefault(key, {}), key
    if isinstance(inner, list) and key.isdecimal() and int(key) < len(inner):
        return inner[int(key)], int(key)
    wanted = f"a number from 0 to {len(inner) - 1}" if isinstance(inner, list) else "a table there"
    raise ConfigError(f"--set {text}: at {key!r}, expected {wanted}")


def parse_value(text: str) -> Any:
    """`text` as a TOML value, or itself where it is none: a bare word, a path, a date."""
    try:
        value = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    one = value.get("value")
    return text if len(value) != 1 or isinstance(one, date | datetime | time) else one


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(table: Table) -> str:
    """A table as TOML text: plain values first, then tables, then lists of tables."""
    return "\n".join(_table_lines(table, ())).strip() + "\n"


def show(value: Any) -> str:
    """One plain value as TOML writes it.

    Raises:
        TypeError: it is none of text, number, boolean, list or table.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _quoted(value)
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(show(item) for item in value)}]"
        case dict():
            return f"{{{', '.join(f'{_key(key)} = {show(item)}' for key, item in value.items())}}}"
        case date() | time():
            return value.isoformat()
        case _:
            raise TypeError(f"TOML has no {type(value).__name__}")


def _table_lines(table: Table, path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and not _is_tables(value)}
    written = [f"{_key(key)} = {show(value)}" for key, value in plain.items()]
    for key, value in table.items():
        name = (*path, _key(key))
        if isinstance(value, dict):
            written += ["", f"[{'.'.join(name)}]", *_table_lines(value, name)]
        elif _is_tables(value):
            for item in value:
                written += ["", f"[[{'.'.join(name)}]]", *_table_lines(item, name)]
    return written


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, dict) for item in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quoted(key)


def _quoted(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for one character that JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
