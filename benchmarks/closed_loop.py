"""A control law and a simulated policy in a loop, and what is told of the course they take together."""

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.plant import Plant
from entrostat.controller.coefficient import initial_state, law_step, read
from entrostat.controller.measurement import Measurement
from entrostat.protocol.entropy_settings import LawSettings
from entrostat.protocol.messages import PolicyVersion

TOKENS = 1  # every order has as many
INSIDE = 0.1  # of |ln(H/H*)|: settled
PERCENT = 100.0


class Loop(Protocol):
    """Whatever answers measurements with coefficients."""

    @property
    def coefficient(self) -> float:
        """Of the next order."""
        ...

    @property
    def target(self) -> float | None:
        """H* in nats, once there is one."""
        ...

    def tell(self, order: int, entropy: float) -> None:
        """Takes the entropy measured before an order's step."""
        ...


class LawLoop:
    """A law of the product, with its state."""

    def __init__(self, law: LawSettings, momentum: float) -> None:
        self._law = law
        self._state = initial_state(law, momentum=momentum)

    @property
    def coefficient(self) -> float:
        """Of the next order."""
        return read(self._law, self._state).coefficient

    @property
    def target(self) -> float | None:
        """H* in nats; None for a law without one."""
        return read(self._law, self._state).target

    def tell(self, order: int, entropy: float) -> None:
        """Steps the law."""
        measurement = Measurement(version=PolicyVersion(branch=0, step=order), entropy=entropy, tokens=TOKENS)
        self._state = law_step(self._law, self._state, measurement)


class Course(NamedTuple):
    """What happened, order by order."""

    errors: NDArray[np.float64]  # [orders] ln(H/H*) of the true entropy before each order's step
    coefficients: NDArray[np.float64]  # [orders] of each order's step


def drive(loop: Loop, plant: Plant, *, lag: int, orders: int, seed: int, target: float) -> Course:
    """Runs the loop: what is measured before order j decides the coefficient of order j + lag.

    `target` (nats) is what the errors of a law are counted from that has none of its own. The same seed gives every law
    the same noise.
    """
    drawn = np.random.default_rng(seed).standard_normal((2, orders))
    noise, wander = (drawn * np.asarray([[plant.noise], [plant.wander]])).tolist()
    log_entropy, push = math.log(plant.first), 0.0
    under_way = [loop.coefficient] * lag
    course: list[float] = []
    coefficients: list[float] = []
    for order in range(orders):
        course.append(log_entropy)
        earlier = course[max(order - plant.stale_orders, 0)]
        seen = (1.0 - plant.stale_share) * log_entropy + plant.stale_share * earlier + noise[order]
        loop.tell(order, math.exp(seen))
        under_way.append(loop.coefficient)
        coefficients.append(under_way.pop(0))
        push = plant.momentum * push + (1.0 - plant.momentum) * coefficients[-1]
        log_entropy = plant.next_log(log_entropy, push, order, wander[order])
    aim = target if loop.target is None else loop.target
    return Course(np.asarray(course) - math.log(aim), np.asarray(coefficients))


def settling(errors: NDArray[np.float64]) -> int | None:
    """Orders until |ln(H/H*)| stays below INSIDE to the end; None where it does not."""
    outside = np.flatnonzero(np.abs(errors) >= INSIDE)
    settled = int(outside[-1]) + 1 if outside.size else 0
    return settled if settled < len(errors) else None


def overshoot(errors: NDArray[np.float64]) -> float:
    """How far beyond its target a course goes that begins above it, in percent of ln H."""
    return PERCENT * max(0.0, -float(errors.min()))


def swing(errors: NDArray[np.float64]) -> float:
    """Half the range of a course's end, in percent of ln H: without noise, the amplitude of a limit cycle."""
    return PERCENT * float(errors.max() - errors.min()) / 2.0


def ringing(errors: NDArray[np.float64]) -> float:
    """The autocorrelation's first peak after its first trough: near 1 for a sustained oscillation, near 0 without one.

    Noise alone, through a damped loop, leaves a peak of about 0.2–0.3 in some hundred orders.
    """
    centred = errors - errors.mean()
    if not centred.any():
        return 0.0
    size = len(centred)
    raw = np.correlate(centred, centred, "full")[size - 1 : size + size // 2]
    correlation = raw / raw[0] * size / (size - np.arange(len(raw)))
    below = np.flatnonzero(correlation < 0.0)
    if not below.size:
        return 0.0
    above = np.flatnonzero(correlation[below[0] :] > 0.0)
    return float(correlation[below[0] + above[0] :].max()) if above.size else 0.0
