"""The controller as a whole: one event at a time, and snapshots to go on from."""

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from entrostat.controller.events import Missing, Published, StepReported, Ticked
from entrostat.controller.state import Controller, ControllerSnapshot
from entrostat.controller.summary import summarise
from entrostat.controller.thermostat import ThermostatState
from entrostat.protocol import wire
from entrostat.protocol.entropy_settings import FixedLaw, FullEntropy, QuadraticLaw, SampleBalanceLaw, WeightSettings
from entrostat.protocol.errors import CheckpointDamaged, TaskError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import GroupsMissing, Lease, LeaseCounts, LevelEntropy, PulseReply, TrainOrder
from entrostat.protocol.moments import Moments
from entrostat.protocol.settings import Stations
from tests.made_messages import (
    LEASE_SECONDS,
    Scene,
    frame,
    group_of,
    manifest,
    run_of,
    scene,
    step_of,
    sums_up,
    version,
)

# ── one thing at a time ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_round_goes_from_lease_to_the_next_version() -> None:
    s = scene(batch=2, staleness=1)
    order = s.step()
    assert order.version == version(0)
    assert len(order.groups) == 2
    assert s.controller.version == version(1)
    assert s.controller.counts == LeaseCounts(granted=4, ready=2, trained=2)
    assert sorted(s.discarded) == sorted(group.lease_id for group in order.groups)


def test_an_order_stays_the_same_until_its_step_is_reported() -> None:
    s = scene()
    assert s.order() is None
    s.pulse(reports=tuple(group_of(lease) for lease in s.pulse(room=4).leases))
    order = s.order()
    assert order is not None
    assert s.order() is order
    s.apply(StepReported(report=step_of(order), at=0.0))
    after = s.order()
    assert after is not None
    assert after.version == version(1)
    assert {g.lease_id for g in after.groups}.isdisjoint(g.lease_id for g in order.groups)


def test_a_repeated_step_report_changes_nothing() -> None:
    s = scene()
    order = s.step()
    before = frame(s.controller)
    assert s.apply(StepReported(report=step_of(order), at=0.0)) == ()
    assert frame(s.controller) == before


def test_an_actor_gets_the_newest_manifest_until_it_serves_it() -> None:
    s = scene()
    assert s.pulse().manifest is None
    s.apply(Published(manifest=manifest(0)))
    assert s.pulse().manifest is None
    s.apply(Published(manifest=manifest(1)))
    s.apply(Published(manifest=manifest(0)))  # came late
    offered = s.pulse(serves=0).manifest
    assert offered is not None
    assert offered.version == version(1)
    assert s.pulse(serves=1).manifest is None


def test_an_older_life_is_fenced_and_its_leases_run_out_at_once() -> None:
    s = scene()
    mine = s.pulse(room=2).leases
    assert not s.pulse(incarnation=2).fenced
    assert s.discarded == [lease.id for lease in mine]
    reply = s.pulse(incarnation=1, room=9, running=(mine[0].id,), reports=(group_of(mine[1]),))
    assert reply == PulseReply(leases=(), ended=(mine[0].id,), manifest=None, fenced=True)
    view = s.controller.view()
    assert (s.controller.fenced_pulses, view.late_reports, view.leases.expired) == (1, 1, 2)
    again = s.pulse(incarnation=2, room=2).leases
    assert {lease.prompt_id for lease in again} == {lease.prompt_id for lease in mine}


def test_the_group_of_a_late_report_is_discarded_but_never_one_that_is_still_wanted() -> None:
    s = scene()
    late, ready = s.pulse(room=2).leases
    s.pulse(reports=(group_of(ready),))
    s.at = LEASE_SECONDS + 1.0
    s.apply(Ticked(at=s.at))
    s.discarded.clear()
    s.pulse(reports=(group_of(late), group_of(ready)))
    assert s.discarded == [late.id]
    assert s.controller.view().late_reports == 2


def test_groups_that_the_buffer_lost_are_sampled_again_and_the_others_ordered_again() -> None:
    s = scene(batch=2, staleness=0)
    s.pulse(reports=tuple(group_of(lease) for lease in s.pulse(room=2).leases))
    order = s.order()
    assert order is not None
    gone, kept = order.groups
    missing = GroupsMissing(version=order.version, lease_ids=(gone.lease_id,))
    s.apply(Missing(missing=missing, at=0.0))
    assert s.order() is None
    (lease,) = s.pulse(room=9).leases
    assert lease.prompt_id == gone.prompt_id
    s.pulse(reports=(group_of(lease),))
    second = s.order()
    assert second is not None
    assert {group.lease_id for group in second.groups} == {kept.lease_id, lease.id}
    s.apply(Missing(missing=replace(missing, version=version(7)), at=0.0))  # of some other order
    assert s.order() is second


