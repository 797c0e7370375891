"""Scores of an evaluation, each with a 95 % interval over prompts. Pure, in float64.

A prompt's samples are not independent: prompts are drawn from the task, and samples from each prompt. So every score
is one number per prompt first, and its interval says where the mean over all prompts of such a task lies.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import comb, sqrt

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from entrostat.protocol.messages import FINISHED_LENGTH, NO_ANSWERS, STATUSES, EvaluationResult
from entrostat.protocol.moments import Moments

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

CONFIDENCE = 0.95
EXACT_SAMPLES = 512  # of a prompt: a majority of so many is computed exactly, of more by draws
DRAWS = 4096  # standard error of a prompt's maj@k at most 0.008, and of the mean over prompts far less
PRIOR_PROMPTS = 0.5  # see `bounded`


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over prompts and its 95 % interval; none where a single prompt can't tell one."""

    mean: float
    low: float | None
    high: float | None


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """How a set of prompts fared. Keys of `pass_at` and `majority_at` are k."""

    prompts: int
    samples: int  # of each prompt
    pass_at: dict[int, Estimate]
    majority_at: dict[int, Estimate]  # empty where a prompt's verifier names no answers that could be voted for
    reward: Estimate
    tokens: Estimate  # of a response
    entropy_nats: Estimate  # mean −log π of what was sampled, per token
    truncated: float  # share of the samples
    statuses: dict[str, int]  # samples


def tries(samples: int, chosen: Sequence[int] = ()) -> tuple[int, ...]:
    """The k of pass@k and maj@k: the chosen ones, or the powers of two up to `samples`."""
    return tuple(sorted(set(chosen))) or tuple(1 << power for power in range(samples.bit_length()))


def score(result: EvaluationResult, chosen: Bool, k: Sequence[int]) -> Scores:
    """Scores of the chosen prompts, at least one, of an evaluation; each k is at most `result.samples`."""
    statuses, votes = result.statuses[chosen], result.votes[chosen]
    correct = correct_counts(result)[chosen]
    voting = not (votes == NO_ANSWERS).any()
    counts = np.bincount(statuses.reshape(-1), minlength=len(STATUSES))
    surprise = [one for one, wanted in zip(result.surprise, chosen, strict=True) if wanted]
    return Scores(
        prompts=len(correct),
        samples=result.samples,
        pass_at={tried: bounded(pass_at(tried, correct, result.samples)) for tried in k},
        majority_at=dict(zip(k, map(bounded, majority_at(k, votes)), strict=True)) if voting else {},
        reward=rewards(result.rewards[chosen].mean(axis=1, dtype=np.float64)),
        tokens=mean(result.lengths[chosen].mean(axis=1, dtype=np.float64)),
        entropy_nats=per_token(surprise),
        truncated=float((result.finish[chosen] == FINISHED_LENGTH).mean()),
        statuses={name: int(count) for name, count in zip(STATUSES, counts, strict=True)},
    )


def correct_counts(result: EvaluationResult) -> Int64:
    """`[prompts]` samples of each that were correct."""
    counts: Int64 = (result.statuses == STATUSES.index("correct")).sum(axis=1)
    return counts


# ── one number per prompt ────────────────────────────────────────────────────────────────────────────────────────────


def pass_at(k: int, correct: Int64, samples: int) -> Float64:
    """`[prompts]` unbiased estimates 1 − C(n−c, k)/C(n, k) of solving each prompt in k tries.

    Chen et al., *Evaluating large language models trained on code* (arXiv 2107.03374), section 2.1.

    Args:
        k: tries, at most `samples`.
        correct: `[prompts]`, c of each.
        samples: n of each.
    """
    failures = samples - np.asarray(correct)[:, None]
    factors = 1 - k / np.arange(1, samples + 1)
    kept = np.arange(1, samples + 1)[None, :] > failures
    return np.asarray(1 - np.where(failures[:, 0] < k, 0.0, np.prod(np.where(kept, factors, 1.0), axis=1)))


