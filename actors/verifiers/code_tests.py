"""The tests of a programming problem, as its `answer` holds them in JSON, and what counts as passing.

    {"inputs": [...], "outputs": [...]}                   what is read from the input, what must be written
    {"inputs": [...], "outputs": [...], "fn_name": "f"}   arguments, and the value that `f` must return
    ["assert f(1) == 2", ...]                             run after the program (MBPP), or {"test_list": [...]}
    {"test": "def check(candidate): ...", "entry_point": "f"}   the same, then `check(f)` (HumanEval)

The first two compare outside of the program's process. Assertions run inside of it: see `code.py`.
"""

import json
import math
from typing import Any

import msgspec


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """One run per test: `inputs[i]` on the input, `outputs[i]` on the output."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Called(msgspec.Struct, frozen=True, kw_only=True):
    """One call per test: `function(*inputs[i])` returns `outputs[i]`."""

    function: str
    inputs: tuple[list[Any], ...]
    outputs: tuple[Any, ...]


class Asserted(msgspec.Struct, frozen=True, kw_only=True):
    """Texts that run after the program and raise nothing; with `entry_point` the text's `check` is called with it."""

    tests: tuple[str, ...]
    entry_point: str = ""


Tests = Written | Called | Asserted


def read_tests(answer: str) -> Tests:
    """The tests that an answer holds.

    Raises:
        ValueError: it holds none; says what is wrong.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if isinstance(found, str):
        found = [found]
    if isinstance(found, list):
        return Asserted(tests=_texts(found, "the list"))
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, a list of assertions or a text; found {type(found).__name__}")
    if "inputs" in found or "outputs" in found:
        return _pairs(found)
    setup = str(found.get("test_setup_code") or "")
    before = [setup] if setup else []
    if "test_list" in found:
        return Asserted(tests=_texts([*before, *_list(found, "test_list")], "test_list"))
    if isinstance(found.get("test"), str):
        return Asserted(tests=_texts([found["test"]], "test"), entry_point=str(found.get("entry_point") or ""))
    raise ValueError(f"expected inputs and outputs, test_list, or test; found {', '.join(found) or 'nothing'}")


def same_text(found: str, expected: str, tolerance: float) -> bool:
    """Line by line, blanks at their ends and empty lines at the end apart; decimals within a relative `tolerance`."""
    ours, theirs = _lines(found), _lines(expected)
    if ours == theirs:
        return True
    if len(ours) != len(theirs):
        return False
    return all(_same_line(one, other, tolerance) for one, other in zip(ours, theirs, strict=True))


def same_value(found: Any, expected: Any, tolerance: float) -> bool:
    """Equal as JSON; decimals within a relative `tolerance`."""
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(
            same_value(one, other, tolerance) for one, other in zip(found, expected, strict=True)
        )
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            same_value(found[key], expected[key], tolerance) for key in found
        )
    if isinstance(found, int | float) and isinstance(expected, int | float):
        exact = isinstance(found, int) and isinstance(expected, int)
        return found == expected if exact else _close(found, expected, tolerance)
    return bool(found == expected)


def same_return(found: Any, expected: Any, tolerance: float) -> bool:
    """As `same_value`; some collections (APPS) wrap what is returned in a list, so that its only item counts too."""
    if same_value(found, expected, tolerance):
        return True
    return isinstance(expected, list) and len(expected) == 1 and same_value(found, expected[0], tolerance)


def _pairs(found: dict[str, Any]) -> Written | Called:
    inputs, outputs = _list(found, "inputs"), _list(found, "outputs")
    if len(inputs) != len(outputs) or not inputs:
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs; expected as many, and at least one")
    name = found.get("fn_name")
    if not name:
        return Written(inputs=tuple(map(_joined, inputs)), outputs=tuple(map(_joined, outputs)))
    arguments = [_values(each) if isinstance(each, str) else each for each in inputs]
    if not all(isinstance(each, list) for each in arguments):
        raise ValueError("with fn_name each of inputs is a list of arguments, or a text with one in JSON a line")
    if all(isinstance(each, str) for each in inputs):
        outputs = [_values(each)[0] if isinstance(each, str) and each.strip() else each for each in outputs]
    return Called(function=str(name), inputs=tuple(arguments), outputs=tuple(outputs))


def _values(text: str) -> list[Any]:
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"with fn_name a text holds one value in JSON a line; {text[:60]!r} does not ({error})"
        ) from error


def _joined(lines: Any) -> str:
    if isinstance(lines, str):
        return lines
    if isinstance(lines, list):
        return "\n".join(str(line) for line in lines)
    raise ValueError(f"expected a text or a list of lines; found {type(lines).__name__}")


def _list(found: dict[str, Any], key: str) -> list[Any]:
    value = found.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")
    return value


def _texts(values: list[Any], where: str) -> tuple[str, ...]:
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"expected at least one test in {where}, each a text that is not empty")
    return tuple(values)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_line(found: str, expected: str, tolerance: float) -> bool:
    ours, theirs = found.split(), expected.split()
    if len(ours) != len(theirs):
        return False
    return all(one == other or _same_decimal(one, other, tolerance) for one, other in zip(ours, theirs, strict=True))


def _same_decimal(found: str, expected: str, tolerance: float) -> bool:
    """Only where a decimal is expected: 10000000 and 10000001 are two integers."""
    if not any(mark in expected for mark in ".eE") or len(found) > 100:
        return False
    try:
        return _close(float(found), float(expected), tolerance)
    except ValueError:
        return False


def _close(found: float, expected: float, tolerance: float) -> bool:
    try:
        return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:
        return False
