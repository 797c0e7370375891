"""The controller and its law: what the law is told, and what becomes of its coefficient."""

import math
from typing import Literal

import pytest
from msgspec.structs import replace

from entrostat.controller.state import Controller
from entrostat.controller.thermostat import ThermostatState
from entrostat.protocol.entropy_settings import FixedLaw, FullEntropy, QuadraticLaw, SampleBalanceLaw, WeightSettings
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import LevelEntropy
from entrostat.protocol.settings import Stations
from tests.made_messages import Scene, run_of, sample, scene, version

# ── what the law is told ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_optimizers_momentum_reaches_the_law() -> None:
    def coefficient(momentum: float) -> float:
        run = replace(run_of(), learner=LearnerSettings(betas=(momentum, 0.999)))
        s = Scene(Controller(run, ["a"] * 10))
        for clamped in (0.2, 0.2, 0.2, 0.12, 0.12, 0.12):
            s.step(clamped=clamped)
        return s.controller.view().coefficient

    assert len({coefficient(momentum) for momentum in (0.5, 0.9, 0.98)}) == 3


def test_the_law_is_told_what_momentum_an_order_leaves() -> None:
    settings = run_of()
    learner = replace(settings.learner, betas=(0.9, 0.95), minibatches=2, epochs=2)
    law = Controller(replace(settings, learner=learner), ["a"] * 4).steering.law
    assert isinstance(law, ThermostatState)
    assert law.momentum == pytest.approx(0.9**4)


def test_the_law_is_driven_by_the_entropy_of_the_estimator() -> None:
    clamped, full = scene(), Scene(Controller(with_full_entropy(run_of()), ["a"] * 10))
    for s in (clamped, full):
        for _ in range(3):
            s.step(entropy=0.3, clamped=0.2)
    assert clamped.controller.view().initial_entropy == pytest.approx(0.2)
    assert full.controller.view().initial_entropy == pytest.approx(0.3)
    assert clamped.controller.view().target == pytest.approx(0.14)


def with_full_entropy(run: Stations) -> Stations:
    return replace(run, entropy=replace(run.entropy, estimator=FullEntropy()))


@pytest.mark.parametrize(
    ("measured", "name", "expected"), [("bonus", "clamped", 0.2), ("full", "full", 0.3), ("sampled", "sampled", 0.4)]
)
def test_the_run_says_which_entropy_drives_the_law(
    measured: Literal["bonus", "full", "sampled"], name: str, expected: float
) -> None:
    run = run_of(law=FixedLaw())
    s = Scene(Controller(replace(run, entropy=replace(run.entropy, measured=measured)), ["a"] * 10))
    s.step(entropy=0.3, clamped=0.2, sampled=0.4)
    assert s.controller.view().measured == name
    assert s.controller.steering.measured_entropy == expected


def test_batches_of_another_mix_of_levels_do_not_move_the_law() -> None:
    s = scene(batch=2)
    told = []
    for easy, hard in ((12, 12), (23, 1), (1, 23), (20, 4), (24, 0)):
        s.step(clamped=(0.1 * easy + 0.5 * hard) / 24, levels=mixed(easy, hard))
        told.append(s.controller.steering.measured_entropy)
    # An order has a group of each level, with as many tokens each; the last one's report has but one.
    assert told == pytest.approx([0.3] * 4 + [0.1])
    assert s.controller.view().initial_entropy == pytest.approx(0.3)
    assert s.controller.state().mix.shares == {"easy": 0.5, "hard": 0.5}


def mixed(easy: int, hard: int, *, h: tuple[float, float] = (0.1, 0.5)) -> tuple[LevelEntropy, ...]:
    return tuple(
        LevelEntropy(level=level, tokens=tokens, entropy=each, clamped_entropy=each, sampled_entropy=each)
        for level, tokens, each in (("easy", easy, h[0]), ("hard", hard, h[1]))
    )


def test_the_first_entropy_is_measured_at_the_mix_of_all_orders_that_make_it() -> None:
    s = scene(batch=1, staleness=0, prompts=40)
    levels = []
    for _ in range(3):
        order = s.step(clamped=0.9, levels=mixed(12, 12))
        levels.append(order.groups[0].level)
    hard = levels.count("hard") / 3
    assert 0 < hard < 1  # or the orders would all be of one mix
    assert s.controller.view().initial_entropy == pytest.approx(0.1 * (1 - hard) + 0.5 * hard)


def test_a_measurement_that_is_refused_leaves_the_mix_alone() -> None:
    s = scene(batch=2, staleness=0, prompts=40)
    s.step(clamped=0.3, levels=mixed(12, 12))
    before = s.controller.state().mix
    s.step(clamped=math.nan, levels=mixed(12, 12, h=(0.1, math.nan)))
    assert s.controller.state().mix == before
    assert s.controller.steering.measured_entropy == pytest.approx(0.3)
    s.step(clamped=0.3, levels=mixed(12, 12))
    assert s.controller.state().mix != before


