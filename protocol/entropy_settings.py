"""What holds the policy's entropy: estimator, token mask, control law and prompt weights, each chosen by itself."""

from typing import Annotated, Literal

from msgspec import Meta

from entrostat.protocol.ranges import Count, CountOrZero, NonNegative, OpenShare, Positive, Rate, Ratio, Settings, Share


class FullEntropy(Settings, frozen=True, kw_only=True, tag_field="kind", tag="full"):
    """H over the whole vocabulary."""


class ClampedEntropy(Settings, frozen=True, kw_only=True, tag_field="kind", tag="clamped"):
    """H̃ of the policy renormalised without the `drop_fraction` of the vocabulary with the smallest logits (AEnt)."""

    drop_fraction: OpenShare = 0.25


class TopKEntropy(Settings, frozen=True, kw_only=True, tag_field="kind", tag="top_k"):
    """Entropy of the policy renormalised over its `k` most likely tokens."""

    k: Count = 20


class NucleusEntropy(Settings, frozen=True, kw_only=True, tag_field="kind", tag="nucleus"):
    """Entropy of the policy renormalised over the fewest tokens that hold `mass` of the probability (SIREN)."""

    mass: Annotated[float, Meta(gt=0, le=1)] = 0.8


EstimatorSettings = ClampedEntropy | FullEntropy | TopKEntropy | NucleusEntropy


class AllTokens(Settings, frozen=True, kw_only=True, tag_field="kind", tag="all"):
    """Every response token has the bonus."""


class TopEntropyTokens(Settings, frozen=True, kw_only=True, tag_field="kind", tag="top_entropy"):
    """Only the `share` of the order's response tokens with the highest entropy (SIREN).

    Deviation: the bonus is the sum over the chosen tokens divided by the number of all response tokens, N_H, while the
    law is told the mean over all response tokens, not that of the chosen ones. What the law holds at its target is not
    what carries the bonus.
    """

    share: Annotated[float, Meta(gt=0, le=1)] = 0.2


class SmoothedTokens(Settings, frozen=True, kw_only=True, tag_field="kind", tag="smoothed"):
    """EPO: a token whose entropy leaves `[low, high]` × the mean of earlier orders loses `penalty` of its bonus."""

    low: NonNegative = 0.0
    high: Positive = 2.0
    penalty: NonNegative = 0.05  # nats


TokenSettings = AllTokens | TopEntropyTokens | SmoothedTokens


class FixedLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="fixed"):
    """A constant coefficient; 0 switches entropy control off."""

    coefficient: NonNegative = 0.0


class BandLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="band"):
    """AEnt: the coefficient moves only while the entropy is outside `[low, high]` nats."""

    initial: NonNegative
    floor: NonNegative
    ceiling: Positive
    low: NonNegative
    high: Positive
    rate: Positive
    pull: NonNegative = 0.0
    warmup_steps: CountOrZero = 0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if not self.floor <= self.initial <= self.ceiling:
            raise ValueError(
                f"initial = {self.initial} is outside the box floor = {self.floor} … ceiling = {self.ceiling}"
            )


class AnchoredLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="anchored"):
    """AER: an integral law towards `anchor · H_0`, never negative."""

    anchor: Ratio = 0.4
    rate: Positive = 0.01
    ceiling: Positive = 1.0


class ThermostatLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="thermostat"):
    """The flagship: steers by the entropy it foresees, around a calibrated balance coefficient."""

    anchor: Ratio = 0.7  # target = anchor · H_0
    balance: Ratio = 1e-3  # ĉ: the coefficient that holds the entropy still at the start
    drift: Rate = 0.01  # â: how fast ln H falls without control, per order
    anchor_orders: Count = 3
    lag: CountOrZero = 1  # orders between a measurement and the step it steers; a run has 1, a simulation any
    floor_ratio: Ratio = 0.01  # of ĉ
    ceiling_ratio: Ratio = 10.0  # of ĉ
    # Of ĉ: how hard entropy is pressed down that has been at its target and rose above it; 0 never presses.
    cooling_ratio: Annotated[float, Meta(ge=0, le=100)] = 2.0
    noise: Rate = 0.13  # standard deviation of one order's ln H̃ about the policy's: another batch, another mean
    pace: Rate = 0.3  # κ: share of the foreseen error that one order is to close
    # Explored enough: from that order on the target falls, evenly in ln H, to final_anchor · H_0. 0: it never does.
    release_after: CountOrZero = 0
    release_orders: Count = 50
    final_anchor: Ratio = 0.2

    def __post_init__(self) -> None:
        if self.release_after and not self.final_anchor <= self.anchor:
            raise ValueError(f"final_anchor = {self.final_anchor} is above anchor = {self.anchor}")


class BangBangLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="bang_bang"):
    """Skywork-OR1: a step of `delta` up or down; the bonus acts only while the entropy is below the target."""

    target: NonNegative = 0.0  # nats; 0: anchor · H_0
    anchor: Ratio = 0.7
    delta: Positive = 1e-4
    initial: NonNegative = 0.0
    floor: NonNegative = 0.0
    ceiling: Positive = 5e-3


class PiLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="pi"):
    """Proportional and integral action on `H* − H`, linear, with conditional integration."""

    target: NonNegative = 0.0  # nats; 0: anchor · H_0
    anchor: Ratio = 0.7
    proportional: NonNegative = 1.0  # per nat
    integral: NonNegative = 0.01  # per nat and order
    floor: NonNegative = 0.0
    ceiling: Positive = 1.0


class QuadraticLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="quadratic"):
    """SIREN: the gradient of `−strength · (H − H*)²`, so that the coefficient is `2 · strength · (H* − H)`, signed."""

    target: NonNegative = 0.0  # nats; 0: anchor · H_0
    anchor: Ratio = 1.0
    strength: Positive = 5e-3


class SampleBalanceLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="sample_balance"):
    """EntroPIC: no bonus; scales the losses of samples with positive and with negative advantage against each other."""

    target: NonNegative = 0.0  # nats; 0: anchor · H_0
    anchor: Ratio = 0.7
    proportional: NonNegative = 1.0  # per nat
    integral: NonNegative = 0.01  # per nat and order


LawSettings = ThermostatLaw | BandLaw | AnchoredLaw | FixedLaw | BangBangLaw | PiLaw | QuadraticLaw | SampleBalanceLaw


class WeightSettings(Settings, frozen=True, kw_only=True):
    """How strongly each prompt shares in the bonus."""

    # Whose pass rate: the prompt's decayed estimate, or that of the group itself, as AER has it.
    difficulty: Literal["streaming", "group"] = "streaming"
    normalise: bool = True  # token-weighted mean 1 over the order; False keeps the raw weights, as AER does
    form: Literal["uniform", "hinge", "indicator", "linear"] = "hinge"
    threshold: Rate = 0.5  # ρ
    minimum: Share = 0.25  # w_min
    cap: Positive = 4.0
    half_life_versions: Positive = 50.0
    prior: Positive = 4.0  # m0, samples
    all_wrong_share: Share = 0.25  # of the bonus tokens at most; 0: none
    entropy_ratio: Positive = 2.0  # no bonus for a group whose −log π exceeds this many times its first mean


class EntropySettings(Settings, frozen=True, kw_only=True):
    """What holds the policy's entropy."""

    estimator: EstimatorSettings = ClampedEntropy()
    tokens: TokenSettings = AllTokens()
    law: LawSettings = ThermostatLaw()
    # What the law is told: the entropy that carries the bonus, H, or −log π of the drawn tokens.
    measured: Literal["bonus", "full", "sampled"] = "bonus"
    weight: WeightSettings = WeightSettings()
