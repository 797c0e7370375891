"""What two short runs show of a policy, against definitions and curves made to order."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrostat import calibration
from entrostat.calibration import DRIFT_FLOOR, FEWEST, SETTLING_STEPS, Float64
from entrostat.protocol.errors import BadInput, NumericsError
from tests.made_rows import metrics_row
from tests.made_runs import BALANCE, DRIFT, curve


def made_pushes(coefficient: float, *, noise: float = 0.0, batches: int = 20, seed: int = 0) -> tuple[Float64, Float64]:
    """Pushes of batches that a bonus of `coefficient` balances, the bonus's falling as Adam's metric does."""
    random = np.random.default_rng(seed)
    bonus = 1000.0 * np.exp(-0.05 * np.arange(batches)) * (1.0 + 0.1 * random.standard_normal(batches))
    return -coefficient * bonus * (1.0 + noise * random.standard_normal(batches)), bonus


def slope_by_definition(values: Sequence[float]) -> float:
    logs = [math.log(value) for value in values]
    every = sorted((logs[j] - logs[i]) / (j - i) for i, j in itertools.combinations(range(len(logs)), 2))
    middle = len(every) // 2
    return every[middle] if len(every) % 2 else 0.5 * (every[middle - 1] + every[middle])


def jackknife_by_definition(policy: Sequence[float], bonus: Sequence[float]) -> float:
    count = len(policy)
    ratios = []
    for left_out in range(count):
        rest = [i for i in range(count) if i != left_out]
        ratios.append(-sum(policy[i] for i in rest) / sum(bonus[i] for i in rest))
    mean = sum(ratios) / count
    return math.sqrt((count - 1) / count * sum((ratio - mean) ** 2 for ratio in ratios))


# ── the slope ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.floats(1e-3, 5.0), min_size=FEWEST, max_size=25))
def test_the_slope_is_the_median_over_all_pairs(values: list[float]) -> None:
    assert calibration.slope(np.array(values)).value == pytest.approx(slope_by_definition(values), abs=1e-12)


def test_the_slope_of_a_straight_line_is_its_own() -> None:
    found = calibration.slope(curve(-DRIFT))
    assert (found.value, found.low, found.high) == pytest.approx((-DRIFT, -DRIFT, -DRIFT))


def test_the_slopes_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(300):
        found = calibration.slope(curve(-DRIFT, noise=0.1, seed=seed))
        held += found.low <= -DRIFT <= found.high
    assert 0.92 <= held / 300 <= 0.98


def test_one_wild_batch_does_not_move_the_slope_out_of_its_interval() -> None:
    values = curve(-DRIFT, noise=0.05)
    before = calibration.slope(values)
    values[-1] *= 20.0
    after = calibration.slope(values)
    assert before.low < after.value < before.high


@given(st.floats(0.01, 100.0))
def test_the_unit_of_entropy_does_not_change_the_slope(scale: float) -> None:
    values = curve(-DRIFT, noise=0.1)
    assert calibration.slope(scale * values).value == pytest.approx(calibration.slope(values).value, abs=1e-12)


def test_a_policy_that_lost_all_entropy_has_a_finite_slope() -> None:
    values = curve(-DRIFT)
    values[20:] = 0.0
    found = calibration.slope(values)
    assert math.isfinite(found.value)
    assert found.value < -DRIFT


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 10 steps, and there are 9"):
        calibration.slope(curve(-DRIFT, steps=9))


def test_a_falling_curve_gives_its_drift() -> None:
    found = calibration.drift(curve(-DRIFT, noise=0.05))
    assert found.falls
    assert found.proposed == pytest.approx(DRIFT, rel=0.15)


def test_a_curve_that_does_not_fall_gives_what_its_interval_allows_or_the_floor() -> None:
    rises = calibration.drift(curve(0.02, noise=0.05))
    assert not rises.falls
    assert rises.proposed == DRIFT_FLOOR
    unclear = calibration.drift(curve(0.0, noise=0.4))
    assert not unclear.falls
    assert unclear.proposed == -unclear.slope.low > DRIFT_FLOOR


@pytest.mark.parametrize("slope", [-DRIFT, 0.0, 0.05])
def test_the_noise_of_an_order_is_found_under_any_constant_drift(slope: float) -> None:
    found = [calibration.noise(curve(slope, noise=0.13, seed=seed)) for seed in range(100)]
    assert float(np.sqrt(np.mean(np.square(found)))) == pytest.approx(0.13, rel=0.05)


def test_the_noise_is_that_of_second_differences_and_has_a_floor() -> None:
    values = curve(-DRIFT, noise=0.1)
    logs = [math.log(value) for value in values]
    second = [logs[t - 1] - 2.0 * logs[t] + logs[t + 1] for t in range(1, len(logs) - 1)]
    assert calibration.noise(values) == pytest.approx(math.sqrt(sum(d * d for d in second) / len(second) / 6.0))
    assert calibration.noise(curve(-DRIFT)) == calibration.NOISE_FLOOR


# ── the balance ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_balance_of_a_known_ratio_is_that_ratio() -> None:
    found = calibration.balance(*made_pushes(BALANCE))
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((BALANCE, BALANCE, BALANCE))
    assert found.proposed == pytest.approx(BALANCE)
    assert found.batches == 20


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3))
def test_scaling_the_pushes_scales_the_balance(policy_scale: float, bonus_scale: float) -> None:
    policy, bonus = made_pushes(BALANCE, noise=0.5)
    one, other = calibration.balance(policy, bonus), calibration.balance(policy_scale * policy, bonus_scale * bonus)
    scale = policy_scale / bonus_scale
    for name in ("value", "low", "high"):
        assert getattr(other.ratio, name) == pytest.approx(scale * getattr(one.ratio, name), rel=1e-9)


def test_at_the_balance_the_summed_pushes_cancel() -> None:
    policy, bonus = made_pushes(BALANCE, noise=0.5)
    found = calibration.balance(policy, bonus)
    assert float((policy + found.proposed * bonus).sum()) == pytest.approx(0.0, abs=1e-9)


def test_the_interval_is_the_jackknifes() -> None:
    policy, bonus = made_pushes(BALANCE, noise=0.5)
    found = calibration.balance(policy, bonus).ratio
    student = 2.093024054408263  # t of 97.5 % with 19 degrees of freedom
    reach = student * jackknife_by_definition(list(policy), list(bonus))
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))


def test_the_balances_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(300):
        found = calibration.balance(*made_pushes(BALANCE, noise=0.5, seed=seed)).ratio
        held += found.low <= BALANCE <= found.high
    assert 0.89 <= held / 300 <= 0.99


def test_a_policy_term_that_raises_the_entropy_has_no_balance_but_a_small_positive_proposal() -> None:
    found = calibration.balance(*made_pushes(-BALANCE, noise=0.5))
    assert found.ratio.value < 0.0
    assert 0.0 < found.proposed < BALANCE
    near = calibration.balance(*made_pushes(-1e-3, noise=50.0))
    assert near.ratio.low < 0.0 < near.ratio.high
    assert near.proposed > 0.0


def test_batches_without_a_bonus_are_refused() -> None:
    policy, bonus = made_pushes(BALANCE)
    bonus[5:] = 0.0
    with pytest.raises(BadInput, match="only 5 of 20 batches had any bonus"):
        calibration.balance(policy, bonus)


def test_a_push_that_is_no_number_is_refused() -> None:
    policy, bonus = made_pushes(BALANCE)
    policy[3] = math.nan
    with pytest.raises(NumericsError, match="not finite"):
        calibration.balance(policy, bonus)


def test_pushes_from_before_adams_metric_settles_do_not_count() -> None:
    rows = [metrics_row(1, policy_push=None, bonus_push=None)]
    rows += [metrics_row(step, policy_push=-1e6, bonus_push=1.0) for step in range(2, SETTLING_STEPS + 1)]
    rows += [metrics_row(step, policy_push=-BALANCE, bonus_push=1.0) for step in range(SETTLING_STEPS + 1, 30)]
    policy, bonus = calibration.pushes(rows)
    assert len(policy) == 29 - SETTLING_STEPS
    assert calibration.balance(policy, bonus).proposed == pytest.approx(BALANCE)


def test_too_few_batches_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 10 batches with a balance, and there are 9"):
        calibration.balance(*made_pushes(BALANCE, batches=9))


# ── H_0 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_initial_entropy_is_the_token_mean_of_the_first_orders() -> None:
    values = np.array([0.1, 0.2, 0.4, 9.0])
    found = calibration.initial_entropy(values, [100, 200, 100, 1000], 3)
    assert found == pytest.approx((0.1 * 100 + 0.2 * 200 + 0.4 * 100) / 400)


def test_a_policy_without_entropy_is_refused() -> None:
    with pytest.raises(BadInput, match="nothing to hold"):
        calibration.initial_entropy(np.zeros(5), [1] * 5, 3)


@pytest.mark.parametrize(
    ("driving", "expected"),
    [("full", "entropy_nats"), ("clamped", "clamped_entropy_nats"), ("sampled", "sampled_entropy_nats")],
)
def test_the_entropy_that_drives_the_law_is_taken(driving: str, expected: str) -> None:
    row = metrics_row(1, entropy_nats=0.1, clamped_entropy_nats=0.2, sampled_entropy_nats=0.3)
    found = calibration.entropies([row], driving)  # type: ignore[arg-type]  # one of the estimators' names
    assert list(found) == [getattr(row, expected)]


def test_an_entropy_that_is_no_number_names_its_step() -> None:
    with pytest.raises(NumericsError, match="step 2 is not finite"):
        calibration.entropies([metrics_row(1), metrics_row(2, clamped_entropy_nats=math.nan)], "clamped")
