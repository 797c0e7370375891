"""The controller as a whole: one event at a time, and snapshots to go on from."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from entrostat.controller.events import Missing, Reply, StepReported, Ticked
from entrostat.controller.snapshot import ControllerState
from entrostat.controller.state import Controller
from entrostat.controller.summary import summarise
from entrostat.protocol import wire
from entrostat.protocol.entropy_settings import FixedLaw
from entrostat.protocol.errors import CheckpointDamaged, TaskError
from entrostat.protocol.messages import GroupsMissing, LeaseCounts
from entrostat.protocol.moments import Moments
from tests.made_messages import (
    LEASE_SECONDS,
    Scene,
    frame,
    group_of,
    published,
    resumed,
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
    assert s.pulse().offer is None
    s.apply(published(0))
    assert s.pulse().offer is None
    s.apply(published(1))
    s.apply(published(0))  # came late
    offered = s.pulse(serves=0).offer
    assert offered is not None
    assert offered == version(1)
    assert s.pulse(serves=1).offer is None


def test_an_older_life_is_fenced_and_its_leases_run_out_at_once() -> None:
    s = scene()
    mine = s.pulse(room=2).leases
    assert not s.pulse(incarnation=2).fenced
    assert s.discarded == [lease.id for lease in mine]
    reply = s.pulse(incarnation=1, room=9, running=(mine[0].id,), reports=(group_of(mine[1]),))
    assert reply == Reply(leases=(), ended=(mine[0].id,), offer=None, fenced=True)
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
        s.apply(published(s.serves))
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


# ── snapshots ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_later_branch_goes_on_from_a_snapshot() -> None:
    s = scene(prompts=40, batch=2, staleness=1)
    for _ in range(6):
        s.step()
    under_way = s.pulse(room=99).leases
    before = s.controller.view()
    snapshot = wire.decode(wire.encode(s.controller.state()), ControllerState)
    later = Scene(resumed(run_of(), ["easy", "hard"] * 20, snapshot, 1, 6), branch=1, step=6)
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
    snapshot = s.controller.state()
    with pytest.raises(CheckpointDamaged, match="expected step 2"):
        resumed(run_of(), ["easy", "hard"] * 5, snapshot, 1, 2)
    with pytest.raises(CheckpointDamaged, match="branch before 0"):
        resumed(run_of(), ["easy", "hard"] * 5, snapshot, 0, 1)
    with pytest.raises(CheckpointDamaged, match="FixedState"):
        resumed(run_of(law=FixedLaw()), ["easy", "hard"] * 5, snapshot, 1, 1)
    with pytest.raises(CheckpointDamaged, match="rows"):
        resumed(run_of(), ["easy", "hard"] * 6, snapshot, 1, 1)
