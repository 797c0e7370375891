"""Judges mathematical answers with `math-verify`: parsed by sympy, equal if sympy can show that they are."""

import logging
from functools import lru_cache
from typing import Any

import math_verify

from entrostat.protocol.messages import Prompt, Verdict

# It warns at the first call that its time-outs are off: they use signals, and this process is killed from outside.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class MathVerifier:
    """Equal to the prompt's answer is worth 1, anything else 0; nothing that reads as mathematics, unparsable."""

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth; may take forever, as sympy evaluates what it reads.

        Whatever the library fails by is raised, so that it is not taken for a wrong answer.

        Raises:
            ValueError: the prompt's own answer can't be read, so that nothing could ever be right.
        """
        expected = _expected(prompt.answer)
        if not expected:
            raise ValueError(f"the answer of {prompt.name} can't be read as mathematics: {prompt.answer[:60]!r}")
        found = _parse(text)
        if not found:
            return Verdict(reward=0.0, status="unparsable", seconds=0.0, detail="no mathematical answer")
        if math_verify.verify(list(expected), found, timeout_seconds=0, raise_on_error=True):
            return Verdict(reward=1.0, status="correct", seconds=0.0)
        return Verdict(reward=0.0, status="wrong", seconds=0.0)


@lru_cache(maxsize=256)  # the G samples of a prompt come one after another
def _expected(answer: str) -> tuple[Any, ...]:
    """The prompt's answer as sympy objects; bare LaTeX is only recognised inside a box."""
    marked = answer if "\\boxed" in answer or "$" in answer else f"\\boxed{{{answer}}}"
    return tuple(_parse(marked))


def _parse(text: str) -> list[Any]:
    parsed: list[Any] = math_verify.parse(text, parsing_timeout=0, raise_on_error=True)
    return parsed
