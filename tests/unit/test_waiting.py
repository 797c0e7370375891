"""What the learner waits for is named by where the leases are."""

import urllib.request

import pytest

from entrostat.controller.waiting import WaitClock, cause_of, standing
from entrostat.protocol.messages import LeaseCounts, Waits
from entrostat.protocol.metrics import Exporter
from tests.made_messages import group_of, scene


@pytest.mark.parametrize(
    ("running", "ready", "judging", "cause"),
    [
        (8, 0, 0, "sampling"),
        (8, 5, 2, "sampling"),  # one more has to be drawn
        (8, 5, 3, "verifying"),
        (3, 8, 0, "sampling"),  # the order waits a little for an older group
        (1, 8, 1, "verifying"),
        (0, 3, 0, "weights"),
    ],
)
def test_an_order_waits_for_what_its_missing_groups_wait_for(
    running: int, ready: int, judging: int, cause: str
) -> None:
    counts = LeaseCounts(running=running, ready=ready)
    assert cause_of(counts, needed=8, actors=1, judging=judging) == cause


def test_without_actors_nothing_else_is_to_blame() -> None:
    assert cause_of(LeaseCounts(running=8), needed=8, actors=0, judging=8) == "no_actors"


def test_actors_that_may_draw_no_more_before_newer_weights_wait_for_weights() -> None:
    s = scene(batch=2, staleness=0)
    leases = s.pulse(room=9).leases
    now = s.controller
    assert cause_of(now.counts, needed=2, actors=now.actors, judging=now.judging) == "sampling"
    s.pulse(reports=tuple(group_of(lease) for lease in leases))
    assert s.order() is not None
    assert not s.pulse(room=9).leases
    assert cause_of(now.counts, needed=2, actors=now.actors, judging=now.judging) == "weights"


def test_waits_are_counted_for_ever_and_handed_out_once() -> None:
    exporter = Exporter("controller")
    clock = WaitClock(exporter)
    clock.add(Waits(sampling=0.25))
    clock.add(Waits(sampling=0.5, checkpoint=2.0))
    assert clock.take() == Waits(sampling=0.75, checkpoint=2.0)
    assert clock.take() == Waits()
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=5) as answer:
        page = answer.read().decode()
    exporter.close()
    assert 'entrostat_learner_waiting_seconds_total{cause="sampling"} 0.75' in page
    assert 'entrostat_learner_waiting_seconds_total{cause="no_actors"} 0.0' in page


def test_a_standing_tells_every_lease_and_when_its_actor_was_heard() -> None:
    s = scene(batch=2)
    leases = s.pulse(room=3).leases
    found = standing(s.controller.state(), needed=2, now=s.at + 4.0)
    assert [lease.id for lease in found.running] == [lease.id for lease in leases]
    assert {(lease.slot, lease.incarnation, lease.age_seconds) for lease in found.running} == {(0, 1, 4.0)}
    assert [(actor.slot, actor.silent_seconds) for actor in found.actors] == [(0, 4.0)]
    assert (found.ordered, found.leases.running) == (0, 3)
