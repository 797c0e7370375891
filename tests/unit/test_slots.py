"""Slots over fake handles and a clock set by hand: filled, watched, replaced, added, drained and taken away."""

import socket
import subprocess
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from entrostat import leaving, slots
from entrostat.leaving import KILL_SECONDS, STOP_SECONDS, end_process
from entrostat.protocol import wire
from entrostat.protocol.errors import EntrostatError, StationLost, WeightsRefused
from entrostat.protocol.messages import ActorView
from entrostat.protocol.settings import RolloutSettings
from entrostat.slots import DRAIN_SECONDS, MOST_RESTARTS, PLACE_SECONDS, RESTART_SECONDS, UP_SECONDS, Slots
from tests.made_messages import version

ROLLOUT = RolloutSettings(lease_seconds=10.0, drain_seconds=5.0)


class Call:
    """A reference: it has an answer, or an error, once the test says so."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer


class Actor:
    """A handle. Answers as a healthy actor does, unless the test says otherwise."""

    def __init__(self, slot: int, incarnation: int) -> None:
        self.slot, self.incarnation = slot, incarnation
        self.hanging = False
        self.unplaced = False
        self.died: EntrostatError | None = None
        self.drains: list[float] = []
        self.drained = Call()
        self.stopped = False
        self.killed = False
        self.turn_seconds = 0.0
        self.asked = 0
        self.place = SimpleNamespace(remote=lambda: self._call(("elsewhere", 77)))
        self.ready = SimpleNamespace(remote=lambda: self._call(0))
        self.start = SimpleNamespace(remote=lambda weights: self._call(self._view))
        self.view = SimpleNamespace(remote=lambda: self._call(self._view))
        self.stop = SimpleNamespace(remote=self._stop)
        self.drain = SimpleNamespace(remote=self._drain)

    @property
    def fate(self) -> str:
        return "killed" if self.killed else "lives"

    def _call(self, answer: Any) -> Any:
        self.asked += 1
        return lambda: None if self.unplaced or (self.hanging and not self.died) else self.died or answer

    def _view(self) -> Any:
        return wire.encode(
            ActorView(
                slot=self.slot,
                incarnation=self.incarnation,
                version=version(0),
                tokens=0,
                requests=0,
                updates=0,
                refused_updates=0,
                update_seconds=0.0,
                mismatch=0.0,
                max_mismatch=0.0,
                engine_seconds=0.0,
                metrics_port=9000 + self.slot,
                turn_seconds=self.turn_seconds,
            )
        )

    def _stop(self) -> Any:
        self.stopped = True
        return lambda: True

    def _drain(self, seconds: float) -> Any:
        self.drains.append(seconds)
        return lambda: self.drained.answer


class World:
    """Slots, all actors they ever made, and a clock set by hand."""

    def __init__(self, count: int) -> None:
        self.now = 0.0
        self.made: list[Actor] = []
        self.said: list[str] = []
        self.unplaced: set[int] = set()
        self.dying: dict[int, EntrostatError] = {}
        self.slots = Slots(
            count, self._make, rollout=ROLLOUT, say=self.said.append, room=lambda: "no GPU", clock=lambda: self.now
        )
        self.watch(6)

    def _make(self, slot: int, incarnation: int) -> Actor:
        actor = Actor(slot, incarnation)
        actor.unplaced = slot in self.unplaced
        actor.died = self.dying.get(slot)
        self.made.append(actor)
        return actor

    def watch(self, count: int = 1, seconds: float = 0.0) -> bool:
        changed = False
        for _ in range(count):
            self.now += seconds
            changed |= self.slots.watch()
        return changed

    def of(self, slot: int) -> Actor:
        """The newest of a slot."""
        return [actor for actor in self.made if actor.slot == slot][-1]

    @property
    def serving(self) -> list[tuple[int, int]]:
        return [(view.slot, view.incarnation) for view in self.slots.views]


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray, where a reference is a function that gives the answer, an error, or None."""

    def answer(reference: Any, who: str, seconds: float) -> Any:
        del who, seconds
        found = reference()
        if isinstance(found, EntrostatError):
            raise found
        return found() if callable(found) else found

    def kill(actor: Actor) -> None:
        actor.killed = True

    fake = SimpleNamespace(done=lambda reference: reference() is not None, answer=answer, kill=kill)
    monkeypatch.setattr(slots, "ray_calls", fake)
    monkeypatch.setattr(leaving, "ray_calls", fake)


def test_all_slots_come_up() -> None:
    assert World(3).serving == [(0, 1), (1, 1), (2, 1)]


