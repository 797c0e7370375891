"""Everything that is wrong with a table, not only the first thing, against settings with ranges at their fields."""

import difflib
import math
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from entrostat import toml
from entrostat.toml import Place

TAG = "kind"

_WORDS = {
    "`float`": "a number",
    "`int`": "a whole number",
    "`str`": "text in quotes",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "a table",
}


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong, and where."""

    place: Place
    message: str


def problems(kind: Any, value: Any, place: Place = ()) -> list[Problem]:
    """What keeps `value`, as TOML gives it, from being a `kind`: a Struct, tagged ones, a tuple of them, or plain."""
    kind = _bare(kind)
    structs = _structs(kind)
    if len(structs) > 1:
        return _tagged(structs, value, place)
    if structs:
        return _struct(structs[0], value, place)
    if get_origin(kind) is tuple and _structs(get_args(kind)[0]):
        if not isinstance(value, list):
            return [Problem(place, f"expected a list of tables [[{name(place)}]], came {_came(value)}")]
        element = get_args(kind)[0]
        return [each for index, item in enumerate(value) for each in problems(element, item, (*place, index))]
    return _plain(kind, value, place)


def with_kinds(kind: type[msgspec.Struct], table: dict[str, Any]) -> dict[str, Any]:
    """The table with the default's `kind` in each section that says none: `[learner.loss] clip_high = 0.28` is PPO's.

    A section without a default stays as it is.
    """
    whole = dict(table)
    for field in msgspec.structs.fields(kind):
        section, default = table.get(field.encode_name), field.default
        if not isinstance(section, dict) or not isinstance(default, msgspec.Struct):
            continue
        tag = default.__struct_config__.tag
        if tag is None:
            section = with_kinds(type(default), section)
        whole[field.encode_name] = section if tag is None else {TAG: tag, **section}
    return whole


def name(place: Place) -> str:
    """A place as a key is written: `tasks.0.size`."""
    return ".".join(str(key) for key in place)


def nearest(word: str, known: list[str]) -> str:
    """A question that names the nearest known word, or all of them where none is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"expected one of: {', '.join(known)}"


def _struct(kind: type[msgspec.Struct], value: Any, place: Place) -> list[Problem]:
    if not isinstance(value, dict):
        return [Problem(place, f"expected a table [{name(place)}], came {_came(value)}")]
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    tagged = [TAG] if kind.__struct_config__.tag is not None else []
    found: list[Problem] = []
    for key, item in value.items():
        if key in fields:
            found += problems(fields[key].type, item, (*place, key))
        elif key not in tagged:
            found.append(Problem((*place, key), f"unknown key; {nearest(key, [*fields, *tagged])}"))
    for key, field in fields.items():
        if field.required and key not in value:
            found.append(Problem((*place, key), "is missing, and has no default"))
    return found or _whole(kind, value, place)


def _whole(kind: type[msgspec.Struct], value: Any, place: Place) -> list[Problem]:
    """What only several fields together can say wrong."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return [Problem(place, _plain_words(str(error)))]
    return []


def _tagged(kinds: list[type[msgspec.Struct]], value: Any, place: Place) -> list[Problem]:
    if not isinstance(value, dict):
        return [Problem(place, f"expected a table [{name(place)}], came {_came(value)}")]
    tags = {str(kind.__struct_config__.tag): kind for kind in kinds}
    if TAG not in value:
        return [Problem((*place, TAG), f"is missing; expected one of: {', '.join(tags)}")]
    if value[TAG] not in tags:
        return [Problem((*place, TAG), f"= {toml.show(value[TAG])}; {nearest(str(value[TAG]), list(tags))}")]
    return _struct(tags[value[TAG]], value, place)


def _plain(kind: Any, value: Any, place: Place) -> list[Problem]:
    if isinstance(value, float) and not math.isfinite(value):
        return [Problem(place, f"= {value}; expected a finite number")]
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if get_origin(_bare(kind)) is Literal and isinstance(value, str):
            allowed = [str(one) for one in get_args(_bare(kind))]
            return [Problem(place, f"= {toml.show(value)}; {nearest(value, allowed)} (allowed: {', '.join(allowed)})")]
        return [Problem(place, f"= {toml.show(value)}; {_plain_words(str(error))}")]
    return []


def _plain_words(message: str) -> str:
    """A message of msgspec in the words of someone who writes TOML."""
    text = re.sub(r" - at `\$[^`]*`$", "", message)
    for word, plain in _WORDS.items():
        text = text.replace(word, plain)
    return text[:1].lower() + text[1:] if text.startswith("Expected") else text


def _came(value: Any) -> str:
    return toml.show(value)[:60]


def _bare(kind: Any) -> Any:
    """A type without its annotations, unless they are its range."""
    return get_args(kind)[0] if get_origin(kind) is Annotated and _structs(get_args(kind)[0]) else kind


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    """The Structs a type is or is a union of; nothing where it is anything else."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if all(isinstance(option, type) and issubclass(option, msgspec.Struct) for option in options):
        return list(options)
    return []
