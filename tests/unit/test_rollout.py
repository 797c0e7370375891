"""The life of a rollout actor, over fakes of everything around it and a clock set by hand."""

import pytest

from entrostat.actors import updates
from entrostat.actors.rollout import LOAD_SECONDS, LeaseTicket
from entrostat.protocol.errors import StationLost, WeightsRefused
from entrostat.protocol.messages import Lease, Verdict, WeightsManifest
from tests.fake_stations import SAMPLES, FakeEngine, World, lease
from tests.made_messages import manifest, version


def test_a_lease_becomes_a_group_in_the_buffer_and_then_a_report() -> None:
    world = World()
    world.sampled(lease(7))
    world.turn(3)
    group = world.buffer.groups[7]
    assert group.rollout.lease == lease(7)
    assert (group.rollout.slot, group.rollout.incarnation) == (4, 2)
    assert group.rollout.started == version(0)
    assert [verdict.status for verdict in group.verdicts] == ["correct"] * SAMPLES
    report = next(report for pulse in world.controller.pulses for report in pulse.reports)
    assert (report.lease_id, report.prompt_id, report.rewards) == (7, 7, (1.0,) * SAMPLES)
    assert (report.lengths, report.truncated) == ((1,) * SAMPLES, 1)
    assert report.surprise.mean == pytest.approx(0.5)
    assert report.surprise.count == SAMPLES


def test_verdicts_keep_the_order_of_the_samples() -> None:
    world = World()
    world.verifiers.open = False
    world.granted(lease(1))
    world.engine.finish("lease-1")
    world.turn()
    judged = world.verifiers.judged
    world.verifiers.judged = [
        (ticket, Verdict(reward=float(ticket.index), status="correct", seconds=0))
        for ticket, _ in judged
        if isinstance(ticket, LeaseTicket)
    ]
    world.verifiers.open = True
    world.turn()
    assert [verdict.reward for verdict in world.buffer.groups[1].verdicts] == [0.0, 1.0, 2.0]


def test_a_failed_verdict_is_a_reward_of_zero_and_a_status_and_counted() -> None:
    world = World()
    world.verifiers.failing = True
    world.sampled(lease(1))
    world.turn(3)
    (report,) = world.controller.pulses[-1].reports
    assert report.rewards == (0.0,) * SAMPLES
    assert report.statuses == ("timeout",) * SAMPLES
    assert world.meter.counts["entrostat_rollout_samples_total", "timeout"] == SAMPLES


def test_nothing_is_reported_before_the_buffer_has_it() -> None:
    world = World()
    world.buffer.quick = False
    world.sampled(lease(1))
    world.turn(4, seconds=1.0)
    assert 1 in world.controller.pulses[-1].running
    assert not any(pulse.reports for pulse in world.controller.pulses)
    world.buffer.confirmed = [1]
    world.controller.answer()
    world.turn(2, seconds=1.0)
    assert [report.lease_id for report in world.controller.pulses[-1].reports] == [1]
    assert 1 not in world.controller.pulses[-1].running


def test_room_is_what_is_missing_to_the_groups_in_flight() -> None:
    world = World()
    world.turn()
    assert world.controller.pulses[0].room == 3
    world.granted(lease(1), lease(2))
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert world.controller.pulses[-1].room == 1
    assert set(world.controller.pulses[-1].running) == {1, 2}


def test_groups_that_wait_for_verdicts_make_room_but_not_without_bound() -> None:
    world = World()
    world.verifiers.open = False
    for first in (0, 3):
        world.granted(*(lease(first + i) for i in range(3)))
        world.engine.finish(*(f"lease-{first + i}" for i in range(3)))
        world.turn()
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert len(world.controller.pulses[-1].running) == 6
    assert world.controller.pulses[-1].room == 0


def test_an_ended_lease_is_forgotten_wherever_it_stands() -> None:
    world = World()
    world.verifiers.open = False
    world.granted(lease(1), lease(2), lease(3, step=9))
    world.engine.finish("lease-1")
    world.controller.answer(ended=(1, 2, 3))
    world.turn(3, seconds=1.0)
    assert world.engine.aborted == ["lease-2"]
    world.verifiers.open = True
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert world.worker.idle
    assert not world.buffer.groups
    assert world.controller.pulses[-1].running == ()


