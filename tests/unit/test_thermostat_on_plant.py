"""The flagship law on the simulated policy: how closely it holds its target, and follows one that falls."""

import math
from itertools import pairwise

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.closed_loop import LawLoop, Loop, drive, overshoot, ringing, settling, swing
from benchmarks.contenders import CONTENDERS, Maker, Setting, thermostat
from benchmarks.plant import Plant
from entrostat.controller.coefficient import initial_state, law_step, read
from entrostat.controller.thermostat import anchor
from entrostat.protocol.entropy_settings import ThermostatLaw
from tests.made_measurements import THERMOSTAT, fed, measured

CONSTANT = Plant().constant
SEEDS = range(6)

# ── a target that stays ──────────────────────────────────────────────────────────────────────────────────────────────


def errors_of(loop: Loop, setting: Setting, seed: int = 0, orders: int = 400) -> NDArray[np.float64]:
    return drive(loop, setting.plant, lag=setting.lag, orders=orders, seed=seed, target=setting.target).errors


def mean_error(setting: Setting, told_lag: int | None = None, orders: int = 400, transient: int = 150) -> float:
    courses = [errors_of(thermostat(setting, told_lag), setting, seed, orders) for seed in SEEDS]
    return float(np.mean([np.abs(errors[transient:]).mean() for errors in courses]))


@pytest.mark.parametrize("lag", range(9))
def test_without_noise_it_settles_and_neither_overshoots_nor_swings(lag: int) -> None:
    setting = Setting(CONSTANT.still, lag)
    errors = errors_of(thermostat(setting), setting)
    assert (settling(errors) or math.inf) <= 25
    assert overshoot(errors) < 1.0
    assert swing(errors[150:]) < 0.5
    assert abs(errors[-1]) < 0.005


@pytest.mark.parametrize("lag", [0, 4, 8])
def test_with_noise_it_holds_within_five_percent_and_does_not_oscillate(lag: int) -> None:
    setting = Setting(CONSTANT, lag)
    assert mean_error(setting) < 0.05
    assert np.mean([ringing(errors_of(thermostat(setting), setting, seed)[150:]) for seed in SEEDS]) < 0.5


@pytest.mark.parametrize("lag", [0, 4])
def test_it_follows_a_drift_that_swings_by_half(lag: int) -> None:
    assert mean_error(Setting(CONSTANT._replace(swing=0.5), lag), orders=550) < 0.1


@pytest.mark.parametrize("factors", [(0.25, 0.25), (0.25, 4.0), (4.0, 0.25), (4.0, 4.0), (1.0, 5.0), (3.0, 1 / 3)])
def test_gains_wrong_fourfold_are_learnt(factors: tuple[float, float]) -> None:
    for lag in (1, 8):
        assert mean_error(Setting(CONSTANT, lag, *factors)) < 0.12


@pytest.mark.parametrize("lag", [4, 8])
def test_it_tracks_at_least_twice_as_closely_as_bang_bang_at_its_best(lag: int) -> None:
    setting = Setting(CONSTANT, lag)

    def tracking(make: Maker) -> float:
        return float(np.mean([np.abs(errors_of(make(setting), setting, seed)[20:]).mean() for seed in SEEDS]))

    assert tracking(thermostat) < 0.5 * min(map(tracking, CONTENDERS["bang_bang"].values()))


def test_a_law_that_is_told_no_lag_where_there_is_one_is_worse() -> None:
    setting = Setting(CONSTANT, 8)
    assert mean_error(setting, told_lag=0) > 1.4 * mean_error(setting)
    still = Setting(CONSTANT.still, 8)
    assert overshoot(errors_of(thermostat(still, 0), still)) > 1.0 > overshoot(errors_of(thermostat(still), still))


def test_a_bonus_that_did_nothing_for_a_while_leaves_no_debt() -> None:
    law = ThermostatLaw(balance=Setting(CONSTANT, 1).balance, drift=Setting(CONSTANT, 1).drift, anchor=0.6)
    plant, state = CONSTANT.still, initial_state(law)
    log_entropy, push, course = math.log(plant.first), 0.0, []
    for order in range(400):
        course.append(log_entropy)
        coefficient = state.coefficient
        state = law_step(law, state, measured(order, math.exp(log_entropy)))
        push = 0.9 * push + 0.1 * (0.0 if 100 <= order < 150 else coefficient)
        log_entropy = plant.next_log(log_entropy, push, order)
    errors = np.asarray(course) - math.log(read(law, state).target or math.nan)
    assert errors[150] < -0.3  # it did fall away …
    assert errors[150:].max() < 0.8  # … and came back, as far as a law without a belief would
    assert abs(errors[-1]) < 0.03


# ── a target that is released ────────────────────────────────────────────────────────────────────────────────────────


RELEASED = ThermostatLaw(balance=0.1, drift=0.008, anchor=0.7, release_after=100, release_orders=100, final_anchor=0.35)


def test_a_released_target_falls_evenly_in_ln_h_and_stays_at_its_end() -> None:
    shares = [anchor(RELEASED, orders) for orders in (0, 100, 150, 200, 900)]
    assert shares == pytest.approx([0.7, 0.7, math.sqrt(0.7 * 0.35), 0.35, 0.35])
    assert anchor(THERMOSTAT, 900) == 0.7


def test_the_target_that_is_read_is_the_one_the_last_measurement_was_held_against() -> None:
    states = fed(RELEASED, [0.4] * 300)
    targets = [read(RELEASED, state).target for state in states]
    assert targets[2] is None
    assert targets[50] == pytest.approx(0.28)
    assert targets[-1] == pytest.approx(0.14)
    assert all(a is None or b is None or b <= a for a, b in pairwise(targets))


@pytest.mark.parametrize("lag", [1, 4])
@pytest.mark.parametrize("orders", [40, 100])
def test_entropy_follows_a_falling_target_without_falling_behind(lag: int, orders: int) -> None:
    law = replace(RELEASED, lag=lag, release_orders=orders)
    errors = []
    for seed in SEEDS:
        loop = LawLoop(law, CONSTANT.momentum)
        falling: list[float] = []
        course = drive(Watched(loop, falling), CONSTANT, lag=lag, orders=220, seed=seed, target=1.0)
        true = course.errors + math.log(falling[-1])
        errors.append((true - np.log(falling))[110 : 100 + orders])
    assert np.abs(errors).mean() < 0.1
    assert abs(np.mean(errors)) < 0.04


class Watched:
    """A loop whose target is written down at each order."""

    def __init__(self, loop: LawLoop, targets: list[float]) -> None:
        self._loop, self._targets = loop, targets

    @property
    def coefficient(self) -> float:
        return self._loop.coefficient

    @property
    def target(self) -> float | None:
        return self._loop.target

    def tell(self, order: int, entropy: float) -> None:
        self._loop.tell(order, entropy)
        self._targets.append(self._loop.target or math.nan)


def test_a_release_to_a_higher_target_is_refused() -> None:
    with pytest.raises(ValueError, match="final_anchor"):
        ThermostatLaw(release_after=10, anchor=0.5, final_anchor=0.6)