def test_an_entropy_that_is_not_a_number_freezes_the_coefficient() -> None:
    s = scene()
    for _ in range(5):
        s.step()
    before = s.controller.view()
    s.step(entropy=float("nan"), clamped=float("nan"))
    after = s.controller.view()
    assert (after.frozen_updates, after.coefficient) == (1, before.coefficient)
    assert after.version == version(6)


# ── what an order carries ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_order_carries_the_balance_of_samples_and_the_usual_entropy() -> None:
    s = Scene(Controller(run_of(law=SampleBalanceLaw(target=0.1)), ["a"] * 10))
    orders = [s.step(clamped=clamped) for clamped in (0.3, 0.2, 0.1)]
    assert [order.coefficient for order in orders] == [0.0] * 3
    assert [order.sample_balance for order in orders] == pytest.approx([0.0, 0.202, 0.103])
    assert math.isnan(orders[0].usual_entropy)
    assert [order.usual_entropy for order in orders[1:]] == pytest.approx([0.3, 0.25])
    assert s.controller.view().sample_balance == pytest.approx(0.003)


def test_each_groups_coefficient_is_the_laws_times_its_weight() -> None:
    s = Scene(Controller(run_of(law=FixedLaw(coefficient=0.02), batch=8), ["easy", "hard"] * 20))
    for _ in range(8):
        order = s.step(correct=lambda prompt: 1 if prompt % 2 else 3)
    assert order.coefficient == 0.02
    assert all(group.coefficient == pytest.approx(0.02 * group.weight) for group in order.groups)
    assert sum(group.weight for group in order.groups) == pytest.approx(8.0)
    by_level = {level: [g.weight for g in order.groups if g.level == level] for level in ("easy", "hard")}
    assert min(by_level["hard"]) > max(by_level["easy"])


def test_the_weight_can_be_that_of_the_groups_own_pass_rate() -> None:
    weight = WeightSettings(difficulty="group", minimum=0.0, normalise=False)
    s = Scene(Controller(run_of(law=FixedLaw(coefficient=0.1), weight=weight, batch=4), ["a"] * 40))
    sample(s, [3, 1, 2, 1])
    order = s.order()
    assert order is not None
    assert [group.weight for group in order.groups] == [0.0, 0.5, 0.0, 0.5]
    assert [group.coefficient for group in order.groups] == pytest.approx([0.0, 0.05, 0.0, 0.05])


def test_entropy_is_pressed_down_in_all_groups_alike() -> None:
    law = QuadraticLaw(target=0.1, strength=1.0)
    s = Scene(Controller(run_of(law=law, weight=WeightSettings(), batch=4), ["a"] * 40))
    s.step(clamped=0.3)
    sample(s, [0, 1, 2, 3])
    order = s.order()
    assert order is not None
    assert {group.coefficient for group in order.groups} == {order.coefficient}
    assert order.coefficient == pytest.approx(-0.4)


def test_the_view_tells_how_long_the_coefficient_has_stood_at_its_ceiling() -> None:
    s = scene()
    for _ in range(12):
        s.step(entropy=0.5, clamped=0.5)
    assert s.controller.view().ceiling_orders == 0
    for _ in range(12):
        s.step(entropy=1e-4, clamped=1e-4)
    assert s.controller.view().ceiling_orders == s.controller.reading.ceiling_orders > 0


def test_an_order_without_a_signal_is_not_pressed_down_either() -> None:
    s = Scene(Controller(run_of(law=QuadraticLaw(target=0.1), staleness=0), ["a"] * 10))
    s.step(clamped=0.3)
    assert s.controller.view().coefficient < 0.0
    assert [group.coefficient for group in s.step(clamped=0.3, correct=lambda _: 0).groups] == [0.0, 0.0]
    assert all(group.coefficient < 0.0 for group in s.step(clamped=0.3).groups)


def test_the_law_is_told_what_share_of_its_coefficient_acted() -> None:
    """The token mean of an order's weights: 1 as a rule, 0 where no group has an advantage."""
    s = scene(staleness=0, prompts=40)
    for correct, share in ((2, 1.0), (0, 0.0), (2, 1.0)):
        for _ in range(3):
            rights, sent = [correct] * 40, s.controller.reading.coefficient
            s.step(clamped=0.05, correct=rights.__getitem__)
            state = s.controller.steering.law
            assert isinstance(state, ThermostatState)
            assert state.under_way in ((), (pytest.approx(share * sent),))