def test_more_are_made_and_nobody_else_is_touched() -> None:
    world = World(1)
    first = world.of(0)
    world.slots.resize(3)
    assert world.watch(6)
    assert world.serving == [(0, 1), (1, 1), (2, 1)]
    assert world.of(0) is first
    assert not first.drains
    assert world.said == ["rollout actors: 1 → 3"]


def test_the_highest_drain_first_then_stop_then_are_killed() -> None:
    world = World(3)
    world.slots.resize(1)
    world.watch()
    assert [actor.drains for actor in world.made] == [[], [5.0], [5.0]]
    assert len(world.serving) == 3
    world.of(2).drained.answer = True
    assert world.watch()
    assert world.serving == [(0, 1), (1, 1)]
    assert world.of(2).stopped
    world.watch()
    assert world.of(2).fate == "killed"
    assert not world.of(1).stopped
    assert world.of(0).drains == []


def test_one_that_does_not_get_empty_goes_after_its_deadline() -> None:
    world = World(2)
    world.slots.resize(1)
    world.watch()
    world.watch(seconds=ROLLOUT.drain_seconds + DRAIN_SECONDS - 1.0)
    assert len(world.serving) == 2
    world.watch(2, seconds=2.0)
    assert world.serving == [(0, 1)]


def test_an_evaluation_is_finished_before_its_actor_goes_and_none_begins_there() -> None:
    world = World(2)
    slot = world.slots.all[1]
    evaluation = Call()
    slot.evaluation = lambda: evaluation.answer
    world.slots.resize(1)
    world.watch()
    world.of(1).drained.answer = True
    for _ in range(20):
        world.watch(seconds=5.0)
    assert len(world.serving) == 2
    assert world.slots.first_living.number == 0
    evaluation.answer = "done"
    world.watch()
    assert world.serving == [(0, 1)]


def test_one_whose_engine_is_still_starting_goes_at_once() -> None:
    world = World(1)
    world.slots.resize(2)
    world.watch()
    world.slots.resize(1)
    world.watch()
    assert world.of(1).fate == "killed"
    assert world.of(1).drains == []


def test_a_slot_is_used_again_by_the_next_incarnation_and_never_by_two() -> None:
    world = World(2)
    world.slots.resize(1)
    world.watch()
    world.slots.resize(2)
    world.watch(3)
    assert world.serving == [(0, 1), (1, 1)]  # it drains still
    world.of(1).drained.answer = True
    world.watch(6)
    assert world.serving == [(0, 1), (1, 2)]
    assert sorted((actor.slot, actor.incarnation) for actor in world.made) == [(0, 1), (1, 1), (1, 2)]


def test_one_that_dies_is_replaced_by_the_next_incarnation() -> None:
    world = World(2)
    world.of(1).died = StationLost("rollout actor 1 died: for good")
    world.watch(8)
    assert world.serving == [(0, 1), (1, 2)]
    assert world.slots.restarts == 1
    assert world.said == ["rollout actor 1 died and is replaced: for good"]


def test_one_that_dies_while_it_drains_is_not_replaced() -> None:
    world = World(2)
    world.slots.resize(1)
    world.watch()
    world.of(1).died = StationLost("it died")
    world.watch(8)
    assert world.serving == [(0, 1)]
    assert len(world.made) == 2


def test_one_that_does_not_answer_is_killed_and_replaced_once_its_leases_have_expired() -> None:
    world = World(2)
    hanging = world.of(1)
    hanging.hanging = True
    world.watch(2)  # a view is asked for
    world.watch(seconds=ROLLOUT.lease_seconds)
    assert hanging.fate == "lives"
    world.watch(6, seconds=0.1)
    assert hanging.fate == "killed"
    assert world.serving == [(0, 1), (1, 2)]
    assert world.said == ["rollout actor 1 hangs and is replaced: it did not answer within its deadline"]


def test_one_whose_loop_does_not_come_round_is_replaced() -> None:
    world = World(2)
    world.of(1).turn_seconds = ROLLOUT.lease_seconds - 1.0
    world.watch(4)
    assert world.serving == [(0, 1), (1, 1)]
    world.of(1).turn_seconds = ROLLOUT.lease_seconds + 1.0
    world.watch(8)
    assert world.serving == [(0, 1), (1, 2)]


def test_an_engine_may_start_for_long_but_not_for_ever() -> None:
    world = World(1)
    world.slots.resize(2)
    world.watch()
    starting = world.of(1)
    world.watch()
    starting.hanging = True
    world.watch(10, seconds=UP_SECONDS / 20)
    assert starting.fate == "lives"
    world.watch(12, seconds=UP_SECONDS / 20)
    assert starting.fate == "killed"
    world.watch(3)
    assert world.serving == [(0, 1), (1, 2)]


