"""What every law keeps of its measurements: H_0, −log π beside it, the bonus's usual entropy, and refusals."""

import math

import pytest
from msgspec.structs import replace

from entrostat.controller.coefficient import initial_state, law_step, read
from entrostat.controller.measurement import Intake, Measurement, admit
from entrostat.controller.state import Controller
from entrostat.protocol.entropy_settings import AnchoredLaw, FixedLaw, LawSettings, NucleusEntropy, ThermostatLaw
from tests.made_messages import Scene, run_of, version


def told(
    step: int, entropy: float, *, tokens: int = 10, bonus: float | None = None, surprise: float | None = None
) -> Measurement:
    """What a law is told of step `step`."""
    return Measurement(version=version(step), entropy=entropy, tokens=tokens, bonus=bonus, surprise=surprise)


def admitted(*measurements: Measurement, anchor_orders: int = 2) -> Intake:
    """What is kept of them."""
    intake = Intake()
    for measurement in measurements:
        intake = admit(intake, measurement, anchor_orders)
    return intake


def test_the_first_orders_make_both_anchors_weighted_by_tokens() -> None:
    kept = admitted(told(0, 0.1, surprise=0.4, tokens=30), told(1, 0.2, surprise=0.8, tokens=10), told(2, 9.0))
    assert kept.initial_entropy == pytest.approx(0.125)
    assert kept.initial_surprise == pytest.approx(0.5)


def test_the_usual_entropy_is_that_of_the_bonus() -> None:
    assert admitted(told(0, 0.1, bonus=0.3), told(1, 0.2, bonus=0.5)).usual_entropy == pytest.approx(0.4)
    assert admitted(told(0, 0.1), told(1, 0.2)).usual_entropy == pytest.approx(0.15)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -0.1])
def test_a_number_that_no_policy_can_have_is_refused_whichever_it_is(broken: float) -> None:
    for measurement in (told(0, broken), told(0, 0.1, bonus=broken), told(0, 0.1, surprise=broken)):
        assert admitted(measurement) == Intake(frozen=1)


@pytest.mark.parametrize("law", [ThermostatLaw(anchor_orders=1), AnchoredLaw()])
def test_an_anchor_of_nothing_is_refused_until_there_is_some_entropy(law: LawSettings) -> None:
    state = initial_state(law)
    for step in range(3):
        state = law_step(law, state, told(step, 0.0))
    assert read(law, state).initial_entropy is None
    assert (read(law, state).frozen, read(law, state).coefficient) == (3, 0.0)
    state = law_step(law, state, told(3, 0.2))
    assert read(law, state).initial_entropy == pytest.approx(0.2)


def test_a_law_without_an_anchor_takes_a_policy_without_entropy() -> None:
    law = FixedLaw(coefficient=0.1)
    assert read(law, law_step(law, initial_state(law), told(0, 0.0))).frozen == 0


def test_a_small_driving_entropy_takes_no_group_s_bonus() -> None:
    run = run_of(law=FixedLaw(coefficient=0.1))
    nucleus = replace(run, entropy=replace(run.entropy, estimator=NucleusEntropy()))
    scene = Scene(Controller(nucleus, ["a"] * 10))
    # The groups' −log π is 0.2 throughout, four times the entropy that drives the law.
    orders = [scene.step(entropy=0.2, clamped=0.05, sampled=0.2) for _ in range(3)]
    assert [group.weight > 0.0 for order in orders for group in order.groups] == [True] * 6
