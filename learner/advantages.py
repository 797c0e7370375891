"""Advantages within a group of samples of one prompt (GRPO, arXiv 2402.03300); what a truncated response is worth."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Truncated = Literal["mask", "penalise", "keep"]
Float64 = NDArray[np.float64]

# Below this a group's rewards count as equal: dividing by it would blow rounding up to an advantage.
SMALLEST_DEVIATION = 1e-6


def group_advantages(rewards: Float64, *, normalise: bool) -> Float64:
    """`A_i = r_i − mean(r)`, divided by the group's standard deviation if `normalise`: `[G] → [G]`.

    The deviation is the population's (√(g(1−g)) for rewards 0 and 1). Equal rewards give advantages of exactly 0.
    Deviation from the paper: no constant is added to the deviation.
    """
    deviation = float(rewards.std())
    if deviation < SMALLEST_DEVIATION:
        return np.zeros_like(rewards)
    centred: Float64 = rewards - rewards.mean()
    return centred / deviation if normalise else centred


def shaped_rewards(rewards: Float64, truncated: NDArray[np.bool_], rule: Truncated, penalty: float) -> Float64:
    """The rewards the advantages are made of: under "penalise" a truncated response loses `penalty`. `[G] → [G]`.

    Under "mask" and "keep" they stay as they are. A masked response still counts in its group's mean, as in DAPO
    (arXiv 2503.14476): its reward is known, only its tokens teach nothing.
    """
    return rewards - penalty * truncated if rule == "penalise" else rewards


def counting(truncated: NDArray[np.bool_], rule: Truncated) -> NDArray[np.bool_]:
    """Which samples count in the loss: under "mask" not the truncated ones. `[G] bool → [G] bool`."""
    return ~truncated if rule == "mask" else np.ones_like(truncated)