def test_one_without_a_place_is_told_once_by_what_it_lacks_and_joins_when_there_is_room() -> None:
    world = World(1)
    world.unplaced.add(1)
    world.slots.resize(2)
    world.watch(4, seconds=PLACE_SECONDS)
    assert [text for text in world.said if "no place" in text] == [
        "warning: rollout actor 1 has no place yet, and joins when it finds one: no GPU"
    ]
    world.watch(100, seconds=PLACE_SECONDS)
    assert len(world.made) == 2
    world.of(1).unplaced = False
    world.watch(6)
    assert world.serving == [(0, 1), (1, 1)]


def test_one_whose_node_is_gone_waits_for_another_while_others_serve() -> None:
    world = World(2)
    world.unplaced.add(1)
    world.of(1).died = StationLost("its node died")
    world.watch(20, seconds=PLACE_SECONDS)
    assert world.serving == [(0, 1)]
    assert world.of(1).incarnation == 2


def test_deaths_long_apart_are_accidents() -> None:
    world = World(1)
    for _ in range(3 * MOST_RESTARTS):
        world.of(0).died = StationLost("preempted")
        world.watch(6, seconds=RESTART_SECONDS / MOST_RESTARTS / 4)
    assert world.serving == [(0, 3 * MOST_RESTARTS + 1)]


def test_deaths_close_together_end_the_run_when_nobody_else_serves() -> None:
    world = World(1)
    for _ in range(MOST_RESTARTS):
        world.of(0).died = StationLost("a bug")
        world.watch(6)
    world.of(0).died = StationLost("a bug")
    with pytest.raises(StationLost, match=r"rollout actor 0 died 6 times within 10 minutes; the last: a bug"):
        world.watch(6)


def test_deaths_close_together_leave_the_slot_empty_while_others_serve_until_the_next_change() -> None:
    world = World(2)
    world.dying[1] = StationLost("a bad node")
    world.of(1).died = StationLost("a bad node")
    world.watch(50)
    assert world.serving == [(0, 1)]
    assert world.of(1).incarnation == MOST_RESTARTS + 1
    assert any("rollout actor 1 died 6 times" in text and "goes on without it" in text for text in world.said)
    del world.dying[1]
    world.now += RESTART_SECONDS
    world.slots.resize(3)
    world.watch(6)
    assert world.serving == [(0, 1), (1, MOST_RESTARTS + 2), (2, 1)]


def test_a_new_one_that_names_why_it_can_not_start_does_not_end_the_run() -> None:
    world = World(1)
    world.dying[1] = WeightsRefused("it is on another host")
    world.slots.resize(2)
    world.watch(20)
    assert world.serving == [(0, 1)]
    assert world.said[-1].endswith("the run goes on without it: it is on another host")
    assert len(world.made) == 2


def test_one_that_served_and_names_why_it_stops_ends_the_run() -> None:
    world = World(2)
    world.of(1).died = WeightsRefused("refused 6 times")
    with pytest.raises(WeightsRefused, match="refused 6 times"):
        world.watch(4)


# ── on their way out ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_that_takes_too_long_ends_in_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(leaving, "time", SimpleNamespace(monotonic=lambda: now[0]))
    gone, actor = leaving.Leaving(), Actor(0, 1)
    actor.stop = SimpleNamespace(remote=lambda: lambda: None)
    gone.add("rollout actor 0", actor, "elsewhere", 7, gently=True)
    now[0] = STOP_SECONDS - 1.0
    gone.watch()
    assert actor.fate == "lives"
    now[0] = STOP_SECONDS + 1.0
    gone.watch()
    assert actor.fate == "killed"
    assert gone.handles == [actor]
    now[0] += KILL_SECONDS + 1.0
    gone.watch()
    assert gone.handles == []


def test_a_process_that_outlives_rays_kill_is_killed_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    here = socket.gethostname()
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        process = psutil.Process(sleeper.pid)
        assert not end_process("rollout actor 0", "elsewhere", sleeper.pid)
        assert not end_process("rollout actor 0", here, sleeper.pid)  # its name is not an actor's
        monkeypatch.setattr(leaving, "PROCESS_NAME", "sleep")
        process.suspend()
        assert end_process("rollout actor 0", here, sleeper.pid)
        assert sleeper.wait(5) == -9
    assert not end_process("rollout actor 0", here, sleeper.pid)
