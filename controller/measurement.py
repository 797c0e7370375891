"""What a control law is told, and what each of them keeps of it. Entropies are in nats per response token."""

import math

import msgspec
from msgspec.structs import replace

from entrostat.protocol.messages import PolicyVersion

# Entropies below this are the same to a law that works with logarithms: a policy without any.
RESOLUTION_NATS = 1e-6


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One order's entropy: the mean over its response tokens, of the policy `version`, before the step it was for."""

    version: PolicyVersion
    entropy: float  # nats per token; NaN where it could not be measured
    tokens: int
    # What H_0 is if this order is the last of those that make it, by someone who keeps their levels apart; None: the
    # token mean of those orders.
    initial: float | None = None
    bonus: float | None = None  # the entropy that carries the bonus, where it is not `entropy`, nats
    surprise: float | None = None  # −log π of the drawn tokens, where it is not `entropy`, nats
    share: float = 1.0  # of its coefficient that acted in the order's step: the token mean of the groups' weights


class Intake(msgspec.Struct, frozen=True, kw_only=True):
    """What every law keeps of its measurements."""

    last_version: PolicyVersion | None = None
    accepted: int = 0
    frozen: int = 0  # measurements refused
    tokens: int = 0  # of the orders that make H_0 …
    nats: float = 0.0  # … their summed entropy …
    surprise_nats: float = 0.0  # … and −log π
    initial_entropy: float | None = None  # H_0, once known …
    initial_surprise: float | None = None  # … and −log π of the same orders, nats per token
    usual_entropy: float | None = None  # mean of the bonus's entropy over all accepted measurements, each counted once


def admit(intake: Intake, measurement: Measurement, anchor_orders: int) -> Intake:
    """Counts a measurement in or refuses it; makes H_0 of the first `anchor_orders`, weighted by tokens.

    Refused, and counted, are a measurement of no tokens, of a number that is not finite or negative, and of a version
    that is no newer than the last one accepted.
    """
    old = intake.last_version is not None and measurement.version <= intake.last_version
    entropy = measurement.entropy
    bonus = entropy if measurement.bonus is None else measurement.bonus
    surprise = entropy if measurement.surprise is None else measurement.surprise
    if old or measurement.tokens <= 0 or not all(map(_possible, (entropy, bonus, surprise))):
        return replace(intake, frozen=intake.frozen + 1)
    count = intake.accepted + 1
    before = 0.0 if intake.usual_entropy is None else intake.usual_entropy
    accepted = replace(
        intake,
        last_version=measurement.version,
        accepted=count,
        usual_entropy=before + (bonus - before) / count,
    )
    if intake.initial_entropy is not None:
        return accepted
    tokens = intake.tokens + measurement.tokens
    nats = intake.nats + measurement.tokens * entropy
    surprise_nats = intake.surprise_nats + measurement.tokens * surprise
    summed = replace(accepted, tokens=tokens, nats=nats, surprise_nats=surprise_nats)
    if count < anchor_orders:
        return summed
    initial = nats / tokens if measurement.initial is None else measurement.initial
    return replace(summed, initial_entropy=initial, initial_surprise=surprise_nats / tokens)


def _possible(entropy: float) -> bool:
    """Whether a policy can have it; rounding may put the entropy of one without any just below 0."""
    return math.isfinite(entropy) and entropy > -RESOLUTION_NATS
