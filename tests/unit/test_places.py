"""A deterministic run's places: what each lease samples, and under which version, follows from its place alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrostat.controller.events import Missing, StepReported, Ticked
from entrostat.controller.places import FixedPlaces
from entrostat.controller.prompts import PromptOrder
from entrostat.controller.state import Controller
from entrostat.protocol.messages import GroupsMissing, Lease, TrainOrder
from tests.made_messages import LEASE_SECONDS, Scene, group_of, published, resumed, run_of, step_of, version

LEVELS = ["easy", "hard"] * 5


def fixed(staleness: int = 1, every: int = 3, start: int = 0) -> FixedPlaces:
    prompts = PromptOrder(10, 7, shuffle=True)
    return FixedPlaces(batch=2, max_staleness=staleness, every=every, prompts=prompts, start=start)


def deterministic(staleness: int = 1) -> Scene:
    return Scene(Controller(run_of(staleness=staleness, deterministic=True, checkpoint_every=3), LEVELS))


def trained(s: Scene) -> TrainOrder:
    order = s.order()
    assert order is not None
    s.apply(StepReported(report=step_of(order), at=s.at))
    s.apply(published(s.controller.version.step, s.controller.version.branch))
    return order


def finish(s: Scene, *leases: Lease) -> None:
    s.pulse(reports=tuple(group_of(lease, correct=lease.prompt_id % 3) for lease in leases))


def test_after_a_checkpoint_no_place_asks_for_weights_from_before_it() -> None:
    places = fixed(staleness=1, every=3)
    assert [places.step_of(2 * batch) for batch in range(8)] == [0, 0, 1, 3, 3, 4, 6, 6]
    assert [fixed(staleness=0).step_of(2 * batch) for batch in range(4)] == [0, 1, 2, 3]
    assert fixed(start=5).step_of(10) == 5


@given(st.integers(0, 200))
def test_a_resumed_runs_places_are_those_of_an_unbroken_one(place: int) -> None:
    unbroken = fixed()
    for checkpoint in range(0, place // 2 + 1, 3):
        later = fixed(start=checkpoint)
        assert later.step_of(place) == unbroken.step_of(place)
        assert later.prompt_of(place) == unbroken.prompt_of(place)


def test_every_prompt_comes_once_an_epoch() -> None:
    places = fixed()
    for epoch in range(3):
        assert {places.prompt_of(10 * epoch + i) for i in range(10)} == set(range(10))
    assert places.prompt_of(3) == fixed().prompt_of(3), "and an earlier epoch's are found again"


def test_a_lease_that_expired_is_granted_again_in_its_place_with_its_seed() -> None:
    s = deterministic()
    first, second = s.pulse(room=2).leases
    finish(s, second)
    s.at += LEASE_SECONDS + 1.0
    s.apply(Ticked(at=s.at))
    (again,) = s.pulse(room=1).leases
    assert (again.prompt_id, again.seed, again.version) == (first.prompt_id, first.seed, first.version)
    assert again.id != first.id


def test_a_batch_is_its_places_in_order_whichever_is_done_first() -> None:
    s = deterministic()
    leases = s.pulse(room=99).leases
    assert len(leases) == 4  # batches 0 and 1, both under version 0
    finish(s, leases[3], leases[2], leases[1])
    assert s.order() is None
    finish(s, leases[0])
    order = s.order()
    assert order is not None
    assert [group.lease_id for group in order.groups] == [leases[0].id, leases[1].id]


def test_an_actor_is_offered_the_version_of_the_next_place_though_a_newer_one_is_published() -> None:
    s = deterministic()
    leases = s.pulse(room=99).leases
    finish(s, *leases[:3])
    trained(s)
    assert s.pulse(room=9, serves=0).offer is None, "it still samples under version 0"
    assert s.pulse(slot=1, serves=0, room=9).offer == version(1), "batch 2 is sampled under version 1"
    s.at += LEASE_SECONDS + 1.0
    s.apply(Ticked(at=s.at))  # the last lease's actor is gone: its place needs version 0
    reply = s.pulse(slot=1, serves=1, room=9)
    assert reply.leases == ()
    assert reply.offer == version(0)
    (again,) = s.pulse(slot=1, serves=0, room=1).leases
    assert again.version == version(0)


def test_a_group_begun_under_another_version_than_its_leases_is_refused() -> None:
    s = deterministic()
    trained_with = s.pulse(room=99).leases
    finish(s, *trained_with)
    trained(s)
    (lease,) = s.pulse(serves=1, room=1).leases
    s.pulse(reports=(group_of(lease, started=0),))
    assert s.controller.late_reports == 1
    finish(s, lease)
    assert s.controller.late_reports == 1


@pytest.mark.parametrize("slow_first", [False, True])
def test_what_the_controller_learns_does_not_depend_on_when_groups_are_done(slow_first: bool) -> None:
    def coefficients(backwards: bool) -> list[tuple[float, ...]]:
        s, found = deterministic(), []
        for _ in range(7):
            leases = s.pulse(room=99, serves=s.serves).leases
            for lease in reversed(leases) if backwards else leases:
                finish(s, lease)
            found.append(tuple(group.weight for group in trained(s).groups))
            offer = s.pulse(serves=s.serves).offer
            s.serves = s.serves if offer is None else offer.step
        return found

    assert coefficients(slow_first) == coefficients(False)


def test_an_order_that_was_given_up_teaches_its_difficulty_once() -> None:
    def lived(lost: bool) -> bytes:
        s = deterministic(staleness=0)
        leases = s.pulse(room=99).leases
        finish(s, *leases)
        order = s.order()
        assert order is not None
        if lost:
            missing = GroupsMissing(version=order.version, lease_ids=(leases[0].id,))
            s.apply(Missing(missing=missing, at=s.at))
            finish(s, *s.pulse(room=9).leases)
        trained(s)
        return s.controller.state().difficulty.prompts.successes.tobytes()

    assert lived(lost=True) == lived(lost=False)


def test_a_resumed_run_grants_the_places_that_follow_its_checkpoint() -> None:
    s = deterministic()
    for _ in range(3):
        leases = s.pulse(room=99, serves=s.serves).leases
        finish(s, *leases)
        trained(s)
        offer = s.pulse(serves=s.serves).offer
        s.serves = s.serves if offer is None else offer.step
    unbroken = s.pulse(room=99, serves=s.serves).leases
    run = run_of(staleness=1, deterministic=True, checkpoint_every=3)
    later = Scene(resumed(run, LEVELS, s.controller.state(), 1, 3), branch=1, step=3)
    again = later.pulse(room=99).leases
    assert [(lease.prompt_id, lease.seed, lease.version.step) for lease in again] == [
        (lease.prompt_id, lease.seed, lease.version.step) for lease in unbroken
    ]
