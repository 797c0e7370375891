"""The simulated policy of the step response: its physics, its fit, and what is told of a course."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.closed_loop import drive, overshoot, ringing, settling, swing
from benchmarks.contenders import CONTENDERS, RISING, Setting
from benchmarks.plant import Plant, answer
from benchmarks.plant_fit import BOUNDS, SHARED, fit, prototype_residuals, recorded_runs, run_residuals

PLANT = Plant()
STILL = PLANT.constant.still
ENTROPY = st.floats(1e-3, 4.0)


class Scripted:
    """Answers the measurement of each order with a given coefficient, and keeps what it was told."""

    def __init__(self, coefficients: list[float]) -> None:
        self._coefficients = iter(coefficients)
        self.coefficient = 0.0
        self.target: float | None = 1.0
        self.told: list[float] = []

    def tell(self, order: int, entropy: float) -> None:
        self.told.append(entropy)
        self.coefficient = next(self._coefficients)


# ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(ENTROPY)
@settings(max_examples=60)
def test_the_balance_coefficient_holds_any_entropy_still(entropy: float) -> None:
    moved = STILL.next_log(math.log(entropy), STILL.balance(entropy), order=0)
    assert moved == pytest.approx(math.log(entropy), abs=1e-12)


@given(ENTROPY, st.floats(0.0, 2.0), st.floats(0.0, 2.0), st.integers(0, 500))
@settings(max_examples=60)
def test_a_larger_push_never_leaves_less_entropy_nor_more_than_there_can_be(
    entropy: float, push: float, more: float, order: int
) -> None:
    low = PLANT.next_log(math.log(entropy), push, order)
    high = PLANT.next_log(math.log(entropy), push + more, order)
    assert low <= high <= math.log(PLANT.highest)


def test_a_coefficient_acts_through_the_momentum() -> None:
    plant = STILL._replace(late=0.0, gain_power=0.0, highest=math.inf, momentum=0.8)
    course = answer(plant, [0.01] * 51, 0.1)
    assert np.diff(course) == pytest.approx([plant.gain * 0.01 * (1 - 0.8 ** (n + 1)) for n in range(50)])


def test_the_drift_fades_and_swings() -> None:
    assert PLANT.drift(PLANT.first, 0) == pytest.approx(PLANT.late + PLANT.early)
    assert PLANT.drift(PLANT.first, 10_000) == pytest.approx(PLANT.late)
    swinging = PLANT.constant._replace(swing=0.5, period=200.0)
    assert [swinging.drift(PLANT.first, order) / PLANT.late for order in (0, 50, 100, 150)] == pytest.approx(
        [1.0, 1.5, 1.0, 0.5]
    )


def test_a_lift_turns_the_drift_upward_until_entropy_is_where_they_are_level() -> None:
    lifted = STILL._replace(lift=0.5 * STILL.late, lift_after=100.0, lift_orders=50.0)
    low = 0.4 * STILL.first
    fall = STILL.drift(low)
    assert [lifted.drift(low, order) for order in (0, 100, 125, 150, 1000)] == pytest.approx(
        [fall, fall, fall - 0.25 * STILL.late, fall - 0.5 * STILL.late, fall - 0.5 * STILL.late]
    )
    assert lifted.drift(low) == fall  # what a law is told
    course = answer(lifted, [0.0] * 1000, lifted.first)
    assert course[:100] == pytest.approx(answer(STILL, [0.0] * 100, STILL.first))
    assert math.exp(course[-1]) == pytest.approx(lifted.first * 0.5 ** (1.0 / lifted.drift_power), rel=1e-3)
    assert course[-1] > course[100:].min() + 0.1


@pytest.mark.parametrize("lag", [0, 1, 8])
def test_what_order_three_measures_steers_the_order_lag_later(lag: int) -> None:
    course = drive(Scripted([0.0] * 3 + [0.5] + [0.0] * 16), PLANT, lag=lag, orders=20, seed=0, target=1.0)
    assert np.flatnonzero(course.coefficients).tolist() == [3 + lag]
    free = drive(Scripted([0.0] * 20), PLANT, lag=lag, orders=20, seed=0, target=1.0)
    assert np.flatnonzero(course.errors != free.errors)[0] == 3 + lag + 1  # the entropy after that order's step


def test_stale_states_show_some_of_an_earlier_entropy() -> None:
    loop = Scripted([0.0] * 20)
    errors = drive(loop, STILL._replace(stale_share=0.25, stale_orders=2), lag=0, orders=20, seed=0, target=1.0).errors
    assert np.log(loop.told[2:]) == pytest.approx(0.75 * errors[2:] + 0.25 * errors[:-2])


def test_every_law_meets_the_same_noise() -> None:
    one, other = Scripted([0.0] * 30), Scripted([0.0] * 30)
    for loop, lag in ((one, 0), (other, 5)):
        drive(loop, PLANT, lag=lag, orders=30, seed=4, target=1.0)
    assert one.told == other.told
    assert np.std(np.diff(np.log(one.told))) == pytest.approx(math.sqrt(2) * PLANT.noise, rel=0.4)


# ── the fit ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_policy_is_what_fits_the_recorded_runs() -> None:
    fitted = fit()
    for name, low, high in zip(SHARED, *BOUNDS, strict=False):
        assert getattr(PLANT, name) == pytest.approx(fitted["values"][name], rel=0.02)
        assert low < fitted["values"][name] < high  # no bound decided
    for run in fitted["runs"].values():
        assert run["deviation"] < 0.15
        assert max(map(abs, run["blocks"])) < 0.1
    assert max(map(abs, fitted["prototype"].values())) < 0.1


def test_a_policy_that_is_not_that_of_the_runs_leaves_more() -> None:
    run = next(run for run in recorded_runs() if any(run.coefficients))
    good, bad = (
        float(np.square(run_residuals(plant, run, math.exp(run.measured[0]))).mean())
        for plant in (PLANT, PLANT._replace(gain=2 * PLANT.gain))
    )
    assert bad > 2 * good
    assert max(map(abs, prototype_residuals(PLANT).values())) > 0.1  # the prototype was another policy


# ── what is told of a course ─────────────────────────────────────────────────────────────────────────────────────────

WAVE = 0.2 * np.sin(2 * np.pi * np.arange(250) / 60.0)


def test_a_sustained_oscillation_rings_and_noise_through_a_damped_loop_does_not() -> None:
    drawn = np.random.default_rng(0).standard_normal((20, 250))
    filtered = np.zeros_like(drawn)
    for order in range(1, 250):
        filtered[:, order] = 0.9 * filtered[:, order - 1] + drawn[:, order]
    assert ringing(WAVE) > 0.9
    assert ringing(WAVE + 0.05 * drawn[0]) > 0.8
    assert np.mean([ringing(course) for course in filtered]) < 0.4
    assert ringing(np.ones(250)) == ringing(np.linspace(1.0, 0.0, 250) ** 0) == 0.0


def test_settling_overshoot_and_swing_of_known_courses() -> None:
    decay = np.exp(-np.arange(100) / 10.0)
    assert settling(decay) == 24  # e^−2.4 < 0.1
    assert settling(np.ones(100)) is None
    assert settling(np.zeros(100)) == 0
    assert overshoot(decay) == 0.0
    assert overshoot(decay - 0.05) == pytest.approx(5.0, abs=0.1)
    assert swing(WAVE) == pytest.approx(20.0, rel=0.01)


def test_integral_laws_swing_where_the_flagship_rests() -> None:
    setting = Setting(STILL, 8)

    def end(law: str, variant: int) -> float:
        make = list(CONTENDERS[law].values())[variant]
        return swing(drive(make(setting), STILL, lag=8, orders=400, seed=0, target=setting.target).errors[250:])

    assert min(end("bang_bang", variant) for variant in range(3)) > 8.0
    assert min(end("anchored", variant) for variant in range(3)) > 8.0
    assert end("thermostat", 0) < 0.5


def test_where_entropy_rises_by_itself_only_laws_that_press_it_down_come_near_their_target() -> None:
    plant = STILL._replace(lift=1.5 * Setting(STILL, 1).drift)
    setting = Setting(plant, 1)

    def end(law: str, variant: int = 0) -> float:
        make = list(RISING[law].values())[variant]
        return float(drive(make(setting), plant, lag=1, orders=550, seed=0, target=setting.target).errors[-50:].mean())

    level = math.log(1.5) / plant.drift_power  # where lift and drift are level, over the target
    assert end("no control") == pytest.approx(level, rel=0.02)
    for law in ("thermostat without cooling", "bang_bang", "anchored", "pi"):
        assert end(law) > 0.9 * level
    assert abs(end("thermostat")) < 0.6 * level
    assert abs(end("quadratic", 2)) < 0.5 * level