def majority_at(k: Sequence[int], votes: NDArray[np.integer]) -> list[Float64]:
    """For each k, `[prompts]`: how probable it is that the answer most common among k samples is the correct one.

    The k samples are drawn from the n without replacement, like pass@k's; the estimate is unbiased. Of answers that
    are equally common one is taken at random; samples without an answer have no vote. maj@1 is pass@1. As a way to
    answer: Wang et al., *Self-consistency improves chain of thought reasoning* (arXiv 2203.11171).

    Args:
        k: tries, each at most n.
        votes: `[prompts, n]`; 0 is the correct answer, 1 and above the wrong ones, below 0 none.
    """
    rows = [_majorities(tuple(k), *_tally(row)) for row in np.asarray(votes)]
    return list(np.array(rows, np.float64).reshape(len(rows), len(k)).T)


def _tally(votes: NDArray[np.integer]) -> tuple[int, tuple[int, ...], int]:
    """Samples that are correct, that share each wrong answer, and that have no vote."""
    wrong = np.bincount(votes[votes > 0])
    return int((votes == 0).sum()), tuple(sorted(int(count) for count in wrong if count)), int((votes < 0).sum())


@lru_cache(maxsize=1 << 16)  # many prompts fare alike
def _majorities(k: tuple[int, ...], correct: int, wrong: tuple[int, ...], mute: int) -> tuple[float, ...]:
    n = correct + sum(wrong) + mute
    if n > EXACT_SAMPLES:
        return tuple(_whole(correct, wrong) if one == n else _drawn(one, correct, wrong, mute) for one in k)
    drawn = [one for one in k if one < n]
    found = dict(zip(drawn, _exact(drawn, correct, wrong, mute), strict=True)) | {n: _whole(correct, wrong)}
    return tuple(found[one] for one in k)


def _whole(correct: int, wrong: tuple[int, ...]) -> float:
    """Of all n samples."""
    most = max(wrong, default=0)
    return 0.0 if correct < max(most, 1) else 1.0 / (1 + wrong.count(correct))


