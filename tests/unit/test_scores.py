"""Scores of an evaluation against their definitions, and their intervals against simulation."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaln

from entrostat import scores
from entrostat.protocol.messages import NO_ANSWERS, NO_VOTE
from entrostat.protocol.moments import Moments
from entrostat.scores import Float64, bounded, gain, majority_at, mean, pass_at, per_token, rewards, score, tries
from tests.made_rows import evaluation_result

MANY = (30, 100, 400)  # prompts
SPREADS = ((0.1, 0.9), (0.5, 0.5), (1.0, 1.0), (5.0, 5.0), (0.4, 1.6), (3.0, 0.75))  # pass rates ~ Beta


# ── slow, and like the definitions ───────────────────────────────────────────────────────────────────────────────────


def solved(k: int, votes: list[int]) -> Fraction:
    """The share of all subsets of k samples with a correct one."""
    subsets = list(itertools.combinations(votes, k))
    return Fraction(sum(0 in subset for subset in subsets), len(subsets))


def agreed(k: int, votes: list[int]) -> Fraction:
    """The mean over all subsets of k samples of the chance that the most common answer is the correct one."""
    total, count = Fraction(0), 0
    for subset in itertools.combinations(votes, k):
        count += 1
        found = Counter(vote for vote in subset if vote >= 0)
        if found[0] and found[0] == max(found.values()):
            total += Fraction(1, sum(number == found[0] for number in found.values()))
    return total / count


ANSWERS = st.lists(st.integers(NO_VOTE, 3), min_size=1, max_size=9)


@given(votes=ANSWERS)
@settings(max_examples=60)
def test_pass_at_k_is_the_share_of_subsets_that_solve_the_prompt(votes: list[int]) -> None:
    for k in range(1, len(votes) + 1):
        found = pass_at(k, np.array([votes.count(0)]), len(votes))
        assert found[0] == pytest.approx(float(solved(k, votes)), abs=1e-14)


@given(votes=ANSWERS)
@settings(max_examples=60)
def test_maj_at_k_is_the_mean_over_subsets(votes: list[int]) -> None:
    k = range(1, len(votes) + 1)
    for tried, found in zip(k, majority_at(k, np.array([votes])), strict=True):
        assert found[0] == pytest.approx(float(agreed(tried, votes)), abs=1e-14)


@given(correct=st.lists(st.integers(0, 64), min_size=1, max_size=20))
def test_more_tries_never_solve_less_and_all_of_them_solve_what_any_does(correct: list[int]) -> None:
    counts = np.array(correct)
    by_k = [pass_at(k, counts, 64) for k in range(1, 65)]
    assert all((later >= earlier - 1e-12).all() for earlier, later in itertools.pairwise(by_k))
    assert (by_k[-1] == (counts > 0)).all()
    assert by_k[0] == pytest.approx(counts / 64)


@given(votes=st.lists(st.integers(NO_VOTE, 40), min_size=64, max_size=64))
def test_one_vote_is_one_try_and_all_votes_elect_the_most_common(votes: list[int]) -> None:
    first, whole = majority_at([1, 64], np.array([votes]))
    assert first[0] == pytest.approx(votes.count(0) / 64)
    most = Counter(vote for vote in votes if vote >= 0).most_common()
    best = [answer for answer, count in most if count == most[0][1]]
    assert whole[0] == pytest.approx(1 / len(best) if 0 in best else 0.0)


def test_a_majority_of_many_samples_is_drawn_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = np.array([[0] * 30 + [1] * 25 + [2] * 10 + [3] * 10 + [NO_VOTE] * 25])
    exact = majority_at([8, 32, 100], votes)
    scores._majorities.cache_clear()
    monkeypatch.setattr(scores, "EXACT_SAMPLES", 50)
    drawn = majority_at([8, 32, 100], votes)
    scores._majorities.cache_clear()
    assert np.array(drawn) == pytest.approx(np.array(exact), abs=0.03)
    assert not np.array_equal(drawn[:2], exact[:2])
    assert exact[2] == drawn[2] == 1.0


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def coverage(prompts: int, samples: int, k: int, a: float, b: float, rounds: int = 400) -> tuple[float, float]:
    """How often the interval of pass@k holds its true mean, and that mean; prompts' pass rates are Beta(a, b)."""
    random = np.random.default_rng([prompts, samples, k, round(100 * a), round(100 * b)])
    correct = random.binomial(samples, random.beta(a, b, (rounds, prompts)))
    truth = 1.0 - math.exp(betaln(a, b + k) - betaln(a, b))
    table = pass_at(k, np.arange(samples + 1), samples)
    held = 0
    for values in table[correct]:
        found = bounded(values)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    return held / rounds, truth


