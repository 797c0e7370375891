"""Advantages within a group of samples of one prompt; what a truncated response is worth."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["normalised", "centred", "leave_one_out"]
Truncated = Literal["mask", "penalise", "keep"]
Float64 = NDArray[np.float64]

# Below this a group's rewards count as equal: dividing by it would blow rounding up to an advantage.
SMALLEST_DEVIATION = 1e-6


def advantages_of(rewards: Float64, rule: Rule) -> Float64:
    """The advantages of a group's samples by the rule of the settings: `[G] → [G]`."""
    if rule == "leave_one_out":
        return leave_one_out(rewards)
    return group_advantages(rewards, normalise=rule == "normalised")


def group_advantages(rewards: Float64, *, normalise: bool) -> Float64:
    """`A_i = r_i − mean(r)`, divided by the group's standard deviation if `normalise`: `[G] → [G]`.

    Source: GRPO (arXiv 2402.03300); without the division Dr.GRPO (arXiv 2503.20783). The deviation is the population's
    (√(g(1−g)) for rewards 0 and 1). Equal rewards give advantages of exactly 0. Deviation from the paper: no constant
    is added to the deviation.
    """
    deviation = float(rewards.std())
    if deviation < SMALLEST_DEVIATION:
        return np.zeros_like(rewards)
    centred: Float64 = rewards - rewards.mean()
    return centred / deviation if normalise else centred


def leave_one_out(rewards: Float64) -> Float64:
    """`A_i = r_i − mean of the other samples' rewards`: `[G] → [G]`, G times `r_i − mean(r)` over G − 1.

    Source: RLOO (arXiv 2402.14740). The baseline does not depend on the sample itself, so the gradient is unbiased.
    Equal rewards, and a sample without others, give advantages of exactly 0.
    """
    if len(rewards) < 2 or float(rewards.std()) < SMALLEST_DEVIATION:
        return np.zeros_like(rewards)
    others: Float64 = (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards - others


def shaped_rewards(rewards: Float64, truncated: NDArray[np.bool_], rule: Truncated, penalty: float) -> Float64:
    """The rewards the advantages are made of: under "penalise" a truncated response loses `penalty`. `[G] → [G]`.

    Under "mask" and "keep" they stay as they are. A masked response still counts in its group's mean, as in DAPO
    (arXiv 2503.14476): its reward is known, only its tokens teach nothing.
    """
    return rewards - penalty * truncated if rule == "penalise" else rewards


def counting(truncated: NDArray[np.bool_], rule: Truncated) -> NDArray[np.bool_]:
    """Which samples count in the loss: under "mask" not the truncated ones. `[G] bool → [G] bool`."""
    return ~truncated if rule == "mask" else np.ones_like(truncated)
