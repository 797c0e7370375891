"""Adds up what several verifiers say of a response."""

from collections.abc import Sequence

from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.ports import Verifier

FAILURES = ("timeout", "error")


class WeightedVerifier:
    """The sum of weight × reward over its parts. The weights are taken as they are: 1 and 0.1 make 1.1 at best.

    Status and answer are the first part's, and the detail says what each part gave. Where a part fails the whole is a
    failure, of reward 0: half a sum is no reward.
    """

    def __init__(self, parts: Sequence[tuple[str, float, Verifier]]) -> None:
        """`parts`: each one's name, weight and verifier; at least one."""
        self._parts = tuple(parts)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth."""
        verdicts = [_verdict(verifier, prompt, text) for _, _, verifier in self._parts]
        said = []
        for (name, weight, _), verdict in zip(self._parts, verdicts, strict=True):
            reason = f" ({verdict.detail})" if verdict.detail else ""
            said.append(f"{name} {weight:g} × {verdict.reward:g} {verdict.status}{reason}")
        failed = any(verdict.status in FAILURES for verdict in verdicts)
        total = sum(weight * verdict.reward for (_, weight, _), verdict in zip(self._parts, verdicts, strict=True))
        return Verdict(
            reward=0.0 if failed else total,
            status="error" if failed else verdicts[0].status,
            seconds=0.0,
            detail="; ".join(said),
            answer=verdicts[0].answer,
        )


def _verdict(verifier: Verifier, prompt: Prompt, text: str) -> Verdict:
    try:
        return verifier.verify(prompt, text)
    except Exception as error:  # noqa: BLE001 — as in the judge: what untrusted text brings about costs this item
        return Verdict(reward=0.0, status="error", seconds=0.0, detail=f"{type(error).__name__}: {error}")
