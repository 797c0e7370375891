"""Judges a response's structure alone: its tags are there, each once and in order, and nothing is outside of them."""

import re

from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.verifier_settings import Format


class FormatVerifier:
    """`<think>…</think> <answer>…</answer>`, or other tags: 1 if nothing but blanks stands outside of them, else 0.

    What is inside is not looked at. With `opened` the response begins inside the first tag, which the prompt opened.
    """

    def __init__(self, settings: Format) -> None:
        self._start = f"<{settings.tags[0]}>" if settings.opened else ""
        self._expected = [mark for tag in settings.tags for mark in (f"<{tag}>", f"</{tag}>")]
        self._marks = re.compile("|".join(re.escape(mark) for mark in self._expected))

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What the structure of `text` is worth, whatever the prompt."""
        del prompt
        fault = self._fault(self._start + text)
        return Verdict(reward=float(not fault), status="wrong" if fault else "correct", seconds=0.0, detail=fault)

    def _fault(self, text: str) -> str:
        """What is wrong with it; nothing if all is right."""
        end, rest = 0, iter(self._expected)
        for found in self._marks.finditer(text):
            expected = next(rest, "the end")
            if found[0] != expected:
                return f"{found[0]} where {expected} was expected"
            # Between a tag that opens and the one that closes it there may be anything.
            if not expected.startswith("</") and text[end : found.start()].strip():
                return f"text before {expected}"
            end = found.end()
        missing = next(rest, "")
        if missing:
            return f"no {missing}"
        return f"text after {self._expected[-1]}" if text[end:].strip() else ""
