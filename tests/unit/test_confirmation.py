"""What a second short run says of a proposed balance, on curves made to order and on a linear plant."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrostat import calibration
from entrostat.calibration import MOST_CORRECTION
from tests.made_runs import BALANCE, DRIFT, H_0, curve


def confirmed(slope: float, *, without: float = -DRIFT, noise: float = 0.02) -> calibration.Confirmation:
    held = curve(slope, steps=20, noise=noise, seed=1)
    return calibration.confirmation(curve(without, noise=noise), held, initial=H_0, coefficient=BALANCE)


def test_an_entropy_that_is_held_confirms() -> None:
    found = confirmed(0.0)
    assert found.factor == 1.0
    assert found.removed == pytest.approx(1.0, abs=0.2)


def on_a_linear_plant(truth: float) -> calibration.Confirmation:
    """`d ln H/dt = −â(1 − c/c*)`, with c* so many times the coefficient that is tried."""
    return confirmed(-DRIFT * (1.0 - 1.0 / truth), noise=0.0)


@pytest.mark.parametrize("truth", [0.4, 0.6, 2.5, 3.9])
def test_a_secant_step_finds_the_balance_of_a_linear_plant(truth: float) -> None:
    assert on_a_linear_plant(truth).factor == pytest.approx(truth)


@pytest.mark.parametrize("truth", [0.7, 1.0, 1.9])
def test_a_coefficient_that_removes_the_better_part_of_the_drift_stays(truth: float) -> None:
    assert on_a_linear_plant(truth).factor == 1.0


def test_a_fall_that_goes_on_unchanged_corrects_by_the_most_and_no_more() -> None:
    assert confirmed(-DRIFT).factor == pytest.approx(MOST_CORRECTION)
    assert confirmed(-3 * DRIFT).factor == MOST_CORRECTION
    assert on_a_linear_plant(20.0).factor == MOST_CORRECTION


def test_an_explosion_lowers_the_balance() -> None:
    found = confirmed(0.1)
    assert found.exploded
    assert found.factor == pytest.approx(0.25, abs=0.02)
    assert confirmed(0.3).factor == 1.0 / MOST_CORRECTION
    without_drift = confirmed(0.1, without=0.0)
    assert without_drift.removed is None
    assert without_drift.factor == 1.0 / MOST_CORRECTION


def test_a_slope_that_noise_explains_corrects_nothing() -> None:
    held = curve(-0.6 * DRIFT, steps=20, noise=0.5, seed=2)
    found = calibration.confirmation(curve(-DRIFT), held, initial=10.0, coefficient=BALANCE)
    assert not found.slope.distinct
    assert found.removed is not None
    assert abs(1.0 - found.removed) > calibration.ENOUGH
    assert found.factor == 1.0


def test_without_a_drift_nothing_is_said_of_its_share() -> None:
    found = confirmed(0.0, without=0.0)
    assert found.removed is None
    assert found.factor == 1.0


def test_the_same_steps_are_compared() -> None:
    without = np.concatenate([curve(-DRIFT, steps=20), np.full(10, 5.0)])
    found = calibration.confirmation(without, curve(0.0, steps=20), initial=H_0, coefficient=BALANCE)
    assert found.uncontrolled.value == pytest.approx(-DRIFT)


@given(slope=st.floats(-0.2, 0.2), without=st.floats(-0.2, 0.2))
def test_a_correction_is_bounded_and_goes_against_the_fault(slope: float, without: float) -> None:
    found = confirmed(slope, without=without)
    assert 1.0 / MOST_CORRECTION <= found.factor <= MOST_CORRECTION
    if found.factor > 1.0:
        assert found.slope.value < 0.0
    if found.factor < 1.0:
        assert found.slope.value > 0.0 or found.exploded
