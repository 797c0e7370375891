"""Every control law as the controller runs it: bad measurements, targets, restarts, a small plant."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.controller.coefficient import (
    FixedState,
    LawState,
    Measurement,
    PiState,
    SampleBalanceState,
    initial_state,
    law_step,
    read,
)
from entrostat.protocol import wire
from entrostat.protocol.entropy_settings import (
    AnchoredLaw,
    BandLaw,
    BangBangLaw,
    FixedLaw,
    LawSettings,
    PiLaw,
    QuadraticLaw,
    SampleBalanceLaw,
    ThermostatLaw,
)
from entrostat.protocol.errors import ConfigError
from tests.made_measurements import ENTROPY, THERMOSTAT, fed, measured

LAWS: tuple[LawSettings, ...] = (
    FixedLaw(coefficient=1e-3),
    BandLaw(initial=2e-3, floor=6e-4, ceiling=9e-3, low=0.15, high=0.24, rate=2e-3),
    AnchoredLaw(),
    THERMOSTAT,
    BangBangLaw(),
    BangBangLaw(target=0.2, initial=1e-3, floor=1e-4),
    PiLaw(),
    PiLaw(target=0.2, floor=0.01, ceiling=0.05),
    QuadraticLaw(),
    SampleBalanceLaw(),
    SampleBalanceLaw(target=0.2, integral=0.1),
)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    "bad",
    [
        measured(9, math.nan),
        measured(9, math.inf),
        measured(9, -0.5),
        measured(9, 0.1, tokens=0),
        measured(4, 0.1),
        measured(3, 0.1),
    ],
)
def test_a_bad_measurement_freezes_the_coefficient_and_is_counted(law: LawSettings, bad: Measurement) -> None:
    before = fed(law, [0.14, 0.13, 0.12, 0.11, 0.10])[-1]
    after = law_step(law, before, bad)
    assert read(law, after).frozen == 1
    assert read(law, after)._replace(frozen=0) == read(law, before)
    # The state without its counter is untouched: the next good measurement finds it as it was.
    clean, late = law_step(law, before, measured(10, 0.09)), law_step(law, after, measured(10, 0.09))
    assert read(law, late)._replace(frozen=0) == read(law, clean)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_goes_on_from_its_encoded_state(law: LawSettings) -> None:
    class Saved(msgspec.Struct, frozen=True, kw_only=True, tag=True):
        state: LawState

    before = fed(law, [0.14, 0.13, 0.25, 0.11, 0.10])[-1]
    restored = wire.decode(wire.encode(Saved(state=before)), Saved).state
    assert restored == before
    assert law_step(law, restored, measured(9, 0.09)) == law_step(law, before, measured(9, 0.09))


@pytest.mark.parametrize("law", LAWS)
def test_every_law_knows_the_mean_of_what_it_was_told(law: LawSettings) -> None:
    states = fed(law, [0.4, math.nan, 0.1, 0.1])
    assert [read(law, state).usual_entropy for state in states] == [
        None,
        pytest.approx(0.4),
        pytest.approx(0.4),
        pytest.approx(0.25),
        pytest.approx(0.2),
    ]


@pytest.mark.parametrize("law", LAWS)
def test_a_new_branch_is_newer_than_any_step_of_the_old_one(law: LawSettings) -> None:
    state = fed(law, [0.1] * 6)[-1]
    assert read(law, law_step(law, state, measured(2, 0.1, branch=1))).frozen == 0


@given(st.lists(st.one_of(ENTROPY, st.just(math.nan)), max_size=30), st.sampled_from(LAWS))
@settings(max_examples=80)
def test_no_stream_of_entropies_makes_a_coefficient_that_is_not_a_number(
    entropies: list[float], law: LawSettings
) -> None:
    for state in fed(law, entropies):
        reading = read(law, state)
        assert math.isfinite(reading.coefficient)
        # Two laws press entropy down too, the flagship so hard and no harder.
        lowest = -law.cooling_ratio * law.balance if isinstance(law, ThermostatLaw) else 0.0
        assert reading.coefficient >= lowest or isinstance(law, QuadraticLaw)
        assert -1.0 <= reading.sample_balance <= 1.0


def test_a_fixed_coefficient_stays_and_the_initial_entropy_is_known() -> None:
    law = FixedLaw(coefficient=0.02)
    state = fed(law, [0.3, 0.2, 0.1])[-1]
    reading = read(law, state)
    assert reading == (0.02, None, None, None, 0.3, 0, False, 0, 0.0, reading.usual_entropy, 0.3)


def test_the_band_law_waits_for_its_warm_up() -> None:
    law = BandLaw(initial=2e-3, floor=6e-4, ceiling=9e-3, low=0.15, high=0.24, rate=2e-3, warmup_steps=3)
    coefficients = [state.coefficient for state in fed(law, [0.01] * 5)]
    assert coefficients[:4] == [2e-3] * 4
    assert coefficients[4] > 2e-3
    assert (read(law, fed(law, [])[0]).low, read(law, fed(law, [])[0]).high) == (0.15, 0.24)


def test_the_anchored_law_aims_below_the_first_entropy() -> None:
    law = AnchoredLaw(anchor=0.4, rate=0.1)
    states = fed(law, [1.0, 0.5, 0.2, 0.1])
    assert [read(law, state).target for state in states] == [None, 0.4, 0.4, 0.4, 0.4]
    assert [state.coefficient for state in states] == pytest.approx([0.0, 0.0, 0.0, 0.02, 0.05])


@pytest.mark.parametrize("law", [BangBangLaw(), PiLaw(), QuadraticLaw(anchor=0.7), SampleBalanceLaw()])
def test_a_law_without_a_target_of_its_own_anchors_it_at_the_first_entropy(law: LawSettings) -> None:
    start, *states = fed(law, [1.0, 0.5, 0.2])
    assert (read(law, start).coefficient, read(law, start).sample_balance, read(law, start).target) == (0.0, 0.0, None)
    assert [read(law, state).target for state in states] == [0.7] * 3


@pytest.mark.parametrize("law", [BangBangLaw(target=0.2), PiLaw(target=0.2), QuadraticLaw(target=0.2)])
def test_a_law_with_a_target_of_its_own_keeps_it(law: LawSettings) -> None:
    assert {read(law, state).target for state in fed(law, [1.0, 0.5, 0.1])} == {0.2}
    assert read(law, fed(law, [1.0, 0.5, 0.1])[-1]).coefficient > 0.0


def test_the_bang_bang_bonus_acts_only_below_the_target_while_its_coefficient_goes_on() -> None:
    law = BangBangLaw(target=0.2, delta=1e-3, initial=2e-3)
    states = fed(law, [0.1, 0.1, 0.3, 0.3, 0.1])
    assert [state.coefficient for state in states] == pytest.approx([2e-3, 3e-3, 4e-3, 3e-3, 2e-3, 3e-3])
    assert [read(law, state).coefficient for state in states] == pytest.approx([0.0, 3e-3, 4e-3, 0.0, 0.0, 3e-3])


def test_the_pi_law_gives_no_bonus_while_the_first_entropy_is_measured_though_its_floor_is_above_nothing() -> None:
    law = PiLaw(floor=0.01, ceiling=0.05, proportional=0.1)
    coefficients = [state.coefficient for state in fed(law, [1.0, 1.0, 0.6, 0.0])]
    assert coefficients == pytest.approx([0.0, 0.01, 0.01, 0.01 + 0.1 * 0.1 + 0.01 * 0.1, 0.05])


def test_the_quadratic_law_pulls_the_entropy_down_too() -> None:
    law = QuadraticLaw(target=0.3, strength=5e-3)
    assert [state.coefficient for state in fed(law, [0.5, 0.3, 0.1])] == pytest.approx([0.0, -2e-3, 0.0, 2e-3])


def test_the_sample_balance_law_gives_no_bonus_and_favours_positive_samples_above_its_target() -> None:
    law = SampleBalanceLaw(target=0.3)
    states = fed(law, [0.5, 0.5, 0.1, 9.0])
    readings = [read(law, state) for state in states]
    assert {reading.coefficient for reading in readings} == {0.0}
    expected = [0.0, 0.2 + 0.002, 0.2 + 0.004, -0.2 + 0.002, 1.0]
    assert [reading.sample_balance for reading in readings] == pytest.approx(expected)


@pytest.mark.parametrize("law", [PiLaw(target=0.1, ceiling=0.3), SampleBalanceLaw(target=0.1)])
def test_a_linear_law_holds_its_target_on_a_plant_whose_entropy_falls_by_itself(law: LawSettings) -> None:
    state, entropy, course = initial_state(law), 0.2, []
    for step in range(1500):
        state = law_step(law, state, measured(step, entropy))
        reading = read(law, state)
        # What holds the entropy still is a bonus of 0.1, or a balance of −0.1.
        entropy *= math.exp(0.008 * ((reading.coefficient - reading.sample_balance) / 0.1 - 1.0))
        course.append(entropy)
    assert isinstance(state, PiState | SampleBalanceState)
    assert course[-1] == pytest.approx(0.1, rel=0.02)


def test_a_state_of_another_law_is_refused() -> None:
    with pytest.raises(ConfigError, match="FixedState came to a ThermostatLaw"):
        law_step(ThermostatLaw(balance=0.1, drift=0.01, anchor_orders=1), initial_state(FixedLaw()), measured(0, 0.1))
    assert isinstance(initial_state(FixedLaw()), FixedState)