def test_a_majority_of_hundreds_of_samples_is_exact() -> None:
    votes = np.arange(255, -1, -1)[None] // 2 * 2  # two of each answer: all are alike
    assert majority_at([2, 16], votes) == [pytest.approx([1 / 128], abs=1e-12)] * 2


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    cells = [
        coverage(prompts, samples, k, a, b)
        for prompts in MANY
        for samples, k in ((1, 1), (4, 2), (16, 1), (16, 8))
        for a, b in SPREADS
        if prompts * min(truth := 1.0 - math.exp(betaln(a, b + k) - betaln(a, b)), 1.0 - truth) >= 5.0
    ]
    found = np.array([held for held, _ in cells])
    noise = 3.0 * math.sqrt(0.95 * 0.05 / 400)  # of one cell
    assert len(found) > 50
    assert found.min() >= 0.93 - noise
    assert found.max() <= 0.99 + noise
    assert 0.945 <= found.mean() <= 0.97


@pytest.mark.parametrize(("a", "b"), [(0.05, 0.95), (0.2, 3.8), (3.8, 0.2), (10.0, 0.5), (20.0, 380.0)])
@pytest.mark.parametrize("prompts", [5, 10, 30])
def test_near_0_and_1_and_with_few_prompts_intervals_are_wide_rather_than_wrong(
    prompts: int, a: float, b: float
) -> None:
    for samples in (1, 16):
        held, truth = coverage(prompts, samples, 1, a, b)
        assert held >= 0.9, truth


@pytest.mark.parametrize(("samples", "k", "a"), [(64, 32, 0.5), (64, 32, 1.0), (16, 8, 1.0)])
def test_few_prompts_that_differ_little_from_the_others_are_no_certainty(samples: int, k: int, a: float) -> None:
    held, _ = coverage(10, samples, k, a, a)  # most prompts are solved by k tries, and the others nearly
    assert held >= 0.92


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("prompts", [1, 10, 1000])
def test_equal_results_everywhere_are_no_certainty(level: float, prompts: int) -> None:
    found = bounded(np.full(prompts, level))
    assert found.low is not None
    assert found.high is not None
    assert found.mean == level
    assert found.high - found.low > 3.0 / (prompts + 4)  # the rule of three, nearly
    assert 0.0 <= found.low <= level <= found.high <= 1.0


