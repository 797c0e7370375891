"""A generated problem's entry ↔ JSON, so that a scorer in another process reads what the generator wrote.

JSON has no tuples, sets or keys that aren't strings, and scorers of `reasoning-gym` compare with them: a tuple that
comes back as a list scores every right answer as wrong. These three are written as an object with one key, their name.
"""

from typing import Any

import msgspec

_TUPLE, _SET, _ITEMS = "!tuple", "!set", "!items"


def encode_entry(entry: dict[str, Any]) -> str:
    """The entry as JSON.

    Raises:
        TypeError: it holds an object that neither JSON nor the three forms above can carry.
    """
    return msgspec.json.encode(_pack(entry)).decode()


def decode_entry(text: str) -> dict[str, Any]:
    """The entry that `encode_entry` wrote; a new one each time, as a scorer may change it."""
    entry = _unpack(msgspec.json.decode(text))
    if not isinstance(entry, dict):
        raise TypeError(f"an entry decodes to a {type(entry).__name__}; expected an object")
    return entry


def _pack(value: Any) -> Any:
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {str(key): _pack(item) for key, item in value.items()}
        return {_ITEMS: [[_pack(key), _pack(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {_SET: [_pack(item) for item in sorted(value, key=repr)]}
    if isinstance(value, list):
        return [_pack(item) for item in value]
    if isinstance(value, str):
        return str(value)  # numpy's strings are strings of another type
    if hasattr(value, "tolist"):
        return _pack(value.tolist())  # numpy's numbers and arrays
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(key, inner)] = value.items()
        if key == _TUPLE:
            return tuple(_unpack(item) for item in inner)
        if key == _SET:
            return {_unpack(item) for item in inner}
        if key == _ITEMS:
            return {_unpack(name): _unpack(item) for name, item in inner}
    return {key: _unpack(item) for key, item in value.items()}
