"""The flagship law, against its formulas, on a small plant, and against what can go wrong."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.controller.coefficient import LawState, initial_state, law_step, read
from entrostat.controller.measurement import Measurement
from entrostat.controller.thermostat import ThermostatState, gains
from entrostat.protocol.entropy_settings import LawSettings, ThermostatLaw
from entrostat.protocol.messages import PolicyVersion

ENTROPY = st.floats(0.0, 12.0)
THERMOSTAT = ThermostatLaw(balance=0.1, drift=0.008, anchor=0.7)


def measured(step: int, entropy: float, tokens: int = 100, branch: int = 0) -> Measurement:
    return Measurement(version=PolicyVersion(branch=branch, step=step), entropy=entropy, tokens=tokens)


def fed(law: LawSettings, entropies: list[float]) -> list[LawState]:
    states = [initial_state(law)]
    for step, entropy in enumerate(entropies):
        states.append(law_step(law, states[-1], measured(step, entropy)))
    return states


class ThermostatByTheBook:
    """The law as its formulas stand, with lists for memory."""

    def __init__(self, *, anchor: float, c: float, a: float, lag: int, beta1: float) -> None:
        theta = lag + 1 + 0.5 / (1 - beta1)
        self.kp = sorted((1.0, 1 / (2 * a * theta), 12.0))[1]
        self.ki = self.kp / (8 * theta)
        self.anchor, self.c, self.a = anchor, c, a
        self.first: list[float] = []
        self.f: list[float] = []
        self.integral = 0.0
        self.engaged = False

    def alpha(self, entropy: float) -> float:
        if len(self.first) < 3:
            self.first.append(entropy)
            if len(self.first) < 3:
                return 0.0
        x = math.log(entropy / (self.anchor * sum(self.first) / 3))
        self.f.append(x if not self.f else self.f[-1] + (x - self.f[-1]) / 2)
        f = self.f[-1]
        self.engaged = self.engaged or f < 0.25 or len(self.f) - 1 >= 1 / self.a
        braked = self.engaged and x > max(math.log(1.5), math.log(1 / self.anchor) + 0.1)
        u = self.integral - self.kp * f
        step = -self.ki * sorted((-0.25, f, 0.25))[1]
        stuck = (u >= math.log(10) and step > 0) or ((u <= math.log(0.01) or braked) and step < 0)
        if self.engaged and not stuck:
            self.integral = sorted((math.log(0.01), self.integral + step, math.log(10)))[1]
        return 0.0 if braked else self.c * math.exp(sorted((math.log(0.01), u, math.log(10)))[1])


@given(st.lists(st.floats(0.01, 0.6), min_size=4, max_size=60), st.integers(1, 8), st.floats(0.001, 0.1))
@settings(max_examples=60, deadline=None)
def test_the_thermostat_is_its_formulas(entropies: list[float], lag: int, drift: float) -> None:
    law = ThermostatLaw(balance=0.1, drift=drift, anchor=0.7, lag=lag)
    oracle = ThermostatByTheBook(anchor=0.7, c=0.1, a=drift, lag=lag, beta1=0.9)
    for state, entropy in zip(fed(law, entropies)[1:], entropies, strict=True):
        assert state.coefficient == pytest.approx(oracle.alpha(entropy), rel=1e-9)


@given(st.lists(ENTROPY, max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_thermostat_stays_in_its_box_or_at_nothing(entropies: list[float]) -> None:
    for state in fed(THERMOSTAT, entropies):
        assert isinstance(state, ThermostatState)
        assert state.coefficient == 0.0 or 0.001 * (1 - 1e-9) <= state.coefficient <= 1.0 * (1 + 1e-9)
        assert math.log(0.01) <= state.integral <= math.log(10)


def test_the_initial_entropy_is_the_token_mean_of_the_first_orders_without_a_bonus() -> None:
    state = initial_state(THERMOSTAT)
    for step, (entropy, tokens) in enumerate([(0.1, 100), (0.2, 300), (0.4, 600)]):
        assert state.coefficient == 0.0
        assert read(THERMOSTAT, state).initial_entropy is None
        state = law_step(THERMOSTAT, state, measured(step, entropy, tokens))
    assert read(THERMOSTAT, state).initial_entropy == pytest.approx(0.31)
    assert read(THERMOSTAT, state).target == pytest.approx(0.7 * 0.31)
    assert state.coefficient > 0.0


def test_the_optimizers_momentum_lowers_the_gains() -> None:
    assert gains(drift=0.01, lag=1, momentum=0.0) == pytest.approx((12.0, 12.0 / 20.0))
    assert gains(drift=0.01, lag=1, momentum=0.9) == pytest.approx((50 / 7, 50 / 49 / 8))
    law = ThermostatLaw(balance=0.1, drift=0.02)
    calm, eager = initial_state(law, momentum=0.95), initial_state(law, momentum=0.8)
    for step, entropy in enumerate([0.1, 0.1, 0.1, 0.06, 0.06, 0.06]):
        calm, eager = (law_step(law, state, measured(step, entropy)) for state in (calm, eager))
    assert eager.coefficient > calm.coefficient > law.balance


def simulate(
    law: ThermostatLaw, *, steps: int, drift: float = 0.008, balance: float = 0.1, dead: range = range(0)
) -> list[tuple[float, ThermostatState]]:
    """Entropies, and the states they lead to, of a plant `ln H ← ln H − â + â·m/ĉ`, m the coefficient `lag − 1` orders
    late, behind momentum 0.9.

    In the orders of `dead` the bonus does nothing.
    """
    state = initial_state(law)
    entropy, momentum, queue = 0.135, 0.0, [0.0] * (law.lag - 1)
    course = []
    for step in range(steps):
        state = law_step(law, state, measured(step, entropy))
        assert isinstance(state, ThermostatState)
        course.append((entropy, state))
        queue.append(state.coefficient)
        momentum = 0.9 * momentum + 0.1 * queue.pop(0)
        push = 0.0 if step in dead else momentum / balance
        entropy *= math.exp(drift * (push - 1.0))
    return course


@pytest.mark.parametrize("lag", [1, 2, 4, 8])
def test_the_thermostat_settles_at_its_target(lag: int) -> None:
    course = simulate(ThermostatLaw(balance=0.1, drift=0.008, lag=lag), steps=300)
    errors = [abs(entropy / (0.7 * (state.intake.initial_entropy or math.nan)) - 1.0) for entropy, state in course]
    assert max(errors[150:]) < 0.05


@pytest.mark.parametrize("lag", [1, 2, 4, 8])
@pytest.mark.parametrize("wrong", [1 / 3, 3.0])
def test_a_balance_wrong_threefold_is_found_by_the_integral(lag: int, wrong: float) -> None:
    course = simulate(ThermostatLaw(balance=0.1 * wrong, drift=0.008, lag=lag), steps=400)
    errors = [abs(entropy / (0.7 * (state.intake.initial_entropy or math.nan)) - 1.0) for entropy, state in course]
    assert sum(errors[150:]) / len(errors[150:]) < 0.05
    assert errors[-1] < 0.02


def test_the_integral_does_not_wind_up_while_the_bonus_does_nothing() -> None:
    course = simulate(THERMOSTAT, steps=400, dead=range(100, 200))
    entropies = [entropy for entropy, _ in course]
    target = read(THERMOSTAT, course[-1][1]).target or math.nan
    assert min(entropies) < 0.5 * target  # it did fall away, for a hundred orders …
    assert course[199][1].integral < 0.3  # … and the box would have let it go to 2.3
    assert entropies[-1] == pytest.approx(target, rel=0.05)


def test_saturation_stops_the_integral() -> None:
    states = fed(THERMOSTAT, [0.135] * 3 + [0.09] * 5 + [0.001] * 100)
    saturated = [state for state in states if isinstance(state, ThermostatState) and state.ceiling_orders > 0]
    assert len({state.integral for state in saturated}) <= 2  # of the last order before it and since
    assert read(THERMOSTAT, states[-1]).ceiling_orders == len(saturated) >= 90
    assert states[-1].coefficient == pytest.approx(1.0)


def test_the_brake_takes_the_bonus_away_when_entropy_explodes() -> None:
    states = fed(THERMOSTAT, [0.135] * 3 + [0.09] * 5 + [0.3])
    assert read(THERMOSTAT, states[-1]).brake
    assert states[-1].coefficient == 0.0
    released = law_step(THERMOSTAT, states[-1], measured(99, 0.09))
    assert not read(THERMOSTAT, released).brake
    assert released.coefficient > 0.0


def test_the_brake_waits_until_the_law_has_engaged() -> None:
    states = fed(THERMOSTAT, [0.135] * 3 + [0.3])
    assert not read(THERMOSTAT, states[-1]).brake
    assert states[-1].coefficient > 0.0


def test_the_law_engages_in_the_end_though_entropy_never_came_near_its_target() -> None:
    law = ThermostatLaw(balance=0.1, drift=0.05, anchor=0.5)  # 1/â = 20 orders
    engaged = [state.engaged for state in fed(law, [0.2] * 30) if isinstance(state, ThermostatState)]
    assert engaged.index(True) == 3 + 20  # the third order is the first that is controlled
    assert all(engaged[23:])


def test_a_policy_without_entropy_is_answered_with_the_ceiling() -> None:
    states = fed(THERMOSTAT, [0.1] * 3 + [0.0] * 3)
    assert states[-1].coefficient == pytest.approx(1.0)
