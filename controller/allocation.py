"""How an order's bonus is shared among its groups: w̄_q, normalised, capped, and kept from doing harm.

    w̄_q = min(cap, w_q·N_H / Σ n_q w_q)          N_H = Σ n_q response tokens of the order

so that the token-weighted mean of w̄ is 1 wherever no bound acts, and below it otherwise. Raw, as AER has it, the weight
is not scaled: w̄_q = min(cap, w_q), and the bonus as a whole fades as prompts get solved. The bounds are the same.

Whose part is what: a weight by the difficulty of each prompt is AER's (arXiv 2510.10959); the normalising and every
bound are ours. All-wrong groups have no opposing gradient: with an `all_wrong_share` of 0 they get no bonus, with 1 all
of theirs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from entrostat.controller.difficulty import Float64
from entrostat.controller.signals import all_wrong, silent
from entrostat.protocol.entropy_settings import WeightSettings
from entrostat.protocol.messages import GroupReport

Mask = NDArray[np.bool_]

NEGLIGIBLE = 1e-12  # a weight below is none: normalising must not blow it up


def allocate(
    weights: Float64,
    reports: Sequence[GroupReport],
    *,
    initial_surprise: float | None,
    settings: WeightSettings,
) -> Float64:
    """w̄_q of an order's groups.

    Bounds, in this order: nothing at all when no group has an advantage signal · all-wrong groups hold at most
    `all_wrong_share` of Σ n_q w̄_q · no group above `cap` · 0 for a group whose −log π exceeds `entropy_ratio` times
    what it was while H_0 was measured: like with like, whatever entropy drives the law. The last is applied after
    normalising: where entropy is high already, its share is given up and not handed to the others.

    Args:
        weights: `[groups]` w_q, not negative.
        reports: `[groups]` what the actors said of them.
        initial_surprise: mean −log π of the orders that made H_0, nats; None before it is known: no group counts as too
            random.
        settings: the bounds, and whether the weights are normalised.

    Returns:
        `[groups]` float64; token-weighted mean ≤ 1 when normalised, each ≤ w_q when raw.
    """
    tokens = np.array([sum(report.lengths) for report in reports], dtype=np.float64)
    if all(silent(report) for report in reports):
        return np.zeros_like(weights)
    wrong = np.array([all_wrong(report) for report in reports], dtype=np.bool_)
    share = settings.all_wrong_share
    limited = _limit_share(np.where(weights < NEGLIGIBLE, 0.0, weights), tokens, wrong, share)
    total = float(np.sum(tokens * limited))
    if total <= 0.0:
        return np.zeros_like(weights)
    scale = float(tokens.sum()) / total if settings.normalise else 1.0
    bounded = np.minimum(settings.cap, limited * scale)
    if initial_surprise is not None:
        entropy = np.array([report.surprise.mean for report in reports], dtype=np.float64)
        bounded = np.where(entropy > settings.entropy_ratio * initial_surprise, 0.0, bounded)
    # The cap and the zeros may have taken from the others and so raised the share.
    return _limit_share(bounded, tokens, wrong, share)


def _limit_share(weights: Float64, tokens: Float64, chosen: Mask, share: float) -> Float64:
    """Scales the chosen weights down until they hold at most `share` of the token-weighted sum."""
    mass = tokens * weights
    inside, outside = float(mass[chosen].sum()), float(mass[~chosen].sum())
    if inside <= share * (inside + outside):
        return weights
    scale = share * outside / ((1.0 - share) * inside)
    return np.where(chosen, weights * scale, weights)
