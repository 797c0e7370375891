"""From the rows of two short runs to what entropy control needs to know of a policy: â, ĉ, H_0, and how sure they are.

Two runs from the same start: one without control, which shows how fast the entropy falls by itself and how policy term
and bonus push it, and one at the coefficient that should balance them, which shows whether it does.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from entrostat.controller.measurement import RESOLUTION_NATS
from entrostat.controller.thermometer import Estimator
from entrostat.protocol.errors import BadInput, NumericsError
from entrostat.rows import MetricsRow

Float64 = NDArray[np.float64]

CONFIDENCE = 0.95
FEWEST = 10  # batches, for any estimate
SETTLING_STEPS = 5  # of one or two gradients, v̂ is so small in places that these would hold most of every sum
DRIFT_FLOOR = 0.005  # per step: a law told of less would push harder than any policy bears
NOISE_FLOOR = 0.01  # of ln H: no batch of a policy that samples is surer
SECOND_DIFFERENCE = 1 + 4 + 1  # variance of a second difference of independent noise, in units of its own
MOST_CORRECTION = 4.0  # of ĉ, as a factor, by one confirmation
ENOUGH = 0.5  # of the drift may be left, or turned round, at a ĉ that is confirmed
EXPLOSION = 2.0  # times H_0


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A number and its 95 % interval, made as if the noise of different steps were independent."""

    value: float
    low: float
    high: float

    @property
    def distinct(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0.0 or self.high < 0.0


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """How the entropy moves without control."""

    slope: Estimate  # of ln H, per step
    proposed: (
        float  # â: −slope; where H does not fall distinguishably, the steepest fall its interval holds, or the floor
    )

    @property
    def falls(self) -> bool:
        """Whether â was measured."""
        return self.slope.high < 0.0


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """The coefficient at which the bonus moves the entropy as far up as the policy term moves it down."""

    ratio: Estimate
    batches: int
    proposed: float  # ĉ: the ratio, or its upper end where the policy term does not push H down by itself


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """What holding the coefficient at ĉ did, against the same steps without control."""

    coefficient: float
    slope: Estimate  # of ln H at it, per step
    uncontrolled: Estimate  # the same without
    removed: float | None  # share of the drift that is gone; None where there was none to remove
    highest: float  # H at most, as a multiple of H_0
    factor: float  # by which ĉ is to be corrected; 1 where it is confirmed, or where nothing can be said

    @property
    def exploded(self) -> bool:
        """Whether the entropy left every reasonable range."""
        return self.highest > EXPLOSION


def entropies(rows: Sequence[MetricsRow], driving: Estimator) -> Float64:
    """`[steps]` the entropy that drives the law, nats per token: as the law of a run is told it, of the current policy.

    Raises:
        NumericsError: one is not finite.
    """
    field = {"full": "entropy_nats", "sampled": "sampled_entropy_nats"}.get(driving, "clamped_entropy_nats")
    found = np.array([getattr(row, field) for row in rows], np.float64)
    if not np.isfinite(found).all():
        step = rows[int(np.argmin(np.isfinite(found)))].step
        raise NumericsError(f"the entropy of step {step} is not finite: nothing can be calibrated by this run")
    return found


def initial_entropy(values: Float64, tokens: Sequence[int], orders: int) -> float:
    """H_0: the token mean of the first `orders` entropies `[steps]`, nats.

    Raises:
        BadInput: the policy has none.
    """
    found = float(np.average(values[:orders], weights=np.asarray(tokens[:orders], np.float64)))
    if found <= RESOLUTION_NATS:
        raise BadInput(
            f"the policy starts with an entropy of {found:g} nats: there is nothing to hold; start from another "
            "policy, or sample at a higher rollout.temperature"
        )
    return found


def slope(values: Float64) -> Estimate:
    """Theil and Sen's slope of `ln H` over the steps: the median of all `(ln H_j − ln H_i)/(j − i)`, i < j.

    The interval is Sen's, by Kendall's statistic. Entropies below the law's resolution count as that.

    Sen, *Estimates of the regression coefficient based on Kendall's tau* (JASA 63, 1968).

    Args:
        values: `[steps]` nats, at least ten.
    """
    _enough(len(values), "steps")
    logs = np.log(np.maximum(values, RESOLUTION_NATS))
    found: Any = stats.theilslopes(logs, np.arange(len(logs)), alpha=CONFIDENCE)
    return Estimate(value=float(found.slope), low=float(found.low_slope), high=float(found.high_slope))


def drift(values: Float64) -> Drift:
    """â of an uncontrolled run's entropies `[steps]`."""
    found = slope(values)
    return Drift(slope=found, proposed=-found.value if found.high < 0.0 else max(-found.low, DRIFT_FLOOR))


def noise(values: Float64) -> float:
    """σ of one order's ln H about the policy's, from second differences: `σ² = mean (y_{t−1} − 2y_t + y_{t+1})² / 6`.

    A drift that is constant does not count; batches of another mix of levels do, which the controller's thermometer
    takes out, so that the law's own noise may be lower.

    Args:
        values: `[steps]` nats, at least ten.
    """
    _enough(len(values), "steps")
    second = np.diff(np.log(np.maximum(values, RESOLUTION_NATS)), n=2)
    return max(float(np.sqrt(np.mean(np.square(second)) / SECOND_DIFFERENCE)), NOISE_FLOOR)


def balance(policy_pushes: Float64, bonus_pushes: Float64) -> Balance:
    """`ĉ = −Σ⟨P g_P, g_H⟩ / Σ⟨P g_H, g_H⟩` over batches: where policy term and ĉ times the bonus cancel.

    Both gradients are of what is maximised, so a policy term that lowers the entropy has a negative push and ĉ is
    positive. The interval is the jackknife's over batches. A ratio that is not positive has no balance: then ĉ is the
    upper end of its interval, or, if that is no better, half its width: what this run can't tell from nothing.

    Args:
        policy_pushes: `[batches]` ⟨P g_P, g_H⟩, at least ten.
        bonus_pushes: `[batches]` ⟨P g_H, g_H⟩.

    Raises:
        BadInput: no batch had a bonus to measure, or too few had.
        NumericsError: a push is not finite.
    """
    count = len(policy_pushes)
    _enough(count, "batches with a balance")
    if not (np.isfinite(policy_pushes).all() and np.isfinite(bonus_pushes).all()):
        raise NumericsError("a measured push of policy term or bonus is not finite: nothing can be calibrated by it")
    bonuses = int(np.count_nonzero(bonus_pushes > 0.0))
    if bonuses < FEWEST:
        raise BadInput(
            f"only {bonuses} of {count} batches had any bonus, expected at least {FEWEST}: all groups of the others "
            "were all right or all wrong, or too random; take prompts that are solved sometimes, or more --steps"
        )
    total = -policy_pushes.sum() / bonus_pushes.sum()
    without = -(policy_pushes.sum() - policy_pushes) / (bonus_pushes.sum() - bonus_pushes)
    error = math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2.0, count - 1)) * error
    ratio = Estimate(value=float(total), low=float(total) - reach, high=float(total) + reach)
    proposed = ratio.value if ratio.value > 0.0 else ratio.high if ratio.high > 0.0 else reach
    if not proposed > 0.0:
        raise BadInput(
            f"the policy term moves the entropy by {-ratio.value:g} times the bonus in every batch alike: no "
            "coefficient balances it; look at the run's prompts and learner.loss"
        )
    return Balance(ratio=ratio, batches=count, proposed=proposed)


