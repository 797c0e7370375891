"""How an order's bonus is shared: normalised, capped, and nothing where it would do harm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.controller.allocation import allocate
from entrostat.controller.difficulty import Float64
from entrostat.protocol.entropy_settings import WeightSettings
from entrostat.protocol.messages import GroupReport, PolicyVersion, Status
from entrostat.protocol.moments import Moments


def group(correct: int, *, samples: int = 4, tokens: int = 10, surprise: float = 0.1) -> GroupReport:
    statuses: list[Status] = ["correct"] * correct
    statuses += ["wrong"] * (samples - correct)
    return GroupReport(
        lease_id=0,
        prompt_id=0,
        slot=0,
        incarnation=1,
        started=PolicyVersion(branch=0, step=0),
        rewards=tuple(float(status == "correct") for status in statuses),
        statuses=tuple(statuses),
        lengths=(tokens,) * samples,
        surprise=Moments(count=tokens * samples, mean=surprise),
        truncated=0,
    )


def shares(
    weights: list[float],
    groups: list[GroupReport],
    *,
    all_wrong_share: float = 1.0,
    cap: float = 4.0,
    normalise: bool = True,
) -> Float64:
    bounds = WeightSettings(all_wrong_share=all_wrong_share, cap=cap, normalise=normalise)
    return allocate(np.array(weights), groups, initial_surprise=1.0, settings=bounds)


def test_weights_are_normalised_by_tokens() -> None:
    groups = [group(1, tokens=10), group(2, tokens=30)]
    got = shares([1.0, 0.5], groups)
    # Σ n w = 40·1 + 120·0.5 = 100, N = 160.
    assert got == pytest.approx([1.6, 0.8])
    assert (40 * got[0] + 120 * got[1]) / 160 == pytest.approx(1.0)


def test_no_group_exceeds_the_cap() -> None:
    got = shares([1.0] + [0.01] * 30, [group(1)] * 31, cap=4.0)
    assert got[0] == 4.0
    assert got[1] < 1.0


def test_an_order_without_an_advantage_signal_gets_no_bonus() -> None:
    assert shares([1.0, 0.5], [group(0), group(4)]).tolist() == [0.0, 0.0]
    assert shares([1.0, 0.5], [group(0), group(3)])[0] > 0.0


def test_a_group_that_is_too_random_gets_no_bonus_and_the_others_no_more() -> None:
    calm, wild = group(2, surprise=1.9), group(2, surprise=2.1)
    assert shares([0.5, 0.5], [calm, wild]).tolist() == [1.0, 0.0]
    free = allocate(np.array([0.5, 0.5]), [calm, wild], initial_surprise=None, settings=WeightSettings())
    assert free.tolist() == [1.0, 1.0]


def test_all_wrong_groups_hold_at_most_their_share() -> None:
    got = shares([1.0, 1.0, 1.0, 0.5], [group(0), group(0), group(0), group(2)], all_wrong_share=0.25)
    assert got[:3].sum() == pytest.approx(0.25 * got.sum())
    assert shares([1.0, 1.0], [group(0), group(2)], all_wrong_share=0.0)[0] == 0.0


def test_weights_that_are_all_nothing_stay_nothing() -> None:
    assert shares([0.0, 0.0], [group(1), group(2)]).tolist() == [0.0, 0.0]


def test_raw_weights_stay_as_they_are() -> None:
    groups = [group(1, tokens=10), group(2, tokens=30), group(3)]
    assert shares([0.4, 0.1, 0.0], groups, normalise=False).tolist() == [0.4, 0.1, 0.0]


def test_raw_weights_obey_the_same_bounds() -> None:
    assert shares([0.8, 0.2], [group(1), group(2)], cap=0.5, normalise=False).tolist() == [0.5, 0.2]
    assert shares([0.8, 0.2], [group(0), group(4)], normalise=False).tolist() == [0.0, 0.0]
    assert shares([0.8, 0.2], [group(1, surprise=2.1), group(2)], normalise=False).tolist() == [0.0, 0.2]
    got = shares([0.8, 0.3], [group(0), group(2)], all_wrong_share=0.25, normalise=False)
    assert got == pytest.approx([0.1, 0.3])


GROUPS = st.lists(
    st.tuples(st.floats(0.0, 1.0), st.integers(0, 4), st.integers(0, 50), st.floats(0.0, 3.0)), min_size=1, max_size=12
)


@given(GROUPS, st.floats(0.0, 1.0), st.floats(1.0, 8.0), st.booleans())
@settings(max_examples=80)
def test_every_bound_holds_whatever_comes(
    drawn: list[tuple[float, int, int, float]], share: float, cap: float, normalise: bool
) -> None:
    groups = [group(correct, tokens=tokens, surprise=surprise) for _, correct, tokens, surprise in drawn]
    got = shares([weight for weight, *_ in drawn], groups, all_wrong_share=share, cap=cap, normalise=normalise)
    tokens = np.array([4 * tokens for _, _, tokens, _ in drawn], dtype=np.float64)
    mass = tokens * got
    wrong = np.array([correct == 0 for _, correct, *_ in drawn])
    assert np.all(np.isfinite(got))
    assert np.all((got >= 0.0) & (got <= cap))
    assert mass.sum() <= tokens.sum() * (1 + 1e-9)
    assert mass[wrong].sum() <= share * mass.sum() * (1 + 1e-9) + 1e-9
    assert not any(weight for weight, (*_, surprise) in zip(got, drawn, strict=True) if surprise > 2.0)
