"""What the flagship believes of a policy, against Kalman's filter as textbooks write it, and on known policies."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.controller.response import (
    DRIFT_DOUBT,
    DRIFT_WANDER,
    GAIN_DOUBT,
    GAIN_WANDER,
    LEVEL_WANDER,
    OUTLIER,
    Calibration,
    Response,
    correct,
    first_response,
    increment,
    predict,
)

CALIBRATION = Calibration(drift=0.02, noise=0.13)
UNIT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
PUSHES = st.lists(st.floats(0.0, 3.0), min_size=1, max_size=40)


class FilterByTheBook:
    """Matrices, as in any text on the extended Kalman filter."""

    def __init__(self, level: float, calibration: Calibration) -> None:
        self.drift, self.noise = calibration
        self.mean = np.array([level, 1.0, 0.0])
        self.covariance = np.diag([self.noise**2, DRIFT_DOUBT**2, GAIN_DOUBT**2])

    def predict(self, push: float) -> None:
        _, drift, gain = self.mean
        derivative = np.eye(3)
        derivative[0, 1:] = -self.drift, self.drift * math.exp(gain) * push
        self.mean[0] += self.drift * (math.exp(gain) * push - drift)
        wander = np.diag(np.square([LEVEL_WANDER, DRIFT_WANDER, GAIN_WANDER]))
        self.covariance = derivative @ self.covariance @ derivative.T + wander

    def correct(self, level: float) -> None:
        row = np.array([[1.0, 0.0, 0.0]])
        variance = (row @ self.covariance @ row.T).item() + self.noise**2
        kalman = self.covariance @ row.T / variance
        surprise = np.clip(level - self.mean[0], -OUTLIER * variance**0.5, OUTLIER * variance**0.5)
        self.mean = self.mean + kalman[:, 0] * surprise
        self.mean[1], self.mean[2] = np.clip(self.mean[1], -5.0, 20.0), np.clip(self.mean[2], -3.0, 3.0)
        self.covariance = (np.eye(3) - kalman @ row) @ self.covariance


@given(PUSHES, st.integers(0, 1000))
@settings(max_examples=60)
def test_the_belief_is_kalmans_filter(pushes: list[float], seed: int) -> None:
    measured = np.cumsum(np.random.default_rng(seed).normal(0.0, 0.1, len(pushes) + 1)).tolist()
    belief, book = first_response(measured[0], CALIBRATION), FilterByTheBook(measured[0], CALIBRATION)
    for push, level in zip(pushes, measured[1:], strict=True):
        belief = correct(predict(belief, push, CALIBRATION), level, CALIBRATION)
        book.predict(push)
        book.correct(level)
        assert [belief.level, belief.drift, belief.gain] == pytest.approx(book.mean.tolist(), rel=1e-9, abs=1e-12)
        assert np.asarray(belief.doubt) == pytest.approx(book.covariance, rel=1e-7, abs=1e-12)


@given(PUSHES, st.lists(st.floats(-15.0, 15.0), min_size=40, max_size=40))
@settings(max_examples=60)
def test_the_doubt_stays_a_covariance_and_the_belief_finite(pushes: list[float], measured: list[float]) -> None:
    belief = first_response(measured[0], CALIBRATION)
    for push, level in zip(pushes, measured, strict=False):
        before = predict(belief, push, CALIBRATION)
        belief = correct(before, level, CALIBRATION)
        doubt = np.asarray(belief.doubt)
        assert (doubt == doubt.T).all()
        assert np.linalg.eigvalsh(doubt).min() > -1e-12
        assert doubt[0, 0] < min(before.doubt[0][0], CALIBRATION.noise**2)
        assert all(map(math.isfinite, (belief.level, belief.drift, belief.gain, belief.balance)))


@given(st.floats(0.1, 5.0), st.floats(-2.0, 2.0), st.floats(0.0, 5.0))
@settings(max_examples=60)
def test_the_derivative_is_that_of_the_model(drift: float, gain: float, push: float) -> None:
    after = predict(Response(level=0.0, drift=drift, gain=gain, doubt=UNIT), push, CALIBRATION)
    step = 1e-6

    def next_level(drift: float, gain: float) -> float:
        return increment(Response(level=0.0, drift=drift, gain=gain, doubt=UNIT), push, CALIBRATION)

    by_drift = (next_level(drift + step, gain) - next_level(drift - step, gain)) / (2 * step)
    by_gain = (next_level(drift, gain + step) - next_level(drift, gain - step)) / (2 * step)
    assert after.doubt[0][1:] == pytest.approx((by_drift, by_gain), rel=1e-5, abs=1e-9)


def test_the_balance_coefficient_moves_nothing() -> None:
    belief = Response(level=0.3, drift=2.5, gain=0.4, doubt=UNIT)
    assert increment(belief, belief.balance, CALIBRATION) == pytest.approx(0.0, abs=1e-15)


def test_a_measurement_without_noise_is_believed() -> None:
    exact = Calibration(drift=0.02, noise=1e-9)
    belief = correct(predict(first_response(0.5, exact), 0.0, exact), 0.49, exact)
    assert belief.level == pytest.approx(0.49, abs=1e-9)


def test_no_measurement_moves_the_belief_further_than_an_outlier_may() -> None:
    belief = predict(first_response(0.0, CALIBRATION), 1.0, CALIBRATION)
    far, further = (correct(belief, level, CALIBRATION) for level in (5.0, 50.0))
    assert far == further
    assert abs(far.level) < OUTLIER * math.sqrt(belief.doubt[0][0] + CALIBRATION.noise**2)


def learnt(pushes: list[float], drift: float, gain: float) -> Response:
    """The belief after a policy that answers with this drift and gain was measured exactly, order by order."""
    level = 0.5
    belief = first_response(level, CALIBRATION)
    for push in pushes:
        level += CALIBRATION.drift * (math.exp(gain) * push - drift)
        belief = correct(predict(belief, push, CALIBRATION), level, CALIBRATION)
    return belief


def test_orders_without_a_bonus_teach_the_drift_and_nothing_else() -> None:
    belief = learnt([0.0] * 60, drift=3.0, gain=1.0)
    assert belief.drift == pytest.approx(3.0, rel=0.1)
    assert belief.gain == 0.0


def test_a_changing_coefficient_teaches_the_gain() -> None:
    belief = learnt(([0.0] * 20 + [3.0] * 20) * 3, drift=1.0, gain=-1.0)
    assert belief.gain == pytest.approx(-1.0, abs=0.25)


@pytest.mark.parametrize(("drift", "gain"), [(0.5, 0.0), (2.0, 0.0), (1.0, 0.7), (1.0, -0.7), (-0.5, 0.0)])
def test_at_rest_the_balance_is_learnt_whatever_was_wrong(drift: float, gain: float) -> None:
    balance = drift * math.exp(-gain)
    assert learnt([balance] * 200, drift=drift, gain=gain).balance == pytest.approx(balance, rel=0.02)
