"""The difficulty of prompts: weights, their expectations, and the decayed estimate behind them."""

import math
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import simpson

from entrostat.controller.difficulty import (
    CountsSnapshot,
    DecayedCounts,
    DifficultySnapshot,
    DifficultyTable,
    Form,
    difficulty_weight,
    expected_weight,
    group_weights,
)
from entrostat.protocol import wire
from entrostat.protocol.entropy_settings import WeightSettings
from entrostat.protocol.errors import CheckpointDamaged, ConfigError
from entrostat.protocol.messages import Lease
from tests.made_messages import group_of, version

FORMS: tuple[Form, ...] = ("uniform", "hinge", "indicator", "linear")
POSITIVE = st.floats(0.3, 60.0)


def weight_by_definition(rate: float, form: Form, threshold: float) -> float:
    if form == "hinge":
        return (threshold - rate) / threshold if rate < threshold else 0.0
    if form == "indicator":
        return 1.0 if rate <= threshold else 0.0
    return 1.0 - rate if form == "linear" else 1.0


def expectation_by_integration(a: float, b: float, form: Form, threshold: float) -> float:
    """∫ w(g)·g^(a−1)·(1−g)^(b−1) dg / B(a, b) by Simpson's rule over t = ln(g/(1−g)), cut at w's kink or jump."""
    log_norm = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    kink = math.log(threshold / (1.0 - threshold)) if threshold < 1.0 else 100.0
    total = 0.0
    for start, end, inner in ((-100.0, kink, -1e-12), (kink, 100.0, 1e-12)):
        t = np.linspace(start, end, 20_001)
        rates = 1.0 / (1.0 + np.exp(-t))
        weights = [weight_by_definition(rate + inner, form, threshold) for rate in rates.tolist()]
        log_density = -a * np.log1p(np.exp(-t)) - b * np.log1p(np.exp(t)) - log_norm
        total += float(simpson(np.array(weights) * np.exp(log_density), x=t))
    return total


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_their_definition(form: Form) -> None:
    rates = np.linspace(0.0, 1.0, 41)
    for threshold in (0.1, 0.5, 1.0):
        expected = [weight_by_definition(float(rate), form, threshold) for rate in rates]
        assert difficulty_weight(rates, form=form, threshold=threshold) == pytest.approx(expected, abs=1e-15)


@given(POSITIVE, POSITIVE, st.floats(0.05, 1.0), st.sampled_from(FORMS))
@settings(max_examples=60)
def test_expected_weights_agree_with_numeric_integration(a: float, b: float, threshold: float, form: Form) -> None:
    fast = expected_weight(np.array([a]), np.array([b]), form=form, threshold=threshold)[0]
    assert fast == pytest.approx(expectation_by_integration(a, b, form, threshold), abs=1e-8)


def test_a_flat_estimate_has_the_known_expectations() -> None:
    one = np.ones(1)
    assert expected_weight(one, one, form="hinge", threshold=0.5)[0] == pytest.approx(0.25, abs=1e-15)
    assert expected_weight(one, one, form="indicator", threshold=0.3)[0] == pytest.approx(0.3, abs=1e-15)
    assert expected_weight(one, one, form="linear", threshold=0.5)[0] == pytest.approx(0.5, abs=1e-15)
    assert expected_weight(one, one, form="uniform", threshold=0.5)[0] == 1.0


@given(st.floats(0.02, 0.98), st.sampled_from(FORMS))
@settings(max_examples=40)
def test_a_certain_estimate_has_the_weight_of_its_rate(rate: float, form: Form) -> None:
    if form == "indicator" and abs(rate - 0.5) < 0.01:
        return
    certain = expected_weight(np.array([rate * 1e7]), np.array([(1 - rate) * 1e7]), form=form, threshold=0.5)
    assert certain[0] == pytest.approx(weight_by_definition(rate, form, 0.5), abs=1e-3)


@given(POSITIVE, POSITIVE, st.sampled_from(FORMS))
@settings(max_examples=60)
def test_a_success_never_raises_the_expected_weight(a: float, b: float, form: Form) -> None:
    before, after = expected_weight(np.array([a, a + 1.0]), np.array([b, b]), form=form, threshold=0.5)
    assert 0.0 <= after <= before + 1e-12 <= 1.0 + 1e-12


def test_evidence_halves_in_a_half_life_of_versions() -> None:
    counts = DecayedCounts(1, half_life=50.0)
    counts.observe(0, 10, 6.0, 2.0)
    successes, failures = counts.at(np.array([0]), 60)
    assert (successes[0], failures[0]) == pytest.approx((3.0, 1.0))


OBSERVATIONS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 200), st.integers(0, 16), st.integers(0, 16)), max_size=30
)


