"""The control laws, against the papers' updates, against a small plant, and against bad measurements."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.controller.coefficient import (
    FixedState,
    LawState,
    anchored_step,
    band_step,
    initial_state,
    law_step,
    read,
)
from entrostat.controller.measurement import Measurement
from entrostat.protocol.entropy_settings import AnchoredLaw, BandLaw, FixedLaw, LawSettings, ThermostatLaw
from entrostat.protocol.errors import ConfigError
from entrostat.protocol.messages import PolicyVersion

ENTROPY = st.floats(0.0, 12.0)
THERMOSTAT = ThermostatLaw(balance=0.1, drift=0.008, anchor=0.7)
LAWS: tuple[LawSettings, ...] = (
    FixedLaw(coefficient=1e-3),
    BandLaw(initial=2e-3, floor=6e-4, ceiling=9e-3, low=0.15, high=0.24, rate=2e-3),
    AnchoredLaw(),
    THERMOSTAT,
)


def measured(step: int, entropy: float, tokens: int = 100, branch: int = 0) -> Measurement:
    return Measurement(version=PolicyVersion(branch=branch, step=step), entropy=entropy, tokens=tokens)


def fed(law: LawSettings, entropies: list[float]) -> list[LawState]:
    states = [initial_state(law)]
    for step, entropy in enumerate(entropies):
        states.append(law_step(law, states[-1], measured(step, entropy)))
    return states


# ── the papers' steps ────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(6e-4, 9e-3), ENTROPY, st.floats(0.0, 1.0))
@settings(max_examples=80, deadline=None)
def test_the_band_step_is_the_papers_update(coefficient: float, entropy: float, pull: float) -> None:
    low, high, rate, floor, ceiling, initial = 0.15, 0.24, 2e-3, 6e-4, 9e-3, 2e-3
    below = entropy - low if entropy < low else 0.0
    above = entropy - high if entropy > high else 0.0
    moved = coefficient - rate * (below + above + pull * (coefficient - initial))
    expected = floor if moved < floor else ceiling if moved > ceiling else moved
    got = band_step(
        coefficient, entropy, low=low, high=high, rate=rate, floor=floor, ceiling=ceiling, initial=initial, pull=pull
    )
    assert got == pytest.approx(expected, rel=1e-12)


@given(st.floats(6e-4, 9e-3), st.floats(0.15, 0.24))
@settings(max_examples=40, deadline=None)
def test_the_band_holds_inside(coefficient: float, entropy: float) -> None:
    got = band_step(coefficient, entropy, low=0.15, high=0.24, rate=2e-3, floor=6e-4, ceiling=9e-3)
    assert got == coefficient


def test_the_band_pushes_back_from_either_side() -> None:
    box: dict[str, Any] = {"low": 0.15, "high": 0.24, "rate": 2e-3, "floor": 6e-4, "ceiling": 9e-3}
    assert band_step(2e-3, 0.05, **box) > 2e-3
    assert band_step(2e-3, 0.50, **box) < 2e-3


@given(st.floats(0.0, 2.0), ENTROPY, st.floats(0.0, 3.0), st.floats(1e-4, 1.0))
@settings(max_examples=80, deadline=None)
def test_the_anchored_step_is_the_papers_update_and_never_negative(
    coefficient: float, entropy: float, target: float, rate: float
) -> None:
    got = anchored_step(coefficient, entropy, target=target, rate=rate)
    moved = coefficient + rate * (target - entropy)
    assert got == pytest.approx(moved if moved > 0 else 0.0, rel=1e-12, abs=1e-15)
    assert got >= 0.0
    assert anchored_step(coefficient, entropy, target=target, rate=rate, ceiling=0.5) <= 0.5


@pytest.mark.parametrize("entropy", [math.nan, math.inf, -math.inf])
def test_the_bare_steps_stand_still_without_a_number(entropy: float) -> None:
    assert band_step(2e-3, entropy, low=0.1, high=0.2, rate=1.0, floor=0.0, ceiling=1.0) == 2e-3
    assert anchored_step(2e-3, entropy, target=0.1, rate=1.0) == 2e-3


def test_settings_that_contradict_each_other_have_a_name() -> None:
    with pytest.raises(ConfigError, match="low < high"):
        band_step(0.1, 0.1, low=0.2, high=0.1, rate=1.0, floor=0.0, ceiling=1.0)
    with pytest.raises(ConfigError, match="low < high"):
        band_step(0.1, 0.1, low=0.1, high=0.2, rate=math.nan, floor=math.nan, ceiling=1.0)
    with pytest.raises(ConfigError, match="initial"):
        band_step(0.1, 0.1, low=0.1, high=0.2, rate=1.0, floor=0.0, ceiling=1.0, pull=0.5)
    with pytest.raises(ConfigError, match="finite target"):
        anchored_step(0.1, 0.1, target=math.nan, rate=1.0)


# ── every law ────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    assert after.coefficient == before.coefficient
    # The state without its counter is untouched: the next good measurement finds it as it was.
    clean, late = law_step(law, before, measured(10, 0.09)), law_step(law, after, measured(10, 0.09))
    assert clean.coefficient == late.coefficient


@pytest.mark.parametrize("law", LAWS)
def test_a_new_branch_is_newer_than_any_step_of_the_old_one(law: LawSettings) -> None:
    state = fed(law, [0.1] * 6)[-1]
    assert read(law, law_step(law, state, measured(2, 0.1, branch=1))).frozen == 0


@given(st.lists(st.one_of(ENTROPY, st.just(math.nan)), max_size=30), st.sampled_from(LAWS))
@settings(max_examples=80, deadline=None)
def test_no_stream_of_entropies_makes_a_coefficient_that_is_not_a_number(
    entropies: list[float], law: LawSettings
) -> None:
    for state in fed(law, entropies):
        assert math.isfinite(state.coefficient)
        assert state.coefficient >= 0.0


def test_a_fixed_coefficient_stays_and_the_initial_entropy_is_known() -> None:
    law = FixedLaw(coefficient=0.02)
    state = fed(law, [0.3, 0.2, 0.1])[-1]
    assert read(law, state) == (0.02, None, None, None, 0.3, 0, False, 0)


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


def test_a_state_of_another_law_is_refused() -> None:
    with pytest.raises(ConfigError, match="FixedState came to a ThermostatLaw"):
        law_step(ThermostatLaw(balance=0.1, drift=0.01, anchor_orders=1), initial_state(FixedLaw()), measured(0, 0.1))
    assert isinstance(initial_state(FixedLaw()), FixedState)