def test_a_new_version_is_loaded_between_two_steps_while_requests_go_on() -> None:
    world = World()
    world.granted(lease(1))
    world.controller.answer(manifest=manifest(1))
    world.turn(2, seconds=1.0)
    assert world.engine.loaded == [version(0), version(1)]
    assert "lease-1" in world.engine.submitted
    world.engine.finish("lease-1")
    world.turn(2)
    assert world.buffer.groups[1].rollout.started == version(0)
    assert world.worker.view(engine_seconds=1.0, metrics_port=1).max_mismatch == pytest.approx(1e-6)


def test_a_version_that_is_served_or_wanted_already_is_not_loaded_again() -> None:
    world = World()
    for _ in range(3):
        world.granted(manifest=manifest(1))
    assert world.engine.loaded == [version(0), version(1)]


def test_a_refused_version_is_counted_and_tried_again_later() -> None:
    world = World()
    world.engine.refuse.add(version(1))
    world.granted(manifest=manifest(1))
    world.turn(5)
    view = world.worker.view(engine_seconds=1.0, metrics_port=1)
    assert (view.version, view.refused_updates) == (version(0), 1)
    assert world.meter.counts["entrostat_rollout_weight_updates_total", "refused"] == 1
    world.engine.refuse.clear()
    world.turn(seconds=2 * updates.FIRST_RETRY_SECONDS)
    assert world.engine.version == version(1)


def test_a_version_refused_again_and_again_stops_the_actor_by_name() -> None:
    world = World()
    world.engine.refuse.add(version(1))

    def hear_of_it_again_and_again() -> None:
        for _ in range(20):
            world.controller.answer(manifest=manifest(1))
            world.turn(seconds=100.0)

    with pytest.raises(WeightsRefused, match="refused 6 times"):
        hear_of_it_again_and_again()


def test_a_newer_version_takes_the_place_of_a_refused_one() -> None:
    world = World()
    world.engine.refuse.add(version(1))
    world.granted(manifest=manifest(1))
    world.granted(manifest=manifest(2))
    assert world.engine.version == version(2)


def test_a_lease_waits_for_the_version_it_was_granted_under() -> None:
    world = World()
    world.engine.refuse.add(version(1))
    world.granted(lease(1, step=1), manifest=manifest(1))
    assert world.engine.order == []
    world.engine.refuse.clear()
    world.turn(seconds=10.0)
    assert world.engine.order == ["lease-1"]
    world.engine.finish("lease-1")
    world.turn()
    assert world.buffer.groups[1].rollout.started == version(1)


def test_a_version_of_an_earlier_branch_never_passes_for_a_later_one() -> None:
    world = World()
    world.granted(manifest=manifest(8))
    late = Lease(id=1, prompt_id=1, samples=SAMPLES, version=version(5, branch=1), seed=1, deadline_seconds=10.0)
    world.granted(late)
    assert world.engine.order == []
    world.granted(manifest=manifest(5, branch=1))
    assert world.engine.order == ["lease-1"]


def test_a_first_version_that_is_refused_is_an_error() -> None:
    engine = FakeEngine()
    engine.refuse.add(version(0))
    with pytest.raises(WeightsRefused):
        World(engine=engine)


def test_a_draining_actor_finishes_what_it_has_and_asks_for_nothing() -> None:
    world = World()
    world.granted(lease(1))
    world.worker.drain(30.0)
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert world.controller.pulses[-1].room == 0
    assert not world.worker.drained(0.0)
    world.engine.finish("lease-1")
    for _ in range(3):
        world.controller.answer()
        world.turn(2, seconds=1.0)
    assert world.worker.drained(0.0)
    assert not any(pulse.returned for pulse in world.controller.pulses)
    assert 1 in world.buffer.groups