def pushes(rows: Sequence[MetricsRow]) -> tuple[Float64, Float64]:
    """`[batches]` pushes of policy term and of bonus, of the steps that measured them once Adam's metric is settled."""
    found = [
        (row.policy_push, row.bonus_push)
        for row in rows
        if row.step > SETTLING_STEPS and row.policy_push is not None and row.bonus_push is not None
    ]
    both = np.array(found, np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def confirmation(uncontrolled: Float64, controlled: Float64, *, initial: float, coefficient: float) -> Confirmation:
    """How far a constant `coefficient` held the entropy, and what a secant step makes of it.

    With slopes s_0 and s_c of ln H, the share of the drift removed is `1 − s_c/s_0`. The secant through both, in c,
    meets 0 at `c/share`: `ln c ← ln c − ln share`, by at most a factor of 4. The step is taken where s_c is
    distinguishable from 0 and more than half of the drift is left or turned round, and where H exceeds 2·H_0.

    Args:
        uncontrolled: `[steps]` entropies of the run at 0, nats; the same steps are compared.
        controlled: `[steps]` entropies at `coefficient`.
        initial: H_0, nats.
        coefficient: that was held.
    """
    count = min(len(uncontrolled), len(controlled))
    without, held = slope(uncontrolled[:count]), slope(controlled[:count])
    highest = float(controlled.max()) / initial
    removed = 1.0 - held.value / without.value if without.high < 0.0 else None
    factor = 1.0
    if highest > EXPLOSION:
        factor = 1.0 / (removed if removed is not None and removed > 1.0 else MOST_CORRECTION)
    elif removed is not None and held.distinct and abs(1.0 - removed) > ENOUGH:
        factor = 1.0 / removed if removed > 0.0 else MOST_CORRECTION
    return Confirmation(
        coefficient=coefficient,
        slope=held,
        uncontrolled=without,
        removed=removed,
        highest=highest,
        factor=min(max(factor, 1.0 / MOST_CORRECTION), MOST_CORRECTION),
    )


def _enough(count: int, what: str) -> None:
    if count < FEWEST:
        raise BadInput(f"a calibration needs at least {FEWEST} {what}, and there are {count}: raise --steps")
