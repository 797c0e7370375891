"""Tokens chosen by entropy, by covariance and by lot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.selection import count_of, covariances, drawn, largest

VALUES = st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=40)
SHARE = st.floats(0.001, 1.0)


@given(VALUES, SHARE)
@settings(max_examples=100)
def test_no_token_left_out_is_larger_than_a_chosen_one(pairs: list[tuple[float, bool]], share: float) -> None:
    values, among = np.array([v for v, _ in pairs]), np.array([a for _, a in pairs])
    chosen = largest(values, among, share)
    assert not np.any(chosen & ~among)
    assert chosen.sum() == count_of(share, int(among.sum()))
    if chosen.any() and (among & ~chosen).any():
        assert values[chosen].min() >= values[among & ~chosen].max()


def test_of_equal_values_at_the_cut_the_first_are_chosen() -> None:
    chosen = largest(np.array([1.0, 2.0, 1.0, 1.0, 0.0]), np.ones(5, bool), 0.4)
    assert chosen.tolist() == [True, True, False, False, False]
    odd = np.arange(1000) % 2 == 1
    many = largest(odd.astype(float), np.ones(1000, bool), 0.6)
    assert np.array_equal(many, odd | (np.arange(1000) < 200))


@pytest.mark.parametrize(
    ("share", "tokens", "count"), [(0.2, 10, 2), (0.1, 30, 3), (0.07, 100, 7), (1e-6, 9, 1), (1.0, 9, 9), (0.5, 0, 0)]
)
def test_a_share_of_tokens_is_rounded_up(share: float, tokens: int, count: int) -> None:
    assert count_of(share, tokens) == count


def test_covariances_are_about_the_means_of_the_tokens_that_count() -> None:
    advantages, logprobs = np.array([1.0, -1.0, 9.0, 3.0]), np.array([-1.0, -2.0, -70.0, -6.0])
    found = covariances(advantages, logprobs, np.array([True, True, False, True]))
    # Means 1 and −3.
    assert found.tolist() == [0.0 * 2.0, -2.0 * 1.0, 0.0, 2.0 * -3.0]
    assert covariances(advantages, logprobs, np.zeros(4, bool)).tolist() == [0.0] * 4


@given(VALUES)
@settings(max_examples=50)
def test_covariances_add_up_to_that_of_the_order(pairs: list[tuple[float, bool]]) -> None:
    values, among = np.array([v for v, _ in pairs]), np.ones(len(pairs), bool)
    logprobs = -np.abs(np.roll(values, 1))
    wanted = np.mean(values * logprobs) - values.mean() * logprobs.mean()
    assert covariances(values, logprobs, among).mean() == pytest.approx(wanted, abs=1e-9)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 50), st.integers(0, 2**48 - 1))
@settings(max_examples=50)
def test_a_lot_falls_on_so_many_candidates_and_on_the_same_again(some: list[bool], count: int, seed: int) -> None:
    candidates = np.array(some, bool)
    chosen = drawn(candidates, count, seed)
    assert not np.any(chosen & ~candidates)
    assert chosen.sum() == min(count, candidates.sum())
    assert np.array_equal(chosen, drawn(candidates, count, seed))


def test_every_candidate_is_drawn_about_equally_often() -> None:
    candidates = np.array([True, False, True, True, True])
    times = np.sum([drawn(candidates, 2, seed) for seed in range(2000)], axis=0)
    assert times[1] == 0
    assert np.all(np.abs(times[candidates] - 1000) < 120)  # over five standard deviations
