"""When a rollout actor speaks to its controller, and what it does when no answer comes."""

import pytest

from entrostat.actors import pulses
from entrostat.protocol.errors import StationLost
from entrostat.protocol.settings import RolloutSettings
from tests.fake_stations import World, lease
from tests.made_messages import manifest


def test_pulses_renew_at_least_every_tenth_of_a_lease_even_without_news() -> None:
    settings = RolloutSettings(groups_in_flight=1, lease_seconds=1.0)
    world = World(settings)
    world.granted(lease(1))
    sent = len(world.controller.pulses)
    for _ in range(100):
        world.controller.answer()
        world.turn(seconds=0.01)
    renewals = world.controller.pulses[sent:]
    assert 8 <= len(renewals) <= 12
    assert all(1 in pulse.running for pulse in renewals)


def test_a_hungry_actor_does_not_flood_the_controller() -> None:
    world = World()
    for _ in range(100):
        world.controller.answer()
        world.turn(seconds=0.01)
    assert 10 <= len(world.controller.pulses) <= 1.0 / pulses.HUNGRY_SECONDS + 2


def test_an_actor_that_serves_a_new_version_asks_for_its_leases_at_once() -> None:
    world = World()
    world.turn()
    world.controller.answer(manifest=manifest(1))
    world.turn(2)
    assert [pulse.version.step for pulse in world.controller.pulses] == [0, 1]
    world.controller.answer()
    world.turn(9)
    assert len(world.controller.pulses) == 2, "and once only"


def test_a_fenced_actor_stops_by_name() -> None:
    world = World()
    world.turn()
    world.controller.answer(fenced=True)
    with pytest.raises(StationLost, match="newer incarnation"):
        world.turn()


def test_reports_survive_a_controller_that_did_not_answer() -> None:
    world = World()
    world.sampled(lease(1))
    world.turn(2)
    assert world.controller.pulses[-1].reports
    sent = len(world.controller.pulses)
    world.controller.reply = StationLost("no answer")
    world.turn(2, seconds=0.1)
    assert len(world.controller.pulses) == sent, "it backs off"
    world.turn(seconds=pulses.FIRST_RETRY_SECONDS)
    assert [report.lease_id for report in world.controller.pulses[-1].reports] == [1]
    world.controller.answer()
    world.turn(2, seconds=1.0)
    assert not world.controller.pulses[-1].reports


def test_a_group_that_is_done_while_a_pulse_is_under_way_is_reported_in_the_next() -> None:
    world = World()
    world.granted(lease(1), lease(2))
    world.engine.finish("lease-1")
    world.turn(2)
    assert world.controller.waiting
    world.engine.finish("lease-2")
    world.turn(2)
    world.controller.answer()
    world.turn(3, seconds=1.0)
    reported = [[report.lease_id for report in pulse.reports] for pulse in world.controller.pulses if pulse.reports]
    assert reported == [[1], [2]]


def test_a_controller_that_stays_silent_stops_the_actor_by_name() -> None:
    world = World()

    def silence() -> None:
        for _ in range(40):
            if world.controller.waiting:
                world.controller.reply = StationLost("no answer")
            world.turn(seconds=20.0)

    with pytest.raises(StationLost, match=r"did not answer for \d+ s"):
        silence()
