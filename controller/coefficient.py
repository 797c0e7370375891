"""The control laws: what the global entropy coefficient α becomes after a measurement, as pure functions.

`law_step` wraps the published updates (`updates.py`) and the flagship (`thermostat.py`) with what a run needs: H_0,
warm-up, and freezing. A measurement that is missing, not finite, negative, or no newer than the last one changes
nothing but a counter, and so does one that would make an H_0 of nothing. Laws with a target of 0 aim at `anchor · H_0`.
Entropies are in nats per response token.
"""

from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from entrostat.controller.measurement import RESOLUTION_NATS, Intake, Measurement, admit
from entrostat.controller.thermostat import ThermostatState, anchor, thermostat_step
from entrostat.controller.updates import (
    anchored_step,
    band_step,
    bang_bang_step,
    pi_step,
    quadratic_coefficient,
    sample_balance_step,
)
from entrostat.protocol.entropy_settings import (
    AnchoredLaw,
    BandLaw,
    BangBangLaw,
    FixedLaw,
    LawSettings,
    PiLaw,
    QuadraticLaw,
    SampleBalanceLaw,
    ThermostatLaw,
)
from entrostat.protocol.errors import ConfigError

__all__ = [
    "AnchoredState",
    "BandState",
    "BangBangState",
    "FixedState",
    "Intake",
    "LawState",
    "Measurement",
    "PiState",
    "QuadraticState",
    "Reading",
    "SampleBalanceState",
    "ThermostatState",
    "anchor_orders",
    "anchored_step",
    "band_step",
    "bang_bang_step",
    "gives_bonus",
    "initial_state",
    "law_step",
    "pi_step",
    "quadratic_coefficient",
    "read",
    "sample_balance_step",
]


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


class BangBangState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of Skywork-OR1's law."""

    intake: Intake
    coefficient: float  # α, which goes on while the bonus does not act
    acting: bool = False  # whether the last entropy was below the target


class PiState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of the linear law with proportional and integral action."""

    intake: Intake
    coefficient: float
    accumulated: float  # I, in units of α


class QuadraticState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of SIREN's law."""

    intake: Intake
    coefficient: float


class SampleBalanceState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of EntroPIC's law, which gives no bonus."""

    intake: Intake
    coefficient: float = 0.0
    balance: float = 0.0  # −1…1
    accumulated: float = 0.0  # of it


LawState = (
    FixedState
    | BandState
    | AnchoredState
    | ThermostatState
    | BangBangState
    | PiState
    | QuadraticState
    | SampleBalanceState
)


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
    sample_balance: float  # −1…1, of the next order
    usual_entropy: float | None  # mean of the bonus's entropy over all measurements the law accepted, nats
    initial_surprise: float | None  # −log π of the drawn tokens of the orders that made H_0, nats


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
        case BangBangLaw():
            return BangBangState(intake=Intake(), coefficient=law.initial)
        case PiLaw():
            # No bonus while H_0 is measured, whatever the floor; the integral starts inside its box.
            return PiState(intake=Intake(), coefficient=0.0, accumulated=law.floor)
        case QuadraticLaw():
            return QuadraticState(intake=Intake(), coefficient=0.0)
        case SampleBalanceLaw():
            return SampleBalanceState(intake=Intake())


def gives_bonus(law: LawSettings) -> bool:
    """Whether the law ever adds entropy to the objective."""
    return not isinstance(law, SampleBalanceLaw) and not (isinstance(law, FixedLaw) and law.coefficient == 0.0)


def anchor_orders(law: LawSettings) -> int:
    """How many orders make H_0: the first one, but for the flagship."""
    return law.anchor_orders if isinstance(law, ThermostatLaw) else 1