def test_a_straggler_that_comes_too_late_for_its_order_is_never_trained() -> None:
    s = scene(batch=2, staleness=1)
    leases = s.pulse(room=4).leases
    straggler = leases[0]
    s.pulse(running=(straggler.id,), reports=tuple(group_of(lease) for lease in leases[1:]))
    for step in range(2):
        order = s.order()
        if order is None:
            more = s.pulse(running=(straggler.id,), room=1).leases
            s.pulse(running=(straggler.id,), reports=tuple(group_of(lease, started=step) for lease in more))
            order = s.order()
        assert order is not None
        s.apply(StepReported(report=step_of(order), at=0.0))
        s.serves = step + 1
        s.apply(Published(manifest=manifest(s.serves)))
    more = s.pulse(running=(straggler.id,), room=9).leases
    s.discarded.clear()
    s.pulse(reports=(group_of(straggler), *(group_of(lease, started=2) for lease in more)))
    order = s.order()
    assert order is not None
    assert order.version == version(2)
    assert straggler.id not in {group.lease_id for group in order.groups}
    assert s.controller.counts.stale == 1
    assert s.discarded == [straggler.id]
    assert s.pulse(room=1).leases[0].prompt_id == straggler.prompt_id


def test_the_optimizers_momentum_reaches_the_law() -> None:
    def coefficient(momentum: float) -> float:
        run = replace(run_of(), learner=LearnerSettings(betas=(momentum, 0.999)))
        s = Scene(Controller(run, ["a"] * 10))
        for clamped in (0.2, 0.2, 0.2, 0.12, 0.12, 0.12):
            s.step(clamped=clamped)
        return s.controller.view().coefficient

    assert len({coefficient(momentum) for momentum in (0.5, 0.9, 0.98)}) == 3


def test_the_law_is_driven_by_the_entropy_of_the_estimator() -> None:
    clamped, full = scene(), Scene(Controller(with_full_entropy(run_of()), ["a"] * 10))
    for s in (clamped, full):
        for _ in range(3):
            s.step(entropy=0.3, clamped=0.2)
    assert clamped.controller.view().initial_entropy == pytest.approx(0.2)
    assert full.controller.view().initial_entropy == pytest.approx(0.3)
    assert clamped.controller.view().target == pytest.approx(0.14)


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
    assert s.controller.snapshot().mix.shares == {"easy": 0.5, "hard": 0.5}


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
    before = s.controller.snapshot().mix
    s.step(clamped=math.nan, levels=mixed(12, 12, h=(0.1, math.nan)))
    assert s.controller.snapshot().mix == before
    assert s.controller.steering.measured_entropy == pytest.approx(0.3)
    s.step(clamped=0.3, levels=mixed(12, 12))
    assert s.controller.snapshot().mix != before


def test_an_order_carries_the_balance_of_samples_and_the_usual_entropy() -> None:
    s = Scene(Controller(run_of(law=SampleBalanceLaw(target=0.1)), ["a"] * 10))
    orders = [s.step(clamped=clamped) for clamped in (0.3, 0.2, 0.1)]
    assert [order.coefficient for order in orders] == [0.0] * 3
    assert [order.sample_balance for order in orders] == pytest.approx([0.0, 0.202, 0.103])
    assert math.isnan(orders[0].usual_entropy)
    assert [order.usual_entropy for order in orders[1:]] == pytest.approx([0.3, 0.25])
    assert s.controller.view().sample_balance == pytest.approx(0.003)


def with_full_entropy(run: Stations) -> Stations:
    return replace(run, entropy=replace(run.entropy, estimator=FullEntropy()))


def test_each_groups_coefficient_is_the_laws_times_its_weight() -> None:
    s = Scene(Controller(run_of(law=FixedLaw(coefficient=0.02), batch=8), ["easy", "hard"] * 20))
    for _ in range(8):
        order = s.step(correct=lambda prompt: 1 if prompt % 2 else 3)
    assert order.coefficient == 0.02
    assert all(group.coefficient == pytest.approx(0.02 * group.weight) for group in order.groups)
    assert sum(group.weight for group in order.groups) == pytest.approx(8.0)
    by_level = {level: [g.weight for g in order.groups if g.level == level] for level in ("easy", "hard")}
    assert min(by_level["hard"]) > max(by_level["easy"])