@given(OBSERVATIONS, st.permutations(range(30)))
@settings(max_examples=50)
def test_the_streaming_estimate_is_the_decayed_sum_in_whatever_order_reports_come(
    observations: list[tuple[int, int, int, int]], order: list[int]
) -> None:
    observations = [observations[at] for at in order if at < len(observations)]
    table = DifficultyTable(["easy", "hard", "easy", "hard"], WeightSettings())
    for prompt, step, successes, failures in observations:
        table.observe(prompt, step, successes, failures)
    now = 200

    def decayed(prompts: set[int]) -> tuple[float, float]:
        chosen = [(2.0 ** (-(now - at) / 50.0), s, f) for prompt, at, s, f in observations if prompt in prompts]
        return sum(w * s for w, s, _ in chosen), sum(w * f for w, _, f in chosen)

    a, b = table.beta(np.arange(4), now)
    for prompt in range(4):
        own_s, own_f = decayed({prompt})
        level_s, level_f = decayed({prompt % 2, prompt % 2 + 2})
        rate = (level_s + 0.5) / (level_s + level_f + 1.0)
        assert a[prompt] == pytest.approx(4.0 * rate + own_s, rel=1e-4)
        assert b[prompt] == pytest.approx(4.0 * (1.0 - rate) + own_f, rel=1e-4)


def test_an_unseen_prompt_is_as_hard_as_its_level() -> None:
    table = DifficultyTable(["easy"] * 50 + ["hard"] * 50, WeightSettings())
    for prompt in range(40):
        table.observe(prompt, 1, 15, 1)
        table.observe(50 + prompt, 1, 1, 15)
    easy, hard = table.weights([49, 99], 1)
    assert easy < 0.35
    assert hard > 0.7


def test_the_weight_has_its_minimum() -> None:
    table = DifficultyTable(["easy"], WeightSettings(minimum=0.25))
    for step in range(50):
        table.observe(0, step, 16, 0)
    assert table.weights([0], 50)[0] == pytest.approx(0.25, abs=1e-3)


def test_the_histogram_counts_visited_prompts_only() -> None:
    table = DifficultyTable(["a"] * 20, WeightSettings(prior=1e-3))
    table.observe(3, 0, 16, 0)
    table.observe(4, 0, 0, 16)
    table.observe(5, 0, 8, 8)
    bins = table.histogram(0)
    assert (bins[0], bins[9], sum(bins)) == (1, 1, 3)
    assert bins[4] + bins[5] == 1


def test_a_prompt_costs_at_most_32_bytes() -> None:
    table = DifficultyTable(["a"] * 100_000, WeightSettings())
    columns = [value for value in vars(table).values() if isinstance(value, np.ndarray)]
    columns += [value for value in vars(vars(table)["_prompts"]).values() if isinstance(value, np.ndarray)]
    assert sum(column.nbytes for column in columns) <= 32 * 100_000


def test_a_snapshot_survives_the_wire_and_is_no_view() -> None:
    table = DifficultyTable(["a", "b", "a"], WeightSettings())
    table.observe(0, 3, 5, 3)
    frame = wire.encode(table.snapshot())
    taken = table.snapshot()
    table.observe(0, 4, 8, 0)
    again = DifficultyTable(["a", "b", "a"], WeightSettings())
    again.restore(wire.decode(frame, DifficultySnapshot))
    assert taken.prompts.successes[0] == 5.0
    again.observe(0, 4, 8, 0)
    assert np.array_equal(again.weights(np.arange(3), 9), table.weights(np.arange(3), 9))


def test_a_snapshot_of_other_prompts_is_refused() -> None:
    snapshot = DifficultyTable(["a", "b"], WeightSettings()).snapshot()
    with pytest.raises(CheckpointDamaged, match="levels"):
        DifficultyTable(["a", "c"], WeightSettings()).restore(snapshot)
    with pytest.raises(CheckpointDamaged, match="2, 2, 2"):
        DifficultyTable(["a", "b", "b"], WeightSettings()).restore(snapshot)
    assert isinstance(snapshot.prompts, CountsSnapshot)


@pytest.mark.parametrize("form", FORMS)
def test_a_groups_own_difficulty_is_the_raw_weight_of_its_pass_rate(form: Form) -> None:
    lease = Lease(id=1, prompt_id=0, samples=4, version=version(0), seed=0, deadline_seconds=1.0)
    # What belongs to the streaming estimate changes nothing.
    settings = WeightSettings(difficulty="group", form=form, threshold=0.6, minimum=0.9, prior=50.0)
    got = group_weights([group_of(lease, correct=correct) for correct in range(5)], settings)
    assert got == pytest.approx([weight_by_definition(rate, form, 0.6) for rate in (0.0, 0.25, 0.5, 0.75, 1.0)])


@pytest.mark.parametrize(
    ("rate", "form", "threshold"),
    [(1.7, "hinge", 0.5), (-0.1, "linear", 0.5), (math.nan, "hinge", 0.5), (0.5, "hinge", 0.0), (0.5, "hinge", 2.0)],
)
def test_a_weight_outside_its_ranges_is_refused(rate: float, form: Form, threshold: float) -> None:
    with pytest.raises(ConfigError, match="pass rates in"):
        difficulty_weight([0.2, rate], form=form, threshold=threshold)


def test_a_form_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'typo' is unknown"):
        difficulty_weight(0.5, form=cast("Form", "typo"), threshold=0.5)
