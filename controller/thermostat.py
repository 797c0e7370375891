"""The flagship's law: proportional and integral action in log space around a calibrated balance coefficient."""

import math

import msgspec
from msgspec.structs import replace

from entrostat.controller.measurement import RESOLUTION_NATS, Intake
from entrostat.protocol.entropy_settings import ThermostatLaw

# The thermostat's constants, see `thermostat_step`.
SMOOTHING = 0.5  # f ← f + ½(x − f)
GAIN_RANGE = (1.0, 12.0)  # of Kp
INTEGRAL_RATIO = 8.0  # Ki = Kp / (8θ)
ENGAGE_BELOW = 0.25  # of f: near enough to the target for the integral to mean something
INTEGRAND_LIMIT = 0.25
BRAKE_ABOVE = math.log(1.5)  # of x, or …
BRAKE_MARGIN = 0.1  # … this far above the initial entropy


class ThermostatState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of the flagship: everything it needs to go on after a restart."""

    intake: Intake
    coefficient: float
    drift: float  # â
    balance: float  # ĉ
    momentum: float  # β1 of the learner's optimizer
    integral: float = 0.0  # I, in units of ln α
    filtered: float | None = None  # f, smoothed ln(H̃/H*); None before the first one
    engaged: bool = False
    steps: int = 0  # measurements controlled, H_0 known
    brake: bool = False
    ceiling_orders: int = 0  # how many in a row the coefficient has stood at its ceiling


def gains(*, drift: float, lag: int, momentum: float) -> tuple[float, float]:
    """The thermostat's Kp and Ki: `θ = d + 1 + ½/(1 − β1)`, `Kp = clip(1/(2âθ), 1, 12)`, `Ki = Kp/(8θ)`."""
    delay = lag + 1.0 + 0.5 / (1.0 - momentum)
    proportional = min(max(1.0 / (2.0 * drift * delay), GAIN_RANGE[0]), GAIN_RANGE[1])
    return proportional, proportional / (INTEGRAL_RATIO * delay)


def thermostat_step(law: ThermostatLaw, state: ThermostatState, entropy: float, initial: float) -> ThermostatState:
    """Proportional and integral action in log space: ln H is nearly an integrator, which integral action alone rocks.

    `x = ln(H̃/H*)` · `f ← f + ½(x − f)` · `α = ĉ·exp(clip(I − Kp·f, box))` · `I ← clip(I − Ki·clip(f, ±0.25), box)`.
    Engaged from the first f < 0.25 on, or after 1/â steps. Brake: α = 0 while engaged and
    `x > max(ln 1.5, ln(H_0/H*) + 0.1)`. I stands still until engaged, and while the coefficient is at that end of its
    range to which I would push it.
    f starts at the first x, so that the law is not engaged by its own filter; the brake counts as the lower end.
    """
    proportional, integral = gains(drift=state.drift, lag=law.lag, momentum=state.momentum)
    lowest, highest = math.log(law.floor_ratio), math.log(law.ceiling_ratio)
    target = law.anchor * initial
    x = math.log(max(entropy, RESOLUTION_NATS) / max(target, RESOLUTION_NATS))
    f = x if state.filtered is None else state.filtered + SMOOTHING * (x - state.filtered)
    engaged = state.engaged or f < ENGAGE_BELOW or state.steps >= 1.0 / state.drift
    brake = engaged and x > max(BRAKE_ABOVE, BRAKE_MARGIN - math.log(law.anchor))
    action = state.integral - proportional * f
    push = -integral * min(max(f, -INTEGRAND_LIMIT), INTEGRAND_LIMIT)
    saturated = (action >= highest and push > 0.0) or ((action <= lowest or brake) and push < 0.0)
    moved = state.integral + push if engaged and not saturated else state.integral
    return replace(
        state,
        coefficient=0.0 if brake else state.balance * math.exp(min(max(action, lowest), highest)),
        integral=min(max(moved, lowest), highest),
        filtered=f,
        engaged=engaged,
        steps=state.steps + 1,
        brake=brake,
        ceiling_orders=state.ceiling_orders + 1 if action >= highest and not brake else 0,
    )
