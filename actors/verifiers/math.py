r"""Judges mathematical answers: numbers exactly, all else with `math-verify`, equal if sympy can show that it is.

The answer is what the response marks as one, see `answers`; where that reads as one number, and the expected answer
too, they are compared as fractions, which gives what the library gives, sooner. What is no plain number, or is marked
as nothing, the library reads. It reads some plain forms as something else (`3 1/2` as 1, `\$18` as nothing, `- 3`
as 3): `numbers` reads those first.
"""

import logging
import re
import unicodedata
from functools import lru_cache
from typing import Any, NamedTuple

import math_verify
import sympy  # type: ignore[import-untyped]

from entrostat.actors.verifiers.answers import (
    after_thinking,
    denied,
    expected_answer,
    first_clause,
    marked,
    overlong,
)
from entrostat.actors.verifiers.numbers import Written, last_number, read_number
from entrostat.protocol.messages import Prompt, Verdict

# It warns at the first call that its time-outs are off: they use signals, and this process is killed from outside.
logging.getLogger("math_verify").setLevel(logging.ERROR)

DECIMALS = 6  # to which the library rounds before it compares with a decimal
SHORT = 400  # characters of an answer that is not in a box
ANSWER = 200  # characters of `Verdict.answer`
TAIL = 10_000  # characters at the end of a response without marks: the last number in it is the answer

_ENDLESS = re.compile(r"\d{1001}")  # more digits than any answer has, and Python reads 4,300 at most

_TEXT = re.compile(r"\\(?:text|mathrm|mbox|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_KNOWN_WORDS = frozenset(["and", "or", "sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp", "inf", "infinity"])
_MATHEMATICAL = re.compile(r"[\d\\^=+*/<>(\[{∞π√∅]|^[A-Za-z]$")
_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "×": "\\times ",
        "·": "\\cdot ",
        "÷": "/",
        "≤": "\\le ",
        "≥": "\\ge ",
        "≠": "\\ne ",
        "∞": "\\infty ",
        "π": "\\pi ",
        "∪": "\\cup ",
        "∩": "\\cap ",
        "∅": "\\emptyset ",
    }
)
_EMPHASIS = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\w+))")
_DELIMITERS = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]|\*\*(.+)\*\*|`(.+)`", re.DOTALL)


class _Reading(NamedTuple):
    """An answer as it was read: a number, or what the library makes of it."""

    number: Written | None
    parsed: tuple[Any, ...]  # sympy's, the text it was read from last

    def as_sympy(self) -> list[Any]:
        if self.number is None:
            return list(self.parsed)
        return [_sympy(value, self.number.decimals) for value in self.number.values]

    def as_text(self) -> str:
        """The same for equal numbers; for others, what sympy writes, if it can in short."""
        if self.number is not None:
            text = str(self.number.value)
        elif isinstance(self.parsed[0], str) or len(str(self.parsed[-1])) > ANSWER:
            text = str(self.parsed[-1])  # sympy may take forever to write a large number
        else:
            try:
                text = str(self.parsed[0])
            except (ValueError, RecursionError):  # a number of more digits than Python writes
                text = str(self.parsed[-1])
        return text[:ANSWER]


