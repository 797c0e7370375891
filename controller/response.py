"""How a policy's entropy answers the coefficient, as the flagship's law believes it: three numbers and their doubt.

The model, x = ln(H̃/H*) and one order a step: `x ← x + â·(e^G·m/ĉ − A)`. A is the drift, in units of the calibrated
drift â; `e^G·â/ĉ` is the gain; m is the coefficient behind the optimizer's momentum, which is known. What is measured
is x with the noise of a batch. So `ĉ·A·e^−G` holds the entropy still.

An extended Kalman filter keeps the three: a measurement moves each as far as it is in doubt and as x depends on it. A
drift is learnt from orders without a bonus, a gain from changes of the coefficient, and at rest their ratio alone.
"""

import math
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

Row = tuple[float, float, float]

# Standard deviations. What changes in one order, and how far a calibration may be off:
LEVEL_WANDER = 0.02  # of x, beside drift and push
DRIFT_WANDER = 0.08  # of A
GAIN_WANDER = 0.01  # of G
DRIFT_DOUBT = 0.4
GAIN_DOUBT = 0.6
# No single measurement counts for more than this many standard deviations.
OUTLIER = 3.0
DRIFT_RANGE = (-5.0, 20.0)  # of A: below 0 the entropy rises by itself
GAIN_RANGE = (-3.0, 3.0)  # of G


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed before the next step, and the covariance of (x, A, G)."""

    level: float  # x
    drift: float = 1.0  # A
    gain: float = 0.0  # G
    doubt: tuple[Row, Row, Row]

    @property
    def balance(self) -> float:
        """The coefficient that holds the entropy still, in units of the calibrated one: `A·e^−G`."""
        return self.drift * math.exp(-self.gain)


class Calibration(NamedTuple):
    """What one order's step does by calibration, and how well an order is measured."""

    drift: float  # â
    noise: float  # standard deviation of one measured x


def first_response(level: float, calibration: Calibration) -> Response:
    """Belief after the first measured x, `level`: the calibration, as doubtful as calibrations are."""
    doubt = ((calibration.noise**2, 0.0, 0.0), (0.0, DRIFT_DOUBT**2, 0.0), (0.0, 0.0, GAIN_DOUBT**2))
    return Response(level=level, doubt=doubt)


def increment(response: Response, push: float, calibration: Calibration) -> float:
    """What x gains in one order under `push` = m/ĉ: `â·(e^G·m/ĉ − A)`."""
    return calibration.drift * (math.exp(response.gain) * push - response.drift)


def predict(response: Response, push: float, calibration: Calibration) -> Response:
    """The belief one order later: `x ← x + â(e^G·m/ĉ − A)`, `P ← F·P·Fᵀ + Q`, F the model's derivative."""
    slope = (1.0, -calibration.drift, calibration.drift * math.exp(response.gain) * push)
    level, drift, gain = response.doubt
    across = [sum(s * row[column] for s, row in zip(slope, response.doubt, strict=True)) for column in range(3)]
    variance = sum(s * value for s, value in zip(slope, across, strict=True)) + LEVEL_WANDER**2
    level = (variance, across[1], across[2])
    drift = (across[1], drift[1] + DRIFT_WANDER**2, drift[2])
    gain = (across[2], gain[1], gain[2] + GAIN_WANDER**2)
    return replace(response, level=response.level + increment(response, push, calibration), doubt=(level, drift, gain))


def correct(response: Response, level: float, calibration: Calibration) -> Response:
    """The belief after x was measured as `level`: `K = P·e_x / (P_xx + r²)` times the surprise, which is bounded."""
    seen = response.doubt[0]
    variance = seen[0] + calibration.noise**2
    bound = OUTLIER * math.sqrt(variance)
    surprise = min(max(level - response.level, -bound), bound) / variance
    rows = [
        [old - left * right / variance for old, right in zip(row, seen, strict=True)]
        for row, left in zip(response.doubt, seen, strict=True)
    ]
    return Response(
        level=response.level + seen[0] * surprise,
        drift=_within(response.drift + seen[1] * surprise, DRIFT_RANGE),
        gain=_within(response.gain + seen[2] * surprise, GAIN_RANGE),
        doubt=(_row(rows[0]), _row(rows[1]), _row(rows[2])),
    )


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _row(values: list[float]) -> Row:
    return values[0], values[1], values[2]