def test_a_draining_actor_hands_back_at_once_what_it_has_not_begun() -> None:
    world = World()
    world.granted(lease(1), lease(2, step=9))
    world.worker.drain(30.0)
    world.controller.answer()
    world.turn(2)
    pulse = world.controller.pulses[-1]
    assert (pulse.returned, set(pulse.running), pulse.room) == ((2,), {1, 2}, 0)
    assert world.engine.aborted == []


def test_a_draining_actor_hands_back_what_it_could_not_end_in_time() -> None:
    world = World()
    world.granted(lease(1), lease(2))
    world.worker.drain(5.0)
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert world.controller.pulses[-1].returned == ()
    world.controller.answer()
    world.turn(3, seconds=5.0)
    assert set(world.controller.pulses[-1].returned) == {1, 2}
    assert set(world.engine.aborted) == {"lease-1", "lease-2"}
    assert not world.worker.drained(0.0)
    world.controller.answer(ended=(1, 2))
    world.turn(2)
    assert world.worker.drained(0.0)
    world.turn(3, seconds=5.0)
    assert world.controller.pulses[-1].returned == ()


def test_leases_handed_back_are_named_again_when_the_pulse_is_lost() -> None:
    world = World()
    world.granted(lease(1, step=9))
    world.worker.drain(30.0)
    while not world.controller.pulses[-1].returned:
        if world.controller.waiting:
            world.controller.answer()
        world.turn(seconds=1.0)
    assert world.controller.waiting
    world.controller.reply = StationLost("it is gone")
    world.turn(3, seconds=1.0)
    for _ in range(3):
        world.controller.answer(ended=(1,))
        world.turn(2, seconds=1.0)
    named = [pulse.returned for pulse in world.controller.pulses if pulse.returned]
    assert named == [(1,), (1,)]


def test_a_lease_handed_back_while_a_pulse_is_under_way_is_named_in_the_next() -> None:
    world = World()
    world.granted(lease(1), lease(2, step=9))
    world.worker.drain(5.0)
    while not world.controller.pulses[-1].returned:
        if world.controller.waiting:
            world.controller.answer()
        world.turn(seconds=0.5)
    assert world.controller.waiting
    world.turn(seconds=6.0)  # lease 1 is handed back now
    world.controller.answer(ended=(2,))
    world.turn(2)
    assert [pulse.returned for pulse in world.controller.pulses[-2:]] == [(2,), (1,)]


def test_a_lease_that_comes_after_the_order_to_drain_is_handed_back_before_it_is_empty() -> None:
    world = World()
    world.turn(2, seconds=1.0)
    assert world.controller.pulses[-1].room > 0
    world.worker.drain(30.0)
    world.turn()
    assert not world.worker.drained(0.0)  # the pulse under way asks for leases
    world.controller.answer(lease(3))
    world.turn(2)
    assert world.controller.pulses[-1].returned == (3,)
    assert not world.worker.drained(0.0)
    world.controller.answer(ended=(3,))
    world.turn(2)
    assert world.worker.drained(0.0)
    assert world.engine.order == []


def test_the_loops_age_is_that_of_its_last_turn() -> None:
    world = World()
    world.turn()
    world.now += 7.0
    view = world.worker.view(engine_seconds=1.0, metrics_port=1, host="here", process=5)
    assert (view.turn_seconds, view.host, view.process) == (7.0, "here", 5)
    assert (view.held, view.draining) == (0, False)
    world.worker.drain(1.0)
    assert world.worker.view(engine_seconds=1.0, metrics_port=1).draining


def test_loading_weights_is_no_hang_until_its_own_time_is_over() -> None:
    class SlowEngine(FakeEngine):
        ages: list[float]

        def load(self, manifest: WeightsManifest) -> None:
            super().load(manifest)
            if len(self.loaded) > 1:
                self.ages = []
                for _ in range(2):
                    world.now += LOAD_SECONDS
                    self.ages.append(world.worker.turn_seconds)

    engine = SlowEngine()
    world = World(engine=engine)
    world.granted(manifest=manifest(1))
    assert engine.ages == [0.0, LOAD_SECONDS]
    assert world.worker.turn_seconds == 0.0
