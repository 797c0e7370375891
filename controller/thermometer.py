"""The thermometer: which entropy of a step's report the law is told, at the mix of levels that H_0 was measured at.

A batch of harder prompts has another entropy than an easy one under the same policy. So what the law is told is

    H = Σ_level share_level · H_level

with the shares of response tokens that the levels had over the orders that made H_0, counted over *all* groups
completed for them: those that a filter left out too, so that filtering and curricula don't move the thermometer. H_0
itself is the same sum with each level's token mean over those orders. Where a level is missing from an order, the
shares of those present are scaled to a sum of 1.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from entrostat.controller.measurement import Measurement
from entrostat.protocol.entropy_settings import (
    ClampedEntropy,
    EntropySettings,
    FullEntropy,
    NucleusEntropy,
    TopKEntropy,
)
from entrostat.protocol.messages import LevelEntropy, StepReport

Estimator = Literal["full", "clamped", "top_k", "nucleus", "sampled"]


class LevelTotal(msgspec.Struct, frozen=True, kw_only=True):
    """One level over the orders that make H_0."""

    level: str
    completed: int = 0  # response tokens of all its completed groups
    measured: int = 0  # those of them whose entropy the learner measured …
    nats: float = 0.0  # … and its sum


class AnchorMix(msgspec.Struct, frozen=True, kw_only=True):
    """The levels over the orders that make H_0; grows with `with_order` and stands still from then on."""

    levels: tuple[LevelTotal, ...] = ()

    def with_order(self, completed: Mapping[str, int], entropies: Mapping[str, tuple[int, float]]) -> "AnchorMix":
        """The mix with one more order: `completed` tokens by level, and of those measured their count and mean."""
        known = {total.level: total for total in self.levels}
        grown: list[LevelTotal] = []
        for level in dict.fromkeys((*known, *completed, *entropies)):
            before = known.get(level, LevelTotal(level=level))
            tokens, mean = entropies.get(level, (0, 0.0))
            grown.append(
                LevelTotal(
                    level=level,
                    completed=before.completed + completed.get(level, 0),
                    measured=before.measured + tokens,
                    nats=before.nats + tokens * mean,
                )
            )
        return AnchorMix(levels=tuple(grown))

    @property
    def shares(self) -> dict[str, float]:
        """Each level's share of the response tokens; empty before the first order."""
        total = sum(level.completed for level in self.levels)
        return {level.level: level.completed / total for level in self.levels if level.completed}

    @property
    def entropy(self) -> float | None:
        """H_0 if these orders are all that make it; None where no level was measured."""
        means = {level.level: level.nats / level.measured for level in self.levels if level.measured}
        return reweighted(means, self.shares)


def reweighted(entropies: Mapping[str, float], shares: Mapping[str, float]) -> float | None:
    """`Σ share·H / Σ share` over the levels present in both, nats; None where there are none.

    A level that has no share, because it was not met while H_0 was measured, does not count.
    """
    present = [level for level in entropies if shares.get(level, 0.0) > 0.0]
    if len(present) == 1:
        return entropies[present[0]]
    weight = sum(shares[level] for level in present)
    return sum(shares[level] * entropies[level] for level in present) / weight if present else None


def driving_estimator(settings: EntropySettings) -> Estimator:
    """Which entropy drives the law."""
    return bonus_estimator(settings) if settings.measured == "bonus" else settings.measured


def bonus_estimator(settings: EntropySettings) -> Estimator:
    """Which entropy the bonus is on."""
    match settings.estimator:
        case FullEntropy():
            return "full"
        case ClampedEntropy():
            return "clamped"
        case TopKEntropy():
            return "top_k"
        case NucleusEntropy():
            return "nucleus"


def measure(
    report: StepReport, driving: Estimator, *, mix: AnchorMix, completed: Mapping[str, int], anchoring: bool
) -> tuple[Measurement, AnchorMix]:
    """What the law is told of a step, and the mix it was measured at.

    Args:
        report: of the step.
        driving: the entropy that drives the law.
        mix: over the orders so far that make H_0.
        completed: response tokens by level, over all groups completed for this order.
        anchoring: whether this order is one of those that make H_0.

    Returns:
        The measurement, and `mix`, with this order in it while anchoring. With one level, or without a report by
        level, the measurement is the order's token mean.
    """
    levels = {level.level: (level.tokens, _chosen(level, driving)) for level in report.levels if level.tokens > 0}
    if anchoring:
        mix = mix.with_order(completed, levels)
    whole, shares = _chosen(report, driving), mix.shares
    at_mix = None
    # A report that is no number as a whole is none, whatever its levels say.
    if math.isfinite(whole) and (len(shares) > 1 or len(levels) > 1):
        at_mix = reweighted({level: mean for level, (_, mean) in levels.items()}, shares)
    measurement = Measurement(
        version=report.measured,
        entropy=whole if at_mix is None else at_mix,
        tokens=report.response_tokens,
        initial=mix.entropy if anchoring and at_mix is not None else None,
        bonus=report.clamped_entropy,
        surprise=report.sampled_entropy,
    )
    return measurement, mix


def completed_tokens(groups: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Response tokens by level, of groups given as level and lengths."""
    tokens: dict[str, int] = {}
    for level, lengths in groups:
        tokens[level] = tokens.get(level, 0) + sum(lengths)
    return tokens


def _chosen(source: StepReport | LevelEntropy, driving: Estimator) -> float:
    if driving == "full":
        return source.entropy
    return source.sampled_entropy if driving == "sampled" else source.clamped_entropy
