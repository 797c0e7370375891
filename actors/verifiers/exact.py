"""Judges text: the same, character by character."""

import unicodedata

from entrostat.actors.verifiers.answers import after_thinking, marked
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.verifier_settings import Exact

ANSWER = 200  # characters of `Verdict.answer`
_AROUND = "*_`\"'“” \t\n"


class ExactVerifier:
    """What the response marks as its answer, or where nothing is marked all of it, against the prompt's own.

    Blanks at the ends don't count, nor how accents are composed; after "the answer is" neither do quotes, emphasis and
    the full stop. An empty response is unparsable.
    """

    def __init__(self, settings: Exact) -> None:
        self._ignore_case = settings.ignore_case

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth.

        Raises:
            ValueError: the prompt's own answer is empty.
        """
        expected = self._plain(prompt.answer)
        if not expected:
            raise ValueError(f"the answer of {prompt.name} is empty: nothing could be right")
        whole = after_thinking(text).strip()
        if not whole:
            return Verdict(reward=0.0, status="unparsable", seconds=0.0, detail="an empty response")
        part = next(marked(whole), None)
        read = {whole} if part is None else {whole, part.text}
        if part is not None and part.mark == "said":
            read.add(part.text.strip(_AROUND).rstrip("."))
        if expected in {self._plain(one) for one in read}:
            return Verdict(reward=1.0, status="correct", seconds=0.0, answer=expected[:ANSWER])
        answer = self._plain(part.text.strip(_AROUND) if part else whole)
        return Verdict(reward=0.0, status="wrong", seconds=0.0, answer=answer[:ANSWER])

    def _plain(self, text: str) -> str:
        composed = unicodedata.normalize("NFC", text.strip())
        return composed.casefold() if self._ignore_case else composed
