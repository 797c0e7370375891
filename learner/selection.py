"""Which of an order's tokens are chosen: by entropy, by covariance, by lot. Arrays are `[N]`, over the whole order."""

import math

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Float64 = NDArray[np.float64]

# share · N is a product of floats: what exceeds a whole number by less than this is that number.
ROUNDING = 1e-9


def count_of(share: float, tokens: int) -> int:
    """`⌈share · tokens⌉`: a share above 0 of some tokens is at least one."""
    return min(tokens, math.ceil(share * tokens - ROUNDING))


def largest(values: Float64, among: Mask, share: float) -> Mask:
    """The `share` of the tokens `among` which has the largest values; of equal ones at the cut the first."""
    places = np.flatnonzero(among)
    order = np.argsort(-values[places], kind="stable")
    chosen = np.zeros_like(among)
    chosen[places[order[: count_of(share, len(places))]]] = True
    return chosen


def covariances(advantages: Float64, logprobs: Float64, among: Mask) -> Float64:
    """`(A − mean A)(log π − mean log π)`, means over the tokens `among`; 0 elsewhere. Source: arXiv 2505.22617."""
    found = np.zeros_like(advantages)
    if among.any():
        of_advantage, of_logprob = advantages[among], logprobs[among]
        found[among] = (of_advantage - of_advantage.mean()) * (of_logprob - of_logprob.mean())
    return found


def drawn(candidates: Mask, count: int, seed: int) -> Mask:
    """`count` of the candidates by lot, or all of them where there are fewer; the same for the same seed."""
    places = np.flatnonzero(candidates)
    chosen = np.zeros_like(candidates)
    chosen[np.random.default_rng(seed).permutation(places)[:count]] = True
    return chosen