def _exact(k: Sequence[int], correct: int, wrong: tuple[int, ...], mute: int) -> list[float]:
    """Counts the ways to draw: with x correct ones no wrong answer may come more often, and s of them as often.

    `ways[s, j]` is the number of ways to draw j of the samples looked at so far, s of their answers x times. All terms
    are positive, so nothing cancels.
    """
    found = np.zeros(len(k))
    n, most = correct + sum(wrong) + mute, max(k, default=0)
    for x in range(1, min(correct, most) + 1):
        rivals = [count for count in wrong if count >= x]
        rest = mute + sum(wrong) - sum(rivals)
        room = most - x
        ways = np.zeros((min(len(rivals), room // x) + 1, room + 1))
        ways[0] = [float(comb(rest, j)) for j in range(room + 1)]
        for count in rivals:
            before, ways = ways, ways.copy()
            for j in range(1, min(x - 1, room) + 1):
                ways[:, j:] += comb(count, j) * before[:, : room + 1 - j]
            if x <= room:
                ways[1:, x:] += comb(count, x) * before[:-1, : room + 1 - x]
        shared = (ways / np.arange(1, len(ways) + 1)[:, None]).sum(axis=0)
        for place, one in enumerate(k):
            if x <= one:
                found[place] += comb(correct, x) * shared[one - x] / comb(n, one)
    return [float(value) for value in found]


def _drawn(k: int, correct: int, wrong: tuple[int, ...], mute: int) -> float:
    counts = np.random.default_rng(k).multivariate_hypergeometric([correct, *wrong, mute], k, size=DRAWS)
    own, others = counts[:, 0], counts[:, 1:-1]
    best = (own > 0) & (own >= others.max(axis=1, initial=0))
    return float(np.where(best, 1.0 / (1 + (others == own[:, None]).sum(axis=1)), 0.0).mean())


# ── their mean, and its interval ─────────────────────────────────────────────────────────────────────────────────────


def bounded(values: Float64) -> Estimate:
    """The mean of one number from 0 to 1 for each prompt, with an interval that is honest near 0 and 1 too.

    Wilson's score interval (1927) with the effective sample size m·min(b/v, 1 + m·b) and Student's t for m − 1 degrees
    of freedom (Dean, Pagano: *Evaluating confidence interval methods for binomial proportions in clustered surveys*,
    2015), where m prompts have the mean p, b = p(1 − p), and v = ((m − 1)·S² + b/2)/(m − 1/2).
    S² is the variance between prompts, drawn by the weight of half a prompt towards b, the largest variance a number
    from 0 to 1 with this mean can have. The second bound says: where less than about one prompt's worth of results
    differs from the others, no sample is worth more than its prompt. With all prompts at 0 or 1, m is the sample size.
    docs/decisions.md has the coverage that was simulated.
    """
    values = np.clip(values, 0.0, 1.0)
    m, p = len(values), float(values.mean())
    largest = p * (1.0 - p)
    squares = min(float(((values - p) ** 2).sum()), m * largest)  # as it is, but for rounding
    variance = (squares + PRIOR_PROMPTS * largest) / (m - 1 + PRIOR_PROMPTS)
    size = m * min(largest / variance, 1.0 + m * largest) if variance > 0.0 else float(m)
    t = _t(m)
    middle = (p + t * t / (2.0 * size)) / (1.0 + t * t / size)
    half = t / (1.0 + t * t / size) * sqrt(largest / size + t * t / (4.0 * size * size))
    return Estimate(mean=p, low=max(0.0, min(p, middle - half)), high=min(1.0, max(p, middle + half)))


def rewards(values: Float64) -> Estimate:
    """The mean of `[prompts]` mean rewards: as `bounded`, between 0 and 1 or what lies beyond."""
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    found = bounded((values - low) / (high - low))
    assert found.low is not None
    assert found.high is not None
    return Estimate(mean=float(values.mean()), low=low + (high - low) * found.low, high=low + (high - low) * found.high)


def mean(values: Float64) -> Estimate:
    """The mean of one number for each prompt, p ± t·S/√m."""
    return _around(float(values.mean()), float(np.std(values)) / sqrt(max(len(values) - 1, 1)), len(values))


def per_token(surprise: Sequence[Moments]) -> Estimate:
    """Mean −log π over all tokens of the prompts, Σsᵢ/Σtᵢ: a ratio of two sums over prompts.

    Standard error √(m/(m − 1)·Σ(sᵢ − H·tᵢ)²)/Σtᵢ (Cochran, *Sampling techniques*, 3rd ed., section 2.11).
    """
    tokens = np.array([one.count for one in surprise], np.float64)
    sums = np.array([one.mean * one.count for one in surprise], np.float64)
    total, m = float(tokens.sum()), len(tokens)
    if not total:
        return Estimate(mean=0.0, low=None, high=None)
    ratio = float(sums.sum()) / total
    error = sqrt(m / max(m - 1, 1) * float(((sums - ratio * tokens) ** 2).sum())) / total
    return _around(ratio, error, m)


def gain(before: Float64, after: Float64) -> Estimate:
    """How much the mean of `bounded` numbers rose, for the same prompts in the same order.

    Newcombe, *Improved confidence intervals for the difference between binomial proportions based on paired data*
    (1998), method 10: the two intervals are joined by the correlation φ of the prompts' numbers; 0 where one side does
    not vary.
    """
    first, second = bounded(before), bounded(after)
    assert first.low is not None and first.high is not None  # noqa: PT018 - for the type checker
    assert second.low is not None and second.high is not None  # noqa: PT018
    varies = len(before) > 1 and float(np.std(before)) > 0.0 and float(np.std(after)) > 0.0
    phi = float(np.corrcoef(before, after)[0, 1]) if varies else 0.0
    rise = second.mean - first.mean
    down, up = second.mean - second.low, first.high - first.mean
    low = rise - sqrt(max(0.0, down**2 - 2.0 * phi * down * up + up**2))
    down, up = first.mean - first.low, second.high - second.mean
    high = rise + sqrt(max(0.0, down**2 - 2.0 * phi * down * up + up**2))
    return Estimate(mean=rise, low=low, high=high)


def _around(centre: float, error: float, prompts: int) -> Estimate:
    if prompts < 2:
        return Estimate(mean=centre, low=None, high=None)
    half = _t(prompts) * error
    return Estimate(mean=centre, low=centre - half, high=centre + half)


@lru_cache
def _t(prompts: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2.0, max(prompts - 1, 1)))
