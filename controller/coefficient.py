"""The control laws: what the global entropy coefficient α becomes after a measurement, as pure functions.

`band_step` and `anchored_step` are the papers' updates, bare. `law_step` wraps them and the flagship `thermostat` with
what a run needs: H_0, warm-up, and freezing. A measurement that is missing, not finite, negative, or no newer than the
last one changes nothing but a counter. Entropies are in nats per response token.
"""

import math
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from entrostat.controller.measurement import RESOLUTION_NATS, Intake, Measurement
from entrostat.controller.thermostat import ThermostatState, thermostat_step
from entrostat.protocol.entropy_settings import AnchoredLaw, BandLaw, FixedLaw, LawSettings, ThermostatLaw
from entrostat.protocol.errors import ConfigError


class FixedState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of a constant coefficient."""

    intake: Intake
    coefficient: float


class BandState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of AEnt's band law."""

    intake: Intake
    coefficient: float


class AnchoredState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of AER's integral law."""

    intake: Intake
    coefficient: float


LawState = FixedState | BandState | AnchoredState | ThermostatState


class Reading(NamedTuple):
    """What a law's state says to those outside it."""

    coefficient: float  # α of the next order
    target: float | None  # H*, nats
    low: float | None  # a band's edges, nats
    high: float | None
    initial_entropy: float | None  # H_0
    frozen: int
    brake: bool
    ceiling_orders: int


def band_step(
    coefficient: float,
    entropy: float,
    *,
    low: float,
    high: float,
    rate: float,
    floor: float,
    ceiling: float,
    initial: float | None = None,
    pull: float = 0.0,
) -> float:
    """AEnt (arXiv 2509.03493): hold inside the band, push back outside it, stay in the box.

    `λ ← clip(λ − β·[min(0, H̃ − low) + max(0, H̃ − high) + pull·(λ − λ0)], floor, ceiling)`, β the rate, λ0 `initial`.
    An entropy that is not finite leaves λ as it is.

    Raises:
        ConfigError: the band or the box is empty, or there is a pull and nothing to pull to.
    """
    if not low < high or not floor <= ceiling:
        raise ConfigError(
            f"a band needs low < high and floor <= ceiling; got low = {low}, high = {high}, "
            f"floor = {floor}, ceiling = {ceiling}"
        )
    if pull != 0.0 and initial is None:
        raise ConfigError(f"pull = {pull} needs the coefficient it pulls to: give initial")
    if not math.isfinite(entropy):
        return coefficient
    back = pull * (coefficient - initial) if initial is not None else 0.0
    error = min(0.0, entropy - low) + max(0.0, entropy - high) + back
    return min(max(coefficient - rate * error, floor), ceiling)


def anchored_step(
    coefficient: float, entropy: float, *, target: float, rate: float, ceiling: float | None = None
) -> float:
    """AER (arXiv 2510.10959): `α ← max(0, α + η·(H* − H))`, η the rate; the ceiling is ours.

    An entropy that is not finite leaves α as it is.

    Raises:
        ConfigError: the ceiling is negative, or the target is not finite.
    """
    if not math.isfinite(target) or (ceiling is not None and ceiling < 0.0):
        raise ConfigError(f"an anchored law needs a finite target and a ceiling of at least 0; got {target}, {ceiling}")
    if not math.isfinite(entropy):
        return coefficient
    moved = max(0.0, coefficient + rate * (target - entropy))
    return moved if ceiling is None else min(moved, ceiling)


def initial_state(law: LawSettings, *, momentum: float = 0.9) -> LawState:
    """The state before any measurement; `momentum` is the optimizer's β1."""
    match law:
        case FixedLaw():
            return FixedState(intake=Intake(), coefficient=law.coefficient)
        case BandLaw():
            return BandState(intake=Intake(), coefficient=law.initial)
        case AnchoredLaw():
            return AnchoredState(intake=Intake(), coefficient=0.0)
        case ThermostatLaw():
            return ThermostatState(
                intake=Intake(), coefficient=0.0, drift=law.drift, balance=law.balance, momentum=momentum
            )


def law_step(law: LawSettings, state: LawState, measurement: Measurement) -> LawState:
    """The state after a measurement; its coefficient is that of the next order.

    Raises:
        ConfigError: the state belongs to another law.
    """
    intake = _admit(state.intake, measurement, law.anchor_orders if isinstance(law, ThermostatLaw) else 1)
    if intake.accepted == state.intake.accepted:
        return replace(state, intake=intake)
    initial = intake.initial_entropy
    match law, state:
        case FixedLaw(), FixedState():
            return replace(state, intake=intake)
        case BandLaw(), BandState() if intake.accepted <= law.warmup_steps:
            return replace(state, intake=intake)
        case BandLaw(), BandState():
            moved = band_step(
                state.coefficient,
                measurement.entropy,
                low=law.low,
                high=law.high,
                rate=law.rate,
                floor=law.floor,
                ceiling=law.ceiling,
                initial=law.initial,
                pull=law.pull,
            )
            return replace(state, intake=intake, coefficient=moved)
        case AnchoredLaw(), AnchoredState() if initial is not None:
            target = law.anchor * initial
            moved = anchored_step(
                state.coefficient, measurement.entropy, target=target, rate=law.rate, ceiling=law.ceiling
            )
            return replace(state, intake=intake, coefficient=moved)
        case ThermostatLaw(), ThermostatState():
            waiting = replace(state, intake=intake)
            return waiting if initial is None else thermostat_step(law, waiting, measurement.entropy, initial)
        case _:
            raise ConfigError(
                f"a {type(state).__name__} came to a {type(law).__name__}: resume with the law the run was started with"
            )


def read(law: LawSettings, state: LawState) -> Reading:
    """What the state says: coefficient, target or band, H_0, and whether the law is held back."""
    initial = state.intake.initial_entropy
    anchor = law.anchor if isinstance(law, ThermostatLaw | AnchoredLaw) else None
    return Reading(
        coefficient=state.coefficient,
        target=None if anchor is None or initial is None else anchor * initial,
        low=law.low if isinstance(law, BandLaw) else None,
        high=law.high if isinstance(law, BandLaw) else None,
        initial_entropy=initial,
        frozen=state.intake.frozen,
        brake=isinstance(state, ThermostatState) and state.brake,
        ceiling_orders=state.ceiling_orders if isinstance(state, ThermostatState) else 0,
    )


def _admit(intake: Intake, measurement: Measurement, anchor_orders: int) -> Intake:
    """Counts a measurement in or refuses it; makes H_0 of the first `anchor_orders`, weighted by tokens."""
    old = intake.last_version is not None and measurement.version <= intake.last_version
    # Rounding may put the entropy of a policy without any just below 0.
    possible = math.isfinite(measurement.entropy) and measurement.entropy > -RESOLUTION_NATS
    if old or measurement.tokens <= 0 or not possible:
        return replace(intake, frozen=intake.frozen + 1)
    accepted = replace(intake, last_version=measurement.version, accepted=intake.accepted + 1)
    if intake.initial_entropy is not None:
        return accepted
    tokens = intake.tokens + measurement.tokens
    nats = intake.nats + measurement.tokens * measurement.entropy
    initial = nats / tokens if accepted.accepted == anchor_orders else None
    return replace(accepted, tokens=tokens, nats=nats, initial_entropy=initial)
