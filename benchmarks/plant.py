"""A simulated policy: how its entropy answers the coefficient, fitted to recorded runs (`plant_fit.py`).

One order a step, h = ln H, ρ = H/H_0, m the coefficient behind the optimizer's momentum β1:

    m ← β1·m + (1 − β1)·α
    h ← h − d·ρ^p + l + k·m·ρ^q·(1 − H/H_max) + w,   d = (late + early·e^(−j/τ)) · (1 + swing·sin(2πj/period))

The drift d is what learning does to the entropy: it slows as the policy learns (early, τ) and as there is less entropy
to lose (p). The lift l, which no recorded run has, begins at an order and grows evenly: where it exceeds d·ρ^p the
entropy rises by itself, up to where they are level. The push of the bonus grows with the entropy it acts on (q) and
ends where the policy is uniform (H_max). Measured is `(1 − s)·h_j + s·h_(j−a) + v`: v is the batch's noise, and s how
far states that a policy a versions older went through shift the entropy.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 112  # tokens of the starter policy
LOWEST = -12.0  # ln nats: a policy without entropy; logarithms end there


class Plant(NamedTuple):
    """The simulated policy; the defaults are those fitted to the quickstart's runs."""

    first: float = 0.22  # H_0, nats
    late: float = 0.0366  # per order, at H_0
    early: float = 0.0525  # per order, at H_0
    fade: float = 12.0  # τ, orders
    drift_power: float = 1.30  # p
    gain: float = 0.508  # k, per order and unit of the coefficient, at H_0
    gain_power: float = 0.927  # q
    highest: float = math.log(VOCABULARY)  # H_max, nats
    momentum: float = 0.9  # β1
    noise: float = 0.13  # v, standard deviation
    wander: float = 0.011  # w, standard deviation per order
    stale_share: float = 0.1  # s
    stale_orders: int = 2  # a
    swing: float = 0.0
    period: float = 200.0  # orders
    lift: float = 0.0  # l, per order, once it has come …
    lift_after: float = 150.0  # … which begins at this order …
    lift_orders: float = 100.0  # … and takes so many

    def drift(self, entropy: float, order: float = math.inf) -> float:
        """How fast ln H falls by itself, per order; without an order, the drift without early, swing or lift."""
        rate, lift = self.late, 0.0
        if math.isfinite(order):
            rate += self.early * math.exp(-order / self.fade)
            rate *= 1.0 + self.swing * math.sin(2.0 * math.pi * order / self.period)
            lift = self.lift * min(max((order - self.lift_after) / self.lift_orders, 0.0), 1.0)
        return rate * math.pow(entropy / self.first, self.drift_power) - lift

    def effect(self, entropy: float) -> float:
        """How fast ln H rises per unit of the coefficient, per order."""
        return self.gain * math.pow(entropy / self.first, self.gain_power) * (1.0 - entropy / self.highest)

    def balance(self, entropy: float) -> float:
        """The coefficient that holds this entropy still."""
        return self.drift(entropy) / self.effect(entropy)

    def next_log(self, log_entropy: float, push: float, order: int, shock: float = 0.0) -> float:
        """The ln H after a step whose coefficient, behind the momentum, is `push`."""
        entropy = math.exp(log_entropy)
        moved = log_entropy - self.drift(entropy, order) + self.effect(entropy) * push + shock
        return min(max(moved, LOWEST), math.log(self.highest))

    @property
    def still(self) -> "Plant":
        """The same policy, measured and moved without noise, on its own states."""
        return self._replace(noise=0.0, wander=0.0, stale_share=0.0)

    @property
    def constant(self) -> "Plant":
        """The same policy with the late drift alone."""
        return self._replace(early=0.0)


def answer(plant: Plant, coefficients: NDArray[np.float64] | list[float], first: float) -> NDArray[np.float64]:
    """The ln H before each order of a run with these coefficients, without noise: what the fit compares."""
    log_entropy, push = math.log(first), 0.0
    course = np.empty(len(coefficients))
    for order, coefficient in enumerate(coefficients):
        course[order] = log_entropy
        push = plant.momentum * push + (1.0 - plant.momentum) * coefficient
        log_entropy = plant.next_log(log_entropy, push, order)
    return course
