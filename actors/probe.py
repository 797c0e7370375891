"""Does an engine compute what the learner published? The decision, pure: log-probs in, verdict out.

An engine that loads a version scores the manifest's probe. Three answers are possible: it computes this version, it
computes something else, or this version and the one before are too alike to tell; then what was loaded decides.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from entrostat.protocol.arrays import Float32, Int32, split
from entrostat.protocol.messages import Probe


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine's process did with one version's buffer."""

    loaded: tuple[str, ...]  # tensors of the manifest that were given to the model
    missing: tuple[str, ...]  # parameters of the model that nothing was loaded into
    damaged: tuple[str, ...]  # tensors that don't match their checksum

    @property
    def complete(self) -> bool:
        """Every parameter was loaded, from undamaged tensors."""
        return not self.missing and not self.damaged


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a version may be served."""

    accepted: bool
    difference: float  # nats: the largest |measured − published|; infinite where something was not finite
    reason: str  # why not; "" when accepted


def sequences(probe: Probe) -> list[Int32]:
    """The probe's sequences, `[n] int32` each."""
    return split(probe.tokens, probe.lengths)


def judge(measured: Sequence[Float32], probe: Probe, receipt: Receipt) -> Judgement:
    """Accepts a version when the engine's log-probs are the published ones, and not those of the version before.

    With m measured, c published, p of the version before: refused when max|m − c| exceeds the probe's tolerance.
    m is clearly nearer to one of the two where its mean distance to it is below half of mean|c − p| (by the triangle
    inequality it is then further than that from the other one). Where it is clearly nearer to neither, they are too
    close to tell, and only a complete receipt is accepted.

    Args:
        measured: per sequence the engine's log-probs `[n − 1]`, nats.
        probe: what they must be.
        receipt: what the engine loaded.
    """
    ours = np.concatenate([np.asarray(part, np.float64) for part in measured]) if measured else np.empty(0)
    published, previous = probe.logprobs.astype(np.float64), probe.previous.astype(np.float64)
    if ours.shape != published.shape or not ours.size:
        return _refused(np.inf, f"the engine gave {ours.size} log-probs for a probe of {published.size}")
    difference = float(np.max(np.abs(ours - published)))
    if not difference <= probe.tolerance:  # also where it is NaN
        return _refused(
            difference if np.isfinite(difference) else np.inf,
            f"the largest log-prob difference is {difference:.3g} nats, the tolerance {probe.tolerance:.3g}",
        )
    gap = float(np.mean(np.abs(published - previous)))
    near_this, near_previous = (float(np.mean(np.abs(ours - other))) for other in (published, previous))
    if 2 * near_this < gap:
        return Judgement(accepted=True, difference=difference, reason="")
    if 2 * near_previous < gap:
        return _refused(
            difference,
            f"the engine computes the version before: {near_previous:.3g} nats from it, {near_this:.3g} from this one",
        )
    if not receipt.complete:
        return _refused(
            difference,
            f"this version and the one before are {gap:.3g} nats apart, too close to tell by the probe, and loading "
            f"was not complete: nothing for {_list(receipt.missing)}, damaged {_list(receipt.damaged)}",
        )
    return Judgement(accepted=True, difference=difference, reason="")


def describe(receipt: Receipt) -> str:
    """The receipt in words, for a message."""
    return (
        f"nothing was loaded into: {_list(receipt.missing)}; damaged: {_list(receipt.damaged)}; "
        f"{len(receipt.loaded)} tensors were loaded: {_list(receipt.loaded)}"
    )


def _refused(difference: float, reason: str) -> Judgement:
    return Judgement(accepted=False, difference=float(difference), reason=reason)


def _list(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