@given(values=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_an_interval_holds_its_mean_and_mirrors_with_it(values: list[float]) -> None:
    found, mirrored = bounded(np.array(values)), bounded(1.0 - np.array(values))
    assert found.low is not None
    assert found.high is not None
    assert mirrored.low is not None
    assert 0.0 <= found.low <= found.mean <= found.high <= 1.0
    assert found.high == pytest.approx(1.0 - mirrored.low, abs=1e-9)


def test_results_that_differ_by_rounding_alone_are_equal() -> None:
    found = bounded(np.array([1.0] * 50 + [np.nextafter(1.0, 0.0)]))
    assert found.low == pytest.approx(bounded(np.ones(51)).low)


def test_rewards_beyond_1_keep_their_scale() -> None:
    found = rewards(np.array([0.0, 1.0, 2.0, 3.0]))
    assert found.low is not None
    assert found.high is not None
    assert found.mean == 1.5
    assert 0.0 <= found.low < 1.5 < found.high <= 3.0
    assert rewards(np.array([0.0, 0.5, 1.0])) == bounded(np.array([0.0, 0.5, 1.0]))


def simulated(measure: "object", draw: "object", truth: float) -> float:
    """How often the interval of what is drawn holds the truth."""
    random, held = np.random.default_rng(3), 0
    for _ in range(400):
        found = measure(draw(random))  # type: ignore[operator]
        held += found.low <= truth <= found.high
    return held / 400


def test_intervals_of_means_and_of_ratios_hold_the_truth() -> None:
    def lengths(random: np.random.Generator) -> Float64:
        return random.gamma(4.0, 25.0, 40)

    def surprise(random: np.random.Generator) -> list[Moments]:
        counts = random.integers(50, 400, 60)
        # Longer responses are surer, so a prompt's mean and its weight belong together.
        means = 0.5 - 0.001 * counts + random.normal(0.0, 0.1, 60)
        return [Moments(count=int(n), mean=float(one)) for n, one in zip(counts, means, strict=True)]

    assert 0.92 <= simulated(mean, lengths, 100.0) <= 0.98
    n = np.arange(50, 400)
    assert 0.92 <= simulated(per_token, surprise, float((n * (0.5 - 0.001 * n)).sum() / n.sum())) <= 0.98


def test_a_single_prompt_tells_no_interval_of_its_length() -> None:
    found = mean(np.array([7.0]))
    assert (found.mean, found.low, found.high) == (7.0, None, None)
    assert per_token([Moments(count=3, mean=0.5)]).low is None


@pytest.mark.parametrize("rise", [0.0, 0.1])
def test_a_gain_is_found_by_prompt_as_often_as_it_says(rise: float) -> None:
    def pair(random: np.random.Generator) -> tuple[Float64, Float64]:
        rates = 0.9 * random.beta(0.7, 0.7, 100)
        return random.binomial(8, rates) / 8, random.binomial(8, rates + rise) / 8

    held = simulated(lambda pair: gain(*pair), pair, rise)
    assert 0.92 <= held <= 0.985


def test_pairing_makes_a_small_gain_certain_that_the_scores_alone_leave_open() -> None:
    rates = np.tile([0.0, 0.25, 0.5, 0.75], 25)
    found = gain(rates, rates + 0.05)
    first, second = bounded(rates), bounded(rates + 0.05)
    assert found.low is not None
    assert first.high is not None
    assert second.low is not None
    assert found.low > 0.0
    assert second.low < first.high


def test_few_prompts_have_students_interval() -> None:
    values = np.array([3.0, 5.0, 4.0, 9.0])
    expected = stats.t.interval(0.95, df=3, loc=values.mean(), scale=stats.sem(values))
    found = mean(values)
    assert (found.low, found.high) == pytest.approx(expected)
    # As many tokens of each prompt: the ratio of sums is the mean of the prompts' ratios.
    ratio = per_token([Moments(count=20, mean=value) for value in values.tolist()])
    assert (ratio.low, ratio.high) == pytest.approx(expected)


def test_the_interval_of_shares_is_wilsons_with_students_quantile() -> None:
    # All prompts at 1: nothing varies between them, and each counts as one.
    t = float(stats.t.ppf(0.975, df=4))
    assert bounded(np.ones(5)).low == pytest.approx(1.0 / (1.0 + t * t / 5))


# ── all of it together ───────────────────────────────────────────────────────────────────────────────────────────────


def test_scores_are_of_the_chosen_prompts_alone() -> None:
    found = score(evaluation_result([2, 0, 4], 4, answer=1), np.array([True, True, False]), (1, 4))
    assert (found.prompts, found.samples) == (2, 4)
    assert found.pass_at[1].mean == 0.25
    assert found.pass_at[4].mean == 0.5
    assert found.majority_at[4].mean == 0.25  # two against two are shared
    assert found.reward.mean == 0.25
    assert found.tokens.mean == 20.0
    assert found.entropy_nats.mean == pytest.approx(0.2)
    assert found.statuses == {"correct": 2, "wrong": 6, "unparsable": 0, "timeout": 0, "error": 0}


def test_a_verifier_that_names_no_answers_gets_no_majority() -> None:
    result = evaluation_result([2, 0], 4, answer=NO_ANSWERS)
    assert score(result, np.array([True, True]), (1, 4)).majority_at == {}


def test_tries_are_powers_of_two_unless_they_are_chosen() -> None:
    assert tries(1) == (1,)
    assert tries(8) == (1, 2, 4, 8)
    assert tries(10) == (1, 2, 4, 8)
    assert tries(64, (16, 1, 16)) == (1, 16)