def test_an_entropy_that_is_not_a_number_freezes_the_coefficient() -> None:
    s = scene()
    for _ in range(5):
        s.step()
    before = s.controller.view()
    s.step(entropy=float("nan"), clamped=float("nan"))
    after = s.controller.view()
    assert (after.frozen_updates, after.coefficient) == (1, before.coefficient)
    assert after.version == version(6)


def test_the_view_tells_of_the_last_order() -> None:
    s = scene(batch=2, staleness=1)
    s.step(correct=lambda _: 1)
    s.step(correct=lambda _: 1)
    view = s.controller.view()
    assert (view.reward, view.pass_rate, view.statuses) == (0.25, 0.25, (2, 6, 0, 0, 0))
    assert (view.response_tokens, view.truncated) == (24, 2)
    assert view.actor_entropy == pytest.approx(0.2)
    assert view.staleness == (0, 2)  # leased at version 0, ordered at version 1
    assert view.actor_ages == pytest.approx((math.nan, 0.2), nan_ok=True)
    assert sum(view.difficulty) == 6
    assert view.actors == 1
    s.at += LEASE_SECONDS + 1.0
    s.apply(Ticked(at=s.at))
    assert s.controller.view().actors == 0


def test_the_view_tells_how_long_the_coefficient_has_stood_at_its_ceiling() -> None:
    s = scene()
    for _ in range(12):
        s.step(entropy=0.5, clamped=0.5)
    assert s.controller.view().ceiling_orders == 0
    for _ in range(12):
        s.step(entropy=1e-4, clamped=1e-4)
    assert s.controller.view().ceiling_orders == s.controller.reading.ceiling_orders > 0


def test_a_group_older_than_allowed_shows_in_the_summary() -> None:
    lease = scene().pulse(room=1).leases[0]
    reports = [group_of(lease, started=step) for step in (5, 4, 2, 2)]
    assert summarise(reports, 5, max_staleness=1).staleness == (1, 1, 0, 2)
    assert summarise(reports[:1], 5, max_staleness=1).staleness == (1, 0)


SURPRISES = st.lists(st.floats(0.0, 12.0), max_size=6)  # −log μ of a group's tokens, nats


@given(st.lists(st.tuples(st.integers(0, 4), SURPRISES), min_size=1, max_size=8), st.integers(0, 3))
def test_what_the_actors_saw_is_by_age_the_mean_over_the_tokens(
    groups: list[tuple[int, list[float]]], bound: int
) -> None:
    lease = scene().pulse(room=1).leases[0]
    reports = [
        replace(group_of(lease, started=10 - age), surprise=Moments().observe(np.array(tokens)))
        for age, tokens in groups
    ]
    left_out = [replace(group_of(lease, started=9), surprise=Moments(count=100, mean=50.0))]  # an order's alone count
    found = summarise(reports, 10, bound, left_out)
    assert len(found.actor_ages) == len(found.staleness)
    for age, mean in enumerate(found.actor_ages):
        tokens = [token for one, many in groups if one == age for token in many]
        assert mean == pytest.approx(sum(tokens) / len(tokens) if tokens else math.nan, nan_ok=True)


def test_an_old_policys_entropy_is_not_that_of_a_new_one() -> None:
    lease = scene().pulse(room=1).leases[0]
    seen = {5: Moments(count=2, mean=0.1), 3: Moments(count=6, mean=0.5)}
    reports = [replace(group_of(lease, started=step), surprise=surprise) for step, surprise in seen.items()]
    found = summarise(reports, 5, max_staleness=1)
    assert found.actor_ages == pytest.approx((0.1, math.nan, 0.5), nan_ok=True)
    assert found.actor_entropy == pytest.approx(0.4)  # eight tokens


def test_no_prompts_are_an_error_with_a_name() -> None:
    with pytest.raises(TaskError, match="no prompts"):
        Controller(run_of(), [])


# ── a filter ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def sample(s: Scene, corrects: list[int]) -> list[Lease]:
    """Takes a lease for each group and finishes it with so many right of four."""
    leases = []
    for correct in corrects:
        (lease,) = s.pulse(room=1).leases
        s.pulse(reports=(group_of(lease, correct=correct),))
        leases.append(lease)
    return leases


