"""Group advantages and the treatment of truncated responses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.advantages import advantages_of, counting, group_advantages, leave_one_out, shaped_rewards

REWARDS = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=12)


def test_normalised_advantages_of_a_group_solved_at_rate_g() -> None:
    advantages = group_advantages(np.array([1.0, 0.0, 0.0, 0.0]), normalise=True)
    deviation = np.sqrt(0.25 * 0.75)
    assert advantages.tolist() == pytest.approx([0.75 / deviation, *[-0.25 / deviation] * 3])


def test_unnormalised_advantages_are_the_distance_from_the_mean() -> None:
    assert group_advantages(np.array([1.0, 0.0, 0.0, 0.0]), normalise=False).tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_equal_rewards_give_no_advantage(normalise: bool, reward: float) -> None:
    assert group_advantages(np.full(7, reward), normalise=normalise).tolist() == [0.0] * 7


@given(REWARDS, st.booleans())
@settings(max_examples=50)
def test_advantages_sum_to_zero_and_keep_the_order_of_rewards(rewards: list[float], normalise: bool) -> None:
    values = np.array(rewards)
    advantages = group_advantages(values, normalise=normalise)
    assert advantages.sum() == pytest.approx(0.0, abs=1e-9)
    if normalise and values.std() > 0:
        assert advantages.std() == pytest.approx(1.0)
    assert np.all(np.diff(advantages[np.argsort(values)]) >= 0)


def test_a_truncated_response_is_masked_penalised_or_kept() -> None:
    rewards, truncated = np.array([1.0, 0.0, 1.0]), np.array([False, True, True])
    assert shaped_rewards(rewards, truncated, "penalise", 0.5).tolist() == [1.0, -0.5, 0.5]
    assert shaped_rewards(rewards, truncated, "mask", 0.5).tolist() == rewards.tolist()
    assert shaped_rewards(rewards, truncated, "keep", 0.5).tolist() == rewards.tolist()
    assert counting(truncated, "mask").tolist() == [True, False, False]
    assert counting(truncated, "penalise").tolist() == [True] * 3
    assert counting(truncated, "keep").tolist() == [True] * 3


def test_leaving_a_sample_out_of_its_baseline_is_what_the_definition_says() -> None:
    rewards = np.array([1.0, 0.0, 0.5, 0.0])
    wanted = [reward - np.delete(rewards, i).mean() for i, reward in enumerate(rewards)]
    assert leave_one_out(rewards).tolist() == pytest.approx(wanted)
    assert advantages_of(rewards, "leave_one_out").tolist() == leave_one_out(rewards).tolist()


@given(REWARDS)
@settings(max_examples=50)
def test_left_out_baselines_stretch_the_distance_from_the_mean(rewards: list[float]) -> None:
    values = np.array(rewards)
    advantages = leave_one_out(values)
    assert advantages.sum() == pytest.approx(0.0, abs=1e-9)
    stretched = group_advantages(values, normalise=False) * len(values) / (len(values) - 1)
    assert advantages.tolist() == pytest.approx(stretched.tolist(), abs=1e-9)


@pytest.mark.parametrize("rewards", [[0.1] * 7, [1.0]])
def test_without_a_difference_nothing_is_left_out(rewards: list[float]) -> None:
    assert leave_one_out(np.array(rewards)).tolist() == [0.0] * len(rewards)


def test_the_rule_of_the_settings_chooses_the_advantages() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 0.0])
    assert advantages_of(rewards, "normalised").tolist() == group_advantages(rewards, normalise=True).tolist()
    assert advantages_of(rewards, "centred").tolist() == group_advantages(rewards, normalise=False).tolist()
