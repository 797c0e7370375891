"""Judges numbers: near enough to the expected one, whatever mathematics or words stand around them."""

from fractions import Fraction

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
from entrostat.protocol.verifier_settings import Numeric

TAIL = 10_000  # characters at the end that are searched where nothing is marked


class NumericVerifier:
    """The last number of what the response marks as its answer, a reason behind it apart, or of all of it.

    Near enough is |found − expected| ≤ max(absolute_tolerance, relative_tolerance × |expected|), computed exactly.
    A percentage is also the number before its sign, from 1 % on, and 3 million is also 3. No number is unparsable.
    """

    def __init__(self, settings: Numeric) -> None:
        self._relative = Fraction(settings.relative_tolerance)
        self._absolute = Fraction(settings.absolute_tolerance)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth.

        Raises:
            ValueError: the prompt's own answer is not one number.
        """
        expected = read_number(expected_answer(prompt.answer))
        if expected is None:
            raise ValueError(f"the answer of {prompt.name} is not one number: {prompt.answer[:60]!r}")
        found = _found(after_thinking(text))
        if found is None:
            return Verdict(reward=0.0, status="unparsable", seconds=0.0, detail="no number")
        if any(self._near(one, other) for one, other in expected.pairs(found)):
            return Verdict(reward=1.0, status="correct", seconds=0.0, answer=str(expected.value)[:200])
        return Verdict(reward=0.0, status="wrong", seconds=0.0, answer=str(found.value)[:200])

    def _near(self, expected: Fraction, found: Fraction) -> bool:
        return abs(found - expected) <= max(self._absolute, self._relative * abs(expected))


def _found(text: str) -> Written | None:
    for part in marked(text):
        if number := read_number(part.text):
            return number
        if denied(part.text):
            return None
        if number := read_number(first_clause(part.text)) or last_number(part.text):
            return number
    return None if overlong(text) else last_number(text[-TAIL:])