def trained(s: Scene) -> TrainOrder:
    order = s.order()
    assert order is not None
    s.apply(StepReported(report=step_of(order), at=s.at))
    return order


def test_what_is_filtered_is_discarded_at_once_and_yet_observed_and_summed_up() -> None:
    s = scene(batch=2, staleness=0, law=FixedLaw(), refill=3.0)
    leases = sample(s, [4, 0, 1, 4, 3])
    silent = [leases[0].id, leases[1].id, leases[3].id]
    assert s.discarded == silent
    order = trained(s)
    assert [(group.lease_id, group.in_policy) for group in order.groups] == [
        (leases[2].id, True),
        (leases[4].id, True),
    ]
    view = s.controller.view()
    # Over all five groups: a mean over the two that taught something would be 0.5 whatever the policy does.
    assert (view.reward, view.pass_rate, view.statuses) == (0.6, 0.6, (12, 8, 0, 0, 0))
    assert (view.response_tokens, view.truncated) == (5 * 12, 5)
    assert view.staleness == (2,)
    assert view.leases == LeaseCounts(granted=5, trained=2, filtered=3)
    assert sum(view.difficulty) == 5


def test_each_filtered_group_counts_in_one_summary() -> None:
    s = scene(batch=1, staleness=1, law=FixedLaw(), refill=3.0, prompts=20)
    sample(s, [4, 1])
    order = s.order()
    sample(s, [0])  # while the learner is busy
    assert order is not None
    assert s.controller.view().pass_rate == 5 / 8
    s.apply(Missing(missing=GroupsMissing(version=order.version, lease_ids=(order.groups[0].lease_id,)), at=0.0))
    sample(s, [3])
    trained(s)
    assert s.controller.view().pass_rate == (4 + 0 + 3) / 12
    s.serves = 1
    s.apply(Published(manifest=manifest(1)))
    sample(s, [2])
    order = s.order()
    assert order is not None
    sample(s, [4])  # while the learner is busy
    s.apply(StepReported(report=step_of(order), at=0.0))
    assert s.controller.view().pass_rate == 0.5
    sample(s, [1])
    trained(s)
    assert s.controller.view().pass_rate == (4 + 1) / 8


def test_all_wrong_groups_come_along_outside_the_policy_term() -> None:
    s = scene(batch=2, staleness=0, law=FixedLaw(coefficient=0.1), refill=3.0)
    older, newer, first, second = sample(s, [0, 0, 1, 3])
    assert s.discarded == [older.id]
    order = trained(s)
    assert [(group.lease_id, group.in_policy) for group in order.groups] == [
        (first.id, True),
        (second.id, True),
        (newer.id, False),
    ]
    along = order.groups[2]
    assert 0.0 < along.weight <= 0.25 * sum(group.weight for group in order.groups) * (1 + 1e-9)
    assert along.coefficient == pytest.approx(0.1 * along.weight)
    assert newer.id in s.discarded
    assert s.controller.counts == LeaseCounts(granted=4, trained=3, filtered=1)


def test_all_wrong_groups_stay_behind_while_the_law_gives_no_bonus() -> None:
    s = scene(batch=2, staleness=0, refill=3.0)  # the thermostat measures H_0 first
    wrong, *_ = sample(s, [0, 1, 3])
    assert s.discarded == []
    assert all(group.in_policy for group in trained(s).groups)
    assert s.discarded[0] == wrong.id
    assert s.controller.counts.filtered == 1


def test_a_run_without_any_signal_goes_on_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    s = scene(batch=2, staleness=0, refill=2.0, prompts=40)
    for step in range(5):
        sample(s, [4, 0, 4, 0])
        order = trained(s)
        assert [group.weight for group in order.groups] == [0.0, 0.0]
        s.serves = step + 1
        s.apply(Published(manifest=manifest(s.serves)))
    assert s.controller.counts == LeaseCounts(granted=20, trained=10, filtered=10)
    assert s.controller.filled_up == 10
    told = [record.getMessage() for record in caplog.records if record.name.endswith("state")]
    assert [message.split("(")[1] for message in told] == ["1 orders so far)", "2 orders so far)", "4 orders so far)"]


def test_without_a_filter_equal_rewards_are_trained_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    s = scene(batch=2, staleness=0)
    sample(s, [4, 0])
    assert len(trained(s).groups) == 2
    assert (s.controller.filled_up, s.controller.counts.filtered, caplog.records) == (0, 0, [])


