"""The laws' bare steps, against the papers' updates and with arguments that make no sense."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.controller.updates import (
    anchored_step,
    band_step,
    bang_bang_step,
    pi_step,
    quadratic_coefficient,
    sample_balance_step,
)
from entrostat.protocol.errors import ConfigError
from tests.made_measurements import ENTROPY

# ── the papers' steps ────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(6e-4, 9e-3), ENTROPY, st.floats(0.0, 1.0))
@settings(max_examples=80)
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
@settings(max_examples=40)
def test_the_band_holds_inside(coefficient: float, entropy: float) -> None:
    got = band_step(coefficient, entropy, low=0.15, high=0.24, rate=2e-3, floor=6e-4, ceiling=9e-3)
    assert got == coefficient


def test_the_band_pushes_back_from_either_side() -> None:
    box: dict[str, Any] = {"low": 0.15, "high": 0.24, "rate": 2e-3, "floor": 6e-4, "ceiling": 9e-3}
    assert band_step(2e-3, 0.05, **box) > 2e-3
    assert band_step(2e-3, 0.50, **box) < 2e-3


@given(st.floats(0.0, 2.0), ENTROPY, st.floats(0.0, 3.0), st.floats(1e-4, 1.0))
@settings(max_examples=80)
def test_the_anchored_step_is_the_papers_update_and_never_negative(
    coefficient: float, entropy: float, target: float, rate: float
) -> None:
    got = anchored_step(coefficient, entropy, target=target, rate=rate)
    moved = coefficient + rate * (target - entropy)
    assert got == pytest.approx(moved if moved > 0 else 0.0, rel=1e-12, abs=1e-15)
    assert got >= 0.0
    assert anchored_step(coefficient, entropy, target=target, rate=rate, ceiling=0.5) <= 0.5


@given(st.floats(0.0, 5e-3), ENTROPY, st.floats(0.0, 3.0))
@settings(max_examples=80)
def test_the_bang_bang_step_is_the_papers_update(coefficient: float, entropy: float, target: float) -> None:
    got = bang_bang_step(coefficient, entropy, target=target, delta=1e-4, floor=0.0, ceiling=5e-3)
    expected = coefficient + 1e-4 if entropy < target else coefficient - 1e-4
    assert got == sorted((0.0, expected, 5e-3))[1]


def test_bang_bang_moves_one_step_for_any_error_and_stops_at_its_ends() -> None:
    box: dict[str, float] = {"target": 0.2, "delta": 1e-4, "floor": 0.0, "ceiling": 5e-3}
    assert bang_bang_step(1e-3, 0.19, **box) == bang_bang_step(1e-3, 0.0, **box) == pytest.approx(1.1e-3)
    assert bang_bang_step(1e-3, 0.2, **box) == pytest.approx(0.9e-3)
    assert bang_bang_step(5e-3, 0.1, **box) == 5e-3
    assert bang_bang_step(0.0, 0.3, **box) == 0.0


PI: dict[str, float] = {"proportional": 0.5, "integral": 0.1}


def pi_course(entropies: list[float], *, floor: float, ceiling: float, sign: float) -> list[float]:
    """PI with conditional integration as a textbook has it: the sum of errors, and a clamp that also holds the sum."""
    summed, outputs = 0.0, []
    for entropy in entropies:
        error = sign * (0.3 - entropy)
        wanted = PI["proportional"] * error + PI["integral"] * (summed + error)
        beyond = (wanted > ceiling and error > 0) or (wanted < floor and error < 0)
        summed = summed if beyond else summed + error
        outputs.append(sorted((floor, wanted, ceiling))[1])
    return outputs


@given(st.lists(ENTROPY, min_size=1, max_size=40))
@settings(max_examples=60)
def test_proportional_and_integral_action_are_the_textbooks(entropies: list[float]) -> None:
    bonus, balance, of_bonus, of_balance = 0.0, 0.0, 0.0, 0.0
    expected = pi_course(entropies, floor=0.0, ceiling=0.2, sign=1.0)
    balanced = pi_course(entropies, floor=-1.0, ceiling=1.0, sign=-1.0)
    for entropy, want, want_balance in zip(entropies, expected, balanced, strict=True):
        bonus, of_bonus = pi_step(bonus, entropy, accumulated=of_bonus, target=0.3, floor=0.0, ceiling=0.2, **PI)
        balance, of_balance = sample_balance_step(balance, entropy, accumulated=of_balance, target=0.3, **PI)
        assert bonus == pytest.approx(want, abs=1e-9)
        assert balance == pytest.approx(want_balance, abs=1e-9)
        # An integral that starts in the box stays in it: nothing to unwind.
        assert 0.0 <= of_bonus <= 0.2
        assert -1.0 <= of_balance <= 1.0


def test_an_integral_that_was_saturated_for_long_lets_go_at_once() -> None:
    bonus, accumulated = 0.0, 0.0
    for _ in range(1000):
        bonus, accumulated = pi_step(bonus, 0.1, accumulated=accumulated, target=0.3, floor=0.0, ceiling=0.2, **PI)
    assert bonus == 0.2
    bonus, accumulated = pi_step(bonus, 0.5, accumulated=accumulated, target=0.3, floor=0.0, ceiling=0.2, **PI)
    assert bonus < 0.1


def test_without_gains_there_is_no_action_and_with_one_alone_the_other_is_still() -> None:
    box: dict[str, float] = {"target": 0.3, "floor": -9.0, "ceiling": 9.0}
    assert pi_step(0.0, 0.1, accumulated=0.0, proportional=0.0, integral=0.0, **box) == (0.0, 0.0)
    assert pi_step(0.0, 0.1, accumulated=0.0, proportional=2.0, integral=0.0, **box) == pytest.approx((0.4, 0.0))
    coefficient, accumulated = pi_step(0.0, 0.1, accumulated=1.0, proportional=0.0, integral=2.0, **box)
    assert coefficient == accumulated == pytest.approx(1.4)


@given(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(1e-4, 1.0))
@settings(max_examples=60)
def test_the_quadratic_coefficient_is_the_slope_of_the_squared_error(
    entropy: float, target: float, strength: float
) -> None:
    def loss(at: float) -> float:
        return strength * (at - target) ** 2

    slope = (loss(entropy + 1e-4) - loss(entropy - 1e-4)) / 2e-4
    assert quadratic_coefficient(entropy, target=target, strength=strength) == pytest.approx(-slope, abs=1e-7)


# ── what makes no sense ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("entropy", [math.nan, math.inf, -math.inf])
def test_the_bare_steps_stand_still_without_a_number(entropy: float) -> None:
    assert bang_bang_step(2e-3, entropy, target=0.1, delta=1e-4, floor=0.0, ceiling=1.0) == 2e-3
    assert pi_step(2e-3, entropy, accumulated=0.1, target=0.1, floor=0.0, ceiling=1.0, **PI) == (2e-3, 0.1)
    assert sample_balance_step(0.3, entropy, accumulated=0.1, target=0.1, **PI) == (0.3, 0.1)
    assert band_step(2e-3, entropy, low=0.1, high=0.2, rate=1.0, floor=0.0, ceiling=1.0) == 2e-3
    assert anchored_step(2e-3, entropy, target=0.1, rate=1.0) == 2e-3


def test_settings_that_contradict_each_other_have_a_name() -> None:
    with pytest.raises(ConfigError, match="low < high"):
        band_step(0.1, 0.1, low=0.2, high=0.1, rate=1.0, floor=0.0, ceiling=1.0)
    with pytest.raises(ConfigError, match="low < high"):
        band_step(0.1, 0.1, low=0.1, high=0.2, rate=1.0, floor=math.nan, ceiling=1.0)
    with pytest.raises(ConfigError, match="initial"):
        band_step(0.1, 0.1, low=0.1, high=0.2, rate=1.0, floor=0.0, ceiling=1.0, pull=0.5)
    with pytest.raises(ConfigError, match="finite target"):
        anchored_step(0.1, 0.1, target=math.nan, rate=1.0)
    for target, delta, floor in ((math.nan, 0.1, 0.0), (0.1, 0.0, 0.0), (0.1, math.nan, 0.0), (0.1, 0.1, 2.0)):
        with pytest.raises(ConfigError, match="bang-bang law needs"):
            bang_bang_step(0.1, 0.1, target=target, delta=delta, floor=floor, ceiling=1.0)
    for target, gain, floor in ((math.inf, 1.0, 0.0), (0.1, -1.0, 0.0), (0.1, math.nan, 0.0), (0.1, 1.0, 2.0)):
        with pytest.raises(ConfigError, match="pi law needs"):
            pi_step(0.1, 0.1, accumulated=0.0, target=target, proportional=gain, integral=0.1, floor=floor, ceiling=1.0)
    for target, gain in ((math.nan, 1.0), (0.1, -1.0)):
        with pytest.raises(ConfigError, match="sample-balance law needs"):
            sample_balance_step(0.1, 0.1, accumulated=0.0, target=target, proportional=1.0, integral=gain)
    for entropy, target, strength in ((math.nan, 0.1, 1.0), (0.1, math.nan, 1.0), (0.1, 0.1, 0.0)):
        with pytest.raises(ConfigError, match="quadratic law needs"):
            quadratic_coefficient(entropy, target=target, strength=strength)


BARE: dict[str, Callable[..., object]] = {
    "band": partial(band_step, 0.1, 0.2, low=0.1, high=0.3, rate=0.1, floor=0.0, ceiling=1.0, initial=0.1, pull=0.1),
    "anchored": partial(anchored_step, 0.1, 0.2, target=0.3, rate=0.1, ceiling=1.0),
    "bang_bang": partial(bang_bang_step, 0.1, 0.2, target=0.3, delta=0.1, floor=0.0, ceiling=1.0),
    "pi": partial(
        pi_step, 0.1, 0.2, accumulated=0.0, target=0.3, proportional=1.0, integral=0.1, floor=0.0, ceiling=1.0
    ),
    "sample_balance": partial(
        sample_balance_step, 0.1, 0.2, accumulated=0.0, target=0.3, proportional=1.0, integral=0.1
    ),
}


@pytest.mark.parametrize(
    ("law", "name"), [(law, name) for law, step in BARE.items() for name in cast("partial[object]", step).keywords]
)
def test_no_argument_of_a_bare_step_may_be_nan(law: str, name: str) -> None:
    with pytest.raises(ConfigError, match="nan"):
        BARE[law](**{name: math.nan})


@pytest.mark.parametrize("law", BARE)
def test_a_coefficient_that_is_nan_is_refused(law: str) -> None:
    step = cast("partial[object]", BARE[law])
    with pytest.raises(ConfigError, match="nan"):
        step.func(math.nan, 0.2, **step.keywords)


@pytest.mark.parametrize("law", ["band", "anchored"])
def test_a_rate_that_pushes_away_is_refused(law: str) -> None:
    with pytest.raises(ConfigError, match=r"rate = -0\.1"):
        BARE[law](rate=-0.1)
