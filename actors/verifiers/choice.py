"""Judges multiple choice: the letter that a response gives."""

import re
from collections import deque

from entrostat.actors.verifiers.answers import after_thinking, marked
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.verifier_settings import Choice

TAIL = 2_000  # characters at the end that are searched where nothing is marked
_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{([^{}]*)\}|\\[()\[\]]|\$")


class ChoiceVerifier:
    r"""One of `choices`, as `(B)`, `B`, `B.`, `B) because …`, `**B**`, `\boxed{B}`, "the answer is B".

    Read is what the response marks as its answer; without marks its last line if it begins with a letter written as a
    choice; then the last letter in brackets or emphasis, after "option" or "choice", or before "is correct". A word
    such as the article "A" is no choice. Letters count in capitals; in small ones only in brackets or alone. Two
    letters are no answer.
    """

    def __init__(self, settings: Choice) -> None:
        upper = settings.choices.upper()
        self._choices = upper
        one, either = f"[{re.escape(upper)}]", f"[{re.escape(upper + upper.lower())}]"
        lead, emphasis = r"\s*(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\*\*|__|`)?", r"(?:\*\*|__|`)?"
        bare = rf"(?P<bare>{one})(?![\w'’]){emphasis}"
        self._alone = re.compile(rf"[\W_]*({either})[\W_]*")
        self._several = re.compile(rf"{lead}\(?{one}\)?{emphasis}\s*(?:,|/|&|and\b|or\b)\s*{emphasis}\(?{one}\)?(?!\w)")
        # A bare letter is a choice where only something follows that follows no word: not in "A large dog".
        self._begins = re.compile(
            rf"{lead}(?:\((?P<bracketed>{either})\)|{bare}(?=\s*$|\s*[.):,;–—]|\s[-(]|\s+because\b))"
        )
        self._no_word = re.compile(rf"{lead}(?P<bare>(?![AI]){one})\s")
        self._anywhere = re.compile(
            rf"\(({either})\)|(?:\*\*|__)({one})[.):]?(?:\*\*|__)|\b(?:[Oo]ption|[Cc]hoice)\s+(?:is\s+)?({one})(?!\w)"
            rf"|(?<![\w'’])({one})(?:\*\*|__)?\s+is\s+(?:the\s+)?(?:correct|right)\b"
        )

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth.

        Raises:
            ValueError: the prompt's own answer is none of the choices.
        """
        expected = self._alone.fullmatch(prompt.answer)
        if expected is None:
            raise ValueError(f"the answer of {prompt.name} is none of {self._choices}: {prompt.answer[:60]!r}")
        found = self._found(after_thinking(text))
        if not found:
            return Verdict(reward=0.0, status="unparsable", seconds=0.0, detail=f"none of {self._choices}, or several")
        right = found == expected[1].upper()
        return Verdict(reward=float(right), status="correct" if right else "wrong", seconds=0.0, answer=found)

    def _found(self, text: str) -> str:
        parts = [part.text for part in marked(text)]
        for part in parts:
            if self._several.match(_plain(part)):
                return ""
            if letter := self._letter(part, said=True):
                return letter
        lines = [line for line in text[-TAIL:].splitlines() if line.strip()]
        letter = "" if parts or not lines else self._letter(lines[-1], said=False)
        return letter or self._last(text[-TAIL:])

    def _letter(self, text: str, *, said: bool) -> str:
        """The one letter that `text` is or begins with; where it is `said` to be the answer, words may follow."""
        text = _plain(text)
        if found := self._alone.fullmatch(text):
            return found[1].upper()
        if self._several.match(text):
            return ""
        if found := self._begins.match(text):
            return (found["bracketed"] or found["bare"]).upper()
        found = self._no_word.match(text) if said else None
        return found["bare"] if found else ""

    def _last(self, text: str) -> str:
        last = deque(self._anywhere.finditer(text), maxlen=1)
        return next(filter(None, last[0].groups())).upper() if last else ""


def _plain(text: str) -> str:
    return _LATEX.sub(lambda found: found[1] or "", text).strip()
