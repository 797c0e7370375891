"""The flagship law, against its definition and against what can go wrong."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from entrostat.controller.coefficient import LawState, initial_state, law_step, read
from entrostat.controller.response import Calibration, Response, correct, first_response, increment, predict
from entrostat.controller.thermostat import ThermostatState
from entrostat.protocol.entropy_settings import LawSettings, ThermostatLaw
from tests.made_measurements import ENTROPY, THERMOSTAT, fed, measured


def last(law: LawSettings, entropies: list[float]) -> ThermostatState:
    state = fed(law, entropies)[-1]
    assert isinstance(state, ThermostatState)
    return state


# ── the definition ───────────────────────────────────────────────────────────────────────────────────────────────────


BETA1 = 0.9
FAR = 600  # orders: nothing is left of any momentum


class ThermostatByTheBook:
    """The law as it is defined: what is foreseen is where the believed policy ends, if the orders that are not made yet
    all have its balance coefficient.
    """

    def __init__(self, law: ThermostatLaw) -> None:
        self.law = law
        self.calibration = Calibration(law.drift, law.noise)
        self.first: list[float] = []
        self.sent: list[float] = [
            0.0
        ] * law.lag  # by order: what is decided after the measurement of order j is j + lag
        self.levels: list[float] = []
        self.engaged = False
        self.reached = False

    def alpha(self, entropy: float, share: float) -> float:
        """The coefficient that answers the order's entropy; of its own coefficient a `share` acted."""
        law = self.law
        if self.sent:
            self.sent[-1] *= share
        if len(self.first) < 3:
            self.first.append(entropy)
            if len(self.first) < 3:
                self.sent.append(0.0)
                return 0.0
        x = math.log(entropy / (law.anchor * sum(self.first) / 3))
        self.levels.append(x)
        belief, push = self.belief()
        coefficients = self.sent[2 + len(self.levels) - 1 :]
        level, balance = belief.level, law.balance * belief.balance
        for coefficient in (*coefficients, *([balance] * FAR)):
            push = BETA1 * push + (1 - BETA1) * coefficient
            level += increment(belief, push / law.balance, self.calibration)
        self.engaged = self.engaged or belief.level < 0.25 or len(self.levels) - 1 >= 1 / law.drift
        wanted = balance * (1 - law.pace / (law.drift * belief.drift) * max(-0.25, level))
        self.reached = self.reached or belief.level < 0.05
        lowest = law.balance * (-law.cooling_ratio if self.reached else law.floor_ratio)
        alpha = sorted((lowest, wanted, law.balance * law.ceiling_ratio))[1]
        if self.engaged and x > max(math.log(1.5), math.log(1 / law.anchor) + 0.1):
            alpha = min(lowest, 0.0)
        self.sent.append(alpha)
        return alpha

    def belief(self) -> tuple[Response, float]:
        """From the first controlled measurement anew, with what each order since was sent."""
        belief, push = first_response(self.levels[0], self.calibration), 0.0
        for level, coefficient in zip(self.levels[1:], self.sent[2:], strict=False):
            push = BETA1 * push + (1 - BETA1) * coefficient
            belief = correct(predict(belief, push / self.law.balance, self.calibration), level, self.calibration)
        return belief, push


@given(
    st.lists(st.tuples(st.floats(0.05, 0.3), st.floats(0.0, 1.0)), min_size=4, max_size=30),
    st.integers(0, 8),
    st.floats(0.001, 0.1),
)
@settings(max_examples=40)
def test_the_thermostat_is_its_definition(orders: list[tuple[float, float]], lag: int, drift: float) -> None:
    law = ThermostatLaw(balance=0.1, drift=drift, anchor=0.7, lag=lag)
    book, state = ThermostatByTheBook(law), initial_state(law)
    for step, (entropy, share) in enumerate(orders):
        state = law_step(law, state, replace(measured(step, entropy), share=share))
        assert state.coefficient == pytest.approx(book.alpha(entropy, share), rel=1e-6, abs=1e-9)


@given(st.lists(ENTROPY, max_size=60), st.integers(0, 8))
@settings(max_examples=60)
def test_the_thermostat_stays_in_its_box(entropies: list[float], lag: int) -> None:
    for state in fed(replace(THERMOSTAT, lag=lag), entropies):
        assert isinstance(state, ThermostatState)
        lowest = -THERMOSTAT.cooling_ratio * THERMOSTAT.balance if state.reached else 0.0
        assert lowest * (1 + 1e-9) <= state.coefficient <= 1.0 * (1 + 1e-9)
        assert math.isfinite(state.foreseen)


def test_the_initial_entropy_is_the_token_mean_of_the_first_orders_without_a_bonus() -> None:
    state = initial_state(THERMOSTAT)
    for step, (entropy, tokens) in enumerate([(0.1, 100), (0.2, 300), (0.25, 600)]):
        assert state.coefficient == 0.0
        assert read(THERMOSTAT, state).initial_entropy is None
        state = law_step(THERMOSTAT, state, measured(step, entropy, tokens))
    assert read(THERMOSTAT, state).initial_entropy == pytest.approx(0.22)
    assert read(THERMOSTAT, state).target == pytest.approx(0.7 * 0.22)
    assert state.coefficient > 0.0


