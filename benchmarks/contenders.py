"""The laws that the step response compares, each with the settings it is given for the simulated policy.

Rates that a paper names in nats and coefficients of its own policy mean nothing to another one. So each published law
gets three rates, in units of the policy's balance coefficient ĉ and its target H*, and is judged by its best one, lag
by lag. The thermostat gets one setting, the calibration.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.closed_loop import LawLoop, Loop
from benchmarks.plant import Plant
from entrostat.protocol.entropy_settings import (
    AnchoredLaw,
    BandLaw,
    BangBangLaw,
    FixedLaw,
    PiLaw,
    QuadraticLaw,
    ThermostatLaw,
)

ANCHOR = 0.6  # H* = ANCHOR · H_0, as in the quickstart
RATES = (0.05, 0.2, 0.8)  # Skywork-OR1's δ is 1/50 of its box: 0.2 ĉ for a box of 10 ĉ; AEnt's β is 0.2 ĉ/H*
PI_GAINS = ((1.0, 0.01), (3.0, 0.04), (6.0, 0.1))  # Kp and Ki in units of ĉ/H*
BOX = 10.0  # largest coefficient, in units of ĉ
BAND = (0.8, 1.2)  # of H*; AEnt's band for MATH is 0.195 nats ± 23 %
BAND_BOX = (0.3, 4.5)  # of ĉ, as AEnt's box


class Setting(NamedTuple):
    """What a law is told of the policy it controls: the truth, or not."""

    plant: Plant
    lag: int
    drift_factor: float = 1.0  # of the true â
    balance_factor: float = 1.0  # of the true ĉ

    @property
    def target(self) -> float:
        """H* in nats, if H_0 were measured without noise."""
        return ANCHOR * self.plant.first

    @property
    def drift(self) -> float:
        """The â a law is told: the drift at the target."""
        return self.drift_factor * self.plant.drift(self.target)

    @property
    def balance(self) -> float:
        """The ĉ a law is told."""
        return self.balance_factor * self.plant.balance(self.target)


Maker = Callable[[Setting], Loop]


class LogProportionalIntegral:
    """Proportional and integral action on the measured ln(H̃/H*), which knows of delays only by smaller gains.

    θ = lag + 1 + ½/(1 − β1), Kp = clip(1/(2âθ), 1, 12), Ki = Kp/(8θ); f ← f + ½(x − f), α = ĉ·exp(clip(I − Kp·f, box)),
    I ← I − Ki·clip(f, ±0.25) once engaged and not at the end of the box to which it pushes; a brake.
    What a controller of this plant looks like without foresight: the yardstick of the thermostat's.
    """

    SMOOTHING = 0.5
    GAINS = (1.0, 12.0)
    INTEGRAL_RATIO = 8.0
    NEAR = 0.25
    BOX = (math.log(0.01), math.log(BOX))
    BRAKE_MARGIN = 0.1

    def __init__(self, setting: Setting, anchor_orders: int = 3) -> None:
        self.coefficient = 0.0
        self.target: float | None = None
        self._setting = setting
        self._first: list[float] = []
        self._anchor_orders = anchor_orders
        delay = setting.lag + 1.0 + 0.5 / (1.0 - setting.plant.momentum)
        self._proportional = min(max(1.0 / (2.0 * setting.drift * delay), self.GAINS[0]), self.GAINS[1])
        self._integral = self._proportional / (self.INTEGRAL_RATIO * delay)
        self._filtered: float | None = None
        self._accumulated = 0.0
        self._engaged = False
        self._steps = 0

    def tell(self, order: int, entropy: float) -> None:
        """Takes H_0 first, then steps."""
        if order < self._anchor_orders:
            self._first.append(entropy)
            if order + 1 < self._anchor_orders:
                return
            self.target = ANCHOR * sum(self._first) / len(self._first)
        assert self.target is not None
        self._step(math.log(entropy / self.target))

    def _step(self, x: float) -> None:
        low, high = self.BOX
        f = x if self._filtered is None else self._filtered + self.SMOOTHING * (x - self._filtered)
        self._engaged = self._engaged or f < self.NEAR or self._steps >= 1.0 / self._setting.drift
        brake = self._engaged and x > max(math.log(1.5), self.BRAKE_MARGIN - math.log(ANCHOR))
        action = self._accumulated - self._proportional * f
        push = -self._integral * min(max(f, -self.NEAR), self.NEAR)
        stuck = (action >= high and push > 0.0) or ((action <= low or brake) and push < 0.0)
        if self._engaged and not stuck:
            self._accumulated = min(max(self._accumulated + push, low), high)
        self.coefficient = 0.0 if brake else self._setting.balance * math.exp(min(max(action, low), high))
        self._filtered = f
        self._steps += 1


def thermostat(setting: Setting, told_lag: int | None = None) -> Loop:
    """The flagship; `told_lag` where it is told another lag than there is."""
    lag = setting.lag if told_lag is None else told_lag
    law = ThermostatLaw(anchor=ANCHOR, balance=setting.balance, drift=setting.drift, lag=lag)
    return LawLoop(law, setting.plant.momentum)


def uncooled(setting: Setting) -> Loop:
    """The flagship that never presses entropy down."""
    law = ThermostatLaw(anchor=ANCHOR, balance=setting.balance, drift=setting.drift, lag=setting.lag, cooling_ratio=0.0)
    return LawLoop(law, setting.plant.momentum)


def none(setting: Setting) -> Loop:
    return LawLoop(FixedLaw(coefficient=0.0), setting.plant.momentum)


def fixed(setting: Setting) -> Loop:
    return LawLoop(FixedLaw(coefficient=setting.balance), setting.plant.momentum)


def bang_bang(rate: float) -> Maker:
    def make(setting: Setting) -> Loop:
        law = BangBangLaw(anchor=ANCHOR, delta=rate * setting.balance, ceiling=BOX * setting.balance)
        return LawLoop(law, setting.plant.momentum)

    return make


def band(rate: float) -> Maker:
    def make(setting: Setting) -> Loop:
        law = BandLaw(
            initial=setting.balance,
            floor=BAND_BOX[0] * setting.balance,
            ceiling=BAND_BOX[1] * setting.balance,
            low=BAND[0] * setting.target,
            high=BAND[1] * setting.target,
            rate=rate * setting.balance / setting.target,
        )
        return LawLoop(law, setting.plant.momentum)

    return make


def anchored(rate: float) -> Maker:
    def make(setting: Setting) -> Loop:
        law = AnchoredLaw(anchor=ANCHOR, rate=rate * setting.balance / setting.target, ceiling=BOX * setting.balance)
        return LawLoop(law, setting.plant.momentum)

    return make


def linear(gains: tuple[float, float]) -> Maker:
    def make(setting: Setting) -> Loop:
        unit = setting.balance / setting.target
        law = PiLaw(
            anchor=ANCHOR, proportional=gains[0] * unit, integral=gains[1] * unit, ceiling=BOX * setting.balance
        )
        return LawLoop(law, setting.plant.momentum)

    return make


def quadratic(gain: float) -> Maker:
    def make(setting: Setting) -> Loop:
        law = QuadraticLaw(anchor=ANCHOR, strength=gain * setting.balance / setting.target / 2.0)
        return LawLoop(law, setting.plant.momentum)

    return make


# Law → the variants of which the best is shown.
CONTENDERS: dict[str, dict[str, Maker]] = {
    "fixed": {"ĉ": fixed},
    "bang_bang": {f"δ = {rate:g} ĉ": bang_bang(rate) for rate in RATES},
    "band": {f"β = {rate:g} ĉ/H*": band(rate) for rate in RATES},
    "anchored": {f"η = {rate:g} ĉ/H*": anchored(rate) for rate in RATES},
    "pi": {f"Kp, Ki = {p:g}, {i:g} ĉ/H*": linear((p, i)) for p, i in PI_GAINS},
    "log-space PI": {"calibrated": LogProportionalIntegral},
    "thermostat": {"calibrated": thermostat},
}

# The same where the entropy comes to rise by itself; of the published ones SIREN's alone may press it down.
RISING: dict[str, dict[str, Maker]] = {
    "no control": {"0": none},
    **{law: CONTENDERS[law] for law in ("bang_bang", "anchored", "pi")},
    "quadratic": {f"2c = {gain:g} ĉ/H*": quadratic(gain) for gain, _ in PI_GAINS},
    "thermostat without cooling": {"calibrated": uncooled},
    "thermostat": CONTENDERS["thermostat"],
}