def law_step(law: LawSettings, state: LawState, measurement: Measurement) -> LawState:
    """The state after a measurement; its coefficient is that of the next order.

    Raises:
        ConfigError: the state belongs to another law.
    """
    intake = admit(state.intake, measurement, anchor_orders(law))
    if intake.accepted == state.intake.accepted:
        return replace(state, intake=intake)
    entropy, target = measurement.entropy, _target(law, intake)
    if target is not None and target < RESOLUTION_NATS:
        # A share of nothing is no target: H_0 waits for an order with some entropy.
        return replace(state, intake=replace(state.intake, frozen=state.intake.frozen + 1))
    match law, state:
        case FixedLaw(), FixedState():
            return replace(state, intake=intake)
        case BandLaw(), BandState():
            return replace(state, intake=intake, coefficient=_banded(law, state, intake.accepted, entropy))
        case AnchoredLaw(), AnchoredState() if target is not None:
            moved = anchored_step(state.coefficient, entropy, target=target, rate=law.rate, ceiling=law.ceiling)
            return replace(state, intake=intake, coefficient=moved)
        case ThermostatLaw(), ThermostatState():
            waiting, initial = replace(state, intake=intake), intake.initial_entropy
            return waiting if initial is None else thermostat_step(law, waiting, entropy, initial, measurement.share)
        case BangBangLaw(), BangBangState() if target is not None:
            moved = bang_bang_step(
                state.coefficient, entropy, target=target, delta=law.delta, floor=law.floor, ceiling=law.ceiling
            )
            return replace(state, intake=intake, coefficient=moved, acting=entropy < target)
        case PiLaw(), PiState() if target is not None:
            return _proportional(law, state, intake, entropy, target)
        case QuadraticLaw(), QuadraticState() if target is not None:
            signed = quadratic_coefficient(entropy, target=target, strength=law.strength)
            return replace(state, intake=intake, coefficient=signed)
        case SampleBalanceLaw(), SampleBalanceState() if target is not None:
            return _balanced(law, state, intake, entropy, target)
        case _:
            raise ConfigError(
                f"a {type(state).__name__} came to a {type(law).__name__}: resume with the law the run was started with"
            )


def read(law: LawSettings, state: LawState) -> Reading:
    """What the state says: coefficient, target or band, H_0, and whether the law is held back."""
    idle = isinstance(state, BangBangState) and not state.acting
    return Reading(
        coefficient=0.0 if idle else state.coefficient,
        target=_aimed_at(law, state),
        low=law.low if isinstance(law, BandLaw) else None,
        high=law.high if isinstance(law, BandLaw) else None,
        initial_entropy=state.intake.initial_entropy,
        frozen=state.intake.frozen,
        brake=isinstance(state, ThermostatState) and state.brake,
        ceiling_orders=state.ceiling_orders if isinstance(state, ThermostatState) else 0,
        sample_balance=state.balance if isinstance(state, SampleBalanceState) else 0.0,
        usual_entropy=state.intake.usual_entropy,
        initial_surprise=state.intake.initial_surprise,
    )


def _aimed_at(law: LawSettings, state: LawState) -> float | None:
    """H* of the last measurement in nats; the thermostat's may be falling."""
    initial = state.intake.initial_entropy
    if isinstance(law, ThermostatLaw) and isinstance(state, ThermostatState) and initial is not None:
        return initial * anchor(law, max(state.steps - 1, 0))
    return _target(law, state.intake)


def _target(law: LawSettings, intake: Intake) -> float | None:
    """H* in nats; None for a law without one, or before H_0 is known."""
    if isinstance(law, FixedLaw | BandLaw):
        return None
    if not isinstance(law, AnchoredLaw | ThermostatLaw) and law.target > 0.0:
        return law.target
    if intake.initial_entropy is None:
        return None
    return law.anchor * intake.initial_entropy


def _banded(law: BandLaw, state: BandState, accepted: int, entropy: float) -> float:
    if accepted <= law.warmup_steps:
        return state.coefficient
    return band_step(
        state.coefficient,
        entropy,
        low=law.low,
        high=law.high,
        rate=law.rate,
        floor=law.floor,
        ceiling=law.ceiling,
        initial=law.initial,
        pull=law.pull,
    )


def _proportional(law: PiLaw, state: PiState, intake: Intake, entropy: float, target: float) -> PiState:
    coefficient, accumulated = pi_step(
        state.coefficient,
        entropy,
        accumulated=state.accumulated,
        target=target,
        proportional=law.proportional,
        integral=law.integral,
        floor=law.floor,
        ceiling=law.ceiling,
    )
    return replace(state, intake=intake, coefficient=coefficient, accumulated=accumulated)


def _balanced(
    law: SampleBalanceLaw, state: SampleBalanceState, intake: Intake, entropy: float, target: float
) -> SampleBalanceState:
    balance, accumulated = sample_balance_step(
        state.balance,
        entropy,
        accumulated=state.accumulated,
        target=target,
        proportional=law.proportional,
        integral=law.integral,
    )
    return replace(state, intake=intake, balance=balance, accumulated=accumulated)