# ── what can go wrong ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_from_a_checkpoint_goes_on_with_the_same_coefficients() -> None:
    noise = np.random.default_rng(1).normal(0.0, 0.13, 60)
    entropies = [0.13 * math.exp(value) for value in noise]
    law = replace(THERMOSTAT, lag=4)
    unbroken = fed(law, entropies)
    state: LawState = msgspec.msgpack.decode(msgspec.msgpack.encode(unbroken[30]), type=LawState)
    assert state == unbroken[30]
    for step in range(30, 60):
        state = law_step(law, state, measured(step, entropies[step]))
        assert state == unbroken[step + 1]
    # On the branch that a restored checkpoint begins, versions count on from its step.
    branched = law_step(law, unbroken[30], measured(30, entropies[30], branch=1))
    assert branched.coefficient == unbroken[31].coefficient


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_bad_measurement_changes_nothing_but_a_counter(bad: float) -> None:
    before = last(THERMOSTAT, [0.135] * 3 + [0.1] * 5)
    after = law_step(THERMOSTAT, before, measured(8, bad))
    assert after == replace(before, intake=replace(before.intake, frozen=1))


def test_orders_whose_measurement_was_refused_are_remembered_with_their_coefficient() -> None:
    law = replace(THERMOSTAT, lag=2)
    before = last(law, [0.135] * 3 + [0.1] * 5)
    late = law_step(law, law_step(law, before, measured(8, math.nan)), measured(9, 0.1))
    assert isinstance(late, ThermostatState)
    first, second = before.under_way
    push = before.push
    for coefficient in (first, second):
        push = 0.9 * push + 0.1 * coefficient
    assert late.push == pytest.approx(push)
    assert late.under_way == (before.coefficient, before.coefficient)
    far = law_step(law, before, measured(10**9, 0.1))  # does not count to a billion
    assert isinstance(far, ThermostatState)
    assert far.push == pytest.approx(before.coefficient, rel=1e-3)


def test_the_brake_turns_the_bonus_round_when_entropy_explodes() -> None:
    states = fed(THERMOSTAT, [0.135] * 3 + [0.09] * 5 + [0.3])
    assert read(THERMOSTAT, states[-1]).brake
    assert states[-1].coefficient == -THERMOSTAT.cooling_ratio * THERMOSTAT.balance
    mild = replace(THERMOSTAT, cooling_ratio=0.0)
    assert fed(mild, [0.135] * 3 + [0.09] * 5 + [0.3])[-1].coefficient == 0.0
    released = law_step(THERMOSTAT, states[-1], measured(9, 0.09))
    assert not read(THERMOSTAT, released).brake
    assert released.coefficient > 0.0


@pytest.mark.parametrize(("cooling", "holds"), [(1.0, True), (0.0, False)])
def test_entropy_that_rises_by_itself_is_pressed_down(cooling: float, holds: bool) -> None:
    law = replace(THERMOSTAT, cooling_ratio=cooling, drift=0.01)
    state, log_entropy = initial_state(law), math.log(0.135)
    for step in range(200):
        state = law_step(law, state, measured(step, math.exp(log_entropy)))
        own = -0.03 if step < 30 else 0.005  # it falls as it learns, and then finds a place where it may grow
        log_entropy += own + 0.01 * read(law, state).coefficient / law.balance
    assert (log_entropy < math.log(1.2 * 0.7 * 0.135)) == holds


@pytest.mark.parametrize("orders", [20, 300])
def test_entropy_that_never_was_at_its_target_is_not_pressed_there(orders: int) -> None:
    law = ThermostatLaw()
    near = [0.135] * 3 + [0.135 * 0.7 * 1.1] * orders  # a tenth above the target, for longer than 1/â
    assert min(state.coefficient for state in fed(law, near)) >= 0.0
    been = [*near, *[0.07] * 10, *[0.2] * 20]
    assert fed(law, been)[-1].coefficient < 0.0


def test_nothing_is_pressed_down_on_the_way_to_the_first_target() -> None:
    states = fed(THERMOSTAT, [0.135] * 3 + [0.134] * 3)
    assert [state.coefficient >= 0.0 for state in states] == [True] * len(states)


def test_the_brake_waits_until_the_law_has_engaged() -> None:
    states = fed(THERMOSTAT, [0.135] * 3 + [0.3])
    assert not read(THERMOSTAT, states[-1]).brake
    assert states[-1].coefficient > 0.0


def test_the_law_engages_in_the_end_though_entropy_never_came_near_its_target() -> None:
    law = ThermostatLaw(balance=0.1, drift=0.05, anchor=0.5)  # 1/â = 20 orders
    engaged = [state.engaged for state in fed(law, [0.2] * 30) if isinstance(state, ThermostatState)]
    assert engaged.index(True) == 3 + 20  # the third order is the first that is controlled
    assert all(engaged[23:])


def test_a_policy_without_entropy_is_answered_with_the_ceiling_and_the_orders_there_are_counted() -> None:
    states = fed(THERMOSTAT, [0.135] * 3 + [0.09] * 5 + [0.0] * 20)
    assert states[-1].coefficient == pytest.approx(1.0)
    at_ceiling = [state for state in states if state.coefficient == pytest.approx(1.0)]
    assert read(THERMOSTAT, states[-1]).ceiling_orders == len(at_ceiling) >= 15
    assert read(THERMOSTAT, law_step(THERMOSTAT, states[-1], measured(99, 12.0))).ceiling_orders == 0


def test_the_optimizers_momentum_is_reckoned_with() -> None:
    law = ThermostatLaw(balance=0.1, drift=0.02)
    calm, eager = initial_state(law, momentum=0.95), initial_state(law, momentum=0.0)
    for step, entropy in enumerate([0.1, 0.1, 0.1, 0.06, 0.06]):
        calm, eager = (law_step(law, state, measured(step, entropy)) for state in (calm, eager))
    # The pushes so far are still to come with much momentum, and done without.
    assert isinstance(calm, ThermostatState)
    assert isinstance(eager, ThermostatState)
    assert calm.foreseen != pytest.approx(eager.foreseen, abs=0.02)