def test_a_later_branch_goes_on_from_the_counts_of_a_filtered_run() -> None:
    s = scene(batch=4, staleness=0, law=FixedLaw(coefficient=0.1), refill=1.5, prompts=40)
    sample(s, [4, 4, 4, 1, 1, 1])
    trained(s)
    s.serves = 1
    s.apply(Published(manifest=manifest(1)))
    wrong, solved = sample(s, [0, 4])
    snapshot = wire.decode(wire.encode(s.controller.snapshot()), ControllerSnapshot)
    run = run_of(batch=4, staleness=0, law=FixedLaw(coefficient=0.1), refill=1.5)
    later = Scene(Controller(run, ["easy", "hard"] * 20, 1, 1, snapshot), branch=1, step=1)
    # The all-wrong group waited: its lease is rewound, and its prompt leased again; the solved one is consumed.
    assert later.controller.counts == LeaseCounts(granted=8, trained=4, filtered=3, rewound=1)
    assert sums_up(later.controller.counts)
    assert later.controller.filled_up == 1
    assert [lease.prompt_id for lease in later.pulse(room=1).leases] == [wrong.prompt_id]
    assert solved.prompt_id not in later.controller.snapshot().position.returned.tolist()


def test_the_tokens_of_filtered_groups_count_in_the_mix_of_levels() -> None:
    s = scene(batch=1, staleness=0, law=FixedLaw(), refill=4.0, prompts=40)
    leases = sample(s, [4, 4, 0, 1])
    hard = sum(lease.prompt_id % 2 for lease in leases)
    trained(s)
    assert s.controller.snapshot().mix.shares.get("hard", 0.0) == hard / 4
    assert 0 < hard < 4


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


def test_the_law_is_told_what_momentum_an_order_leaves() -> None:
    settings = run_of()
    learner = replace(settings.learner, betas=(0.9, 0.95), minibatches=2, epochs=2)
    law = Controller(replace(settings, learner=learner), ["a"] * 4).steering.law
    assert isinstance(law, ThermostatState)
    assert law.momentum == pytest.approx(0.9**4)


# ── snapshots ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_later_branch_goes_on_from_a_snapshot() -> None:
    s = scene(prompts=40, batch=2, staleness=1)
    for _ in range(6):
        s.step()
    under_way = s.pulse(room=99).leases
    before = s.controller.view()
    snapshot = wire.decode(wire.encode(s.controller.snapshot()), ControllerSnapshot)
    later = Scene(Controller(run_of(), ["easy", "hard"] * 20, 1, 6, snapshot), branch=1, step=6)
    view = later.controller.view()
    assert replace(view, version=before.version, leases=before.leases, actors=1, **last_order(before)) == before
    # 2 were running and 2 more were ready when it was taken.
    assert later.controller.counts == replace(before.leases, running=0, ready=0, rewound=4)
    assert sums_up(later.controller.counts)
    leased = later.pulse(room=99).leases
    assert {lease.prompt_id for lease in under_way} <= {lease.prompt_id for lease in leased}
    assert later.pulse(reports=(group_of(under_way[0], started=6),)).leases == ()
    assert later.controller.view().late_reports == before.late_reports + 1
    assert under_way[0].id in later.discarded


def last_order(view: object) -> dict[str, object]:
    names = (
        "measured_entropy",
        "staleness",
        "reward",
        "pass_rate",
        "statuses",
        "actor_entropy",
        "actor_ages",
        "response_tokens",
        "truncated",
    )
    return {name: getattr(view, name) for name in names}


def test_a_snapshot_that_does_not_fit_is_refused() -> None:
    s = scene()
    s.step()
    snapshot = s.controller.snapshot()
    with pytest.raises(CheckpointDamaged, match="expected step 2"):
        Controller(run_of(), ["easy", "hard"] * 5, 1, 2, snapshot)
    with pytest.raises(CheckpointDamaged, match="branch before 0"):
        Controller(run_of(), ["easy", "hard"] * 5, 0, 1, snapshot)
    with pytest.raises(CheckpointDamaged, match="FixedState"):
        Controller(run_of(law=FixedLaw()), ["easy", "hard"] * 5, 1, 1, snapshot)
    with pytest.raises(CheckpointDamaged, match="rows"):
        Controller(run_of(), ["easy", "hard"] * 6, 1, 1, snapshot)