class MathVerifier:
    """Equal to the prompt's answer is worth 1, anything else 0; nothing that reads as mathematics, unparsable."""

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth; may take forever, as sympy evaluates what it reads.

        Whatever the library fails by is raised, so that it is not taken for a wrong answer.

        Raises:
            ValueError: the prompt's own answer can't be read, so that nothing could ever be right.
        """
        expected = _expected(prompt.answer)
        if expected is None:
            raise ValueError(f"the answer of {prompt.name} can't be read as mathematics: {prompt.answer[:60]!r}")
        found = _found(text)
        if found is None:
            return Verdict(reward=0.0, status="unparsable", seconds=0.0, detail="no mathematical answer")
        if _equal(expected, found):
            return Verdict(reward=1.0, status="correct", seconds=0.0, answer=expected.as_text())
        return Verdict(reward=0.0, status="wrong", seconds=0.0, answer=found.as_text())


def equal_numbers(expected: Written, found: Written) -> bool:
    """Equal as fractions; where one is a decimal and the other has no end as such, equal when rounded to six places."""
    if expected.name and found.name and expected.name != found.name:
        return False
    pairs = expected.pairs(found)
    if any(one == other for one, other in pairs):
        return True
    # A whole number is itself and nothing near it.
    rounded = max(one.decimals + 2 * one.percent for one in (expected, found)) >= DECIMALS
    return rounded and any(
        one.denominator > 1 and other.denominator > 1 and round(one, DECIMALS) == round(other, DECIMALS)
        for one, other in pairs
    )


def _equal(expected: _Reading, found: _Reading) -> bool:
    if expected.number is not None and found.number is not None:
        return equal_numbers(expected.number, found.number)
    return bool(math_verify.verify(expected.as_sympy(), found.as_sympy(), timeout_seconds=0, raise_on_error=True))


@lru_cache(maxsize=256)  # the G samples of a prompt come one after another
def _expected(answer: str) -> _Reading | None:
    """The prompt's answer; bare LaTeX is only recognised inside a box."""
    answer = _in_ascii_digits(expected_answer(answer))
    if number := read_number(answer):
        return _Reading(number, ())
    if "\\boxed" in answer or "$" in answer:
        return _parsed(answer)
    return _boxed(answer)


def _found(text: str) -> _Reading | None:
    """The answer that a response gives."""
    text = _in_ascii_digits(after_thinking(text))
    for part in marked(text):
        if number := read_number(part.text):
            return _Reading(number, ())
        if denied(part.text):
            return None
        if (part.mark == "box" or _mathematical(part.text)) and (reading := _boxed(part.text)):
            return reading
        if part.mark != "box" and (number := read_number(first_clause(part.text))):
            return _Reading(number, ())
        if part.mark in ("tag", "hashes") and (reading := _loose(part.text)):
            return reading
    return None if overlong(text) else _loose(text)


def _in_ascii_digits(text: str) -> str:
    """The same with the digits of other scripts as ours, which are all that the library reads."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(one)) if one.isdecimal() and not one.isascii() else one for one in text)


def _loose(text: str) -> _Reading | None:
    """The answer of a text without marks: all of it, what the library finds in it, or its last number."""
    text = text[-TAIL:].strip()
    if number := read_number(text.rstrip("!?")) or last_number(text, odd=True):
        return _Reading(number, ())
    if _mathematical(text) and (reading := _boxed(text)):
        return reading
    # To the library an asterisk ends a number: **265/3** would be 265.
    if reading := _parsed(_EMPHASIS.sub(" ", text)):
        return reading
    number = last_number(text)
    return _Reading(number, ()) if number else None


def _mathematical(text: str) -> bool:
    """Whether it is an expression rather than a sentence: no words but names of functions, braces in pairs."""
    if any(unicodedata.category(one) in ("Lo", "So") and one != "°" for one in text[:SHORT] if one > "\x7f"):
        return False  # a word without spaces, or a picture
    if len(text) > SHORT or not _MATHEMATICAL.search(text) or text.count("{") != text.count("}") or "\n" in text:
        return False
    return all(word.lower() in _KNOWN_WORDS for word in _WORD.findall(_TEXT.sub(" ", text)))


def _boxed(text: str) -> _Reading | None:
    """What the library makes of an expression."""
    text = text.rstrip(".,;: ")
    if found := _DELIMITERS.fullmatch(text):
        text = next(filter(None, found.groups())).strip().rstrip(".,;: ")
    text = _ROOT.sub(lambda found: f"\\sqrt{{{found[1] or found[2] or found[3]}}}", text).translate(_CHARACTERS)
    text = text.replace("\\varnothing", "\\emptyset")
    return _parsed(f"\\boxed{{{text}}}") if text else None


def _parsed(text: str) -> _Reading | None:
    if _ENDLESS.search(text):
        return None
    parsed: list[Any] = math_verify.parse(text, parsing_timeout=0, raise_on_error=True)
    return _Reading(None, tuple(parsed)) if parsed else None


def _sympy(value: Any, decimals: int) -> Any:
    """A fraction as the library reads it: a decimal stays one, as such are compared after rounding."""
    exact = sympy.Rational(value.numerator, value.denominator)
    return sympy.Float(exact) if decimals else exact
