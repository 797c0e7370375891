"""The rollout actors' places: filled, given the newest weights, watched, and filled again when an actor dies."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from entrostat import ray_calls
from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import StationLost
from entrostat.protocol.messages import ActorView

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
MOST_RESTARTS = 5  # of one slot; after that the cause is no accident


class Slot(msgspec.Struct, kw_only=True):
    """A rollout actor's stable place, whoever lives in it."""

    number: int
    incarnation: int
    handle: Any
    ready: Any  # reference: the engine is up; None once it is
    started: Any = None  # reference to its first view; None before and after
    asked: Any = None  # reference to a view under way
    view: ActorView | None = None

    @property
    def who(self) -> str:
        """What errors call it."""
        return f"rollout actor {self.number}"


class Slots:
    """All slots of a run.

    Args:
        count: how many.
        make: slot and incarnation → the handle of a new actor, whose engine begins to start.
    """

    def __init__(self, count: int, make: Callable[[int, int], Any]) -> None:
        self._make = make
        self.weights: UInt8 | None = None  # frame of the newest version's manifest, which new actors start from
        self.restarts = 0
        self.all = [self._filled(number, 1) for number in range(count)]

    @property
    def first_living(self) -> Slot:
        """The first whose actor was heard from; the very first while there is none."""
        return next((slot for slot in self.all if slot.view is not None), self.all[0])

    @property
    def views(self) -> list[ActorView]:
        """What each living actor last said of itself."""
        return [slot.view for slot in self.all if slot.view is not None]

    def start(self, slot: Slot) -> Any:
        """Has an actor whose engine is up load the newest weights; a reference to its first view."""
        return slot.handle.start.remote(self.weights)

    def watch(self) -> bool:
        """Collects what the actors said, without waiting, and replaces those that died; whether one has come up.

        Raises:
            StationLost: an actor died more often than accidents explain.
            EntrostatError: an actor stopped for a reason it named.
        """
        came_up = False
        for slot in self.all:
            try:
                came_up |= self._watch_one(slot)
            except StationLost as error:
                self._replace(slot, error)
        return came_up

    def _watch_one(self, slot: Slot) -> bool:
        if slot.ready is not None:
            if ray_calls.done(slot.ready):
                reference, slot.ready = slot.ready, None
                ray_calls.answer(reference, slot.who, ANSWER_SECONDS)
                # Weights of now: those of the moment at which the engine began to start are gone.
                slot.started = self.start(slot)
        elif slot.started is not None:
            if ray_calls.done(slot.started):
                reference, slot.started = slot.started, None
                slot.view = wire.decode(ray_calls.answer(reference, slot.who, ANSWER_SECONDS), ActorView)
                return True
        elif slot.asked is None:
            slot.asked = slot.handle.view.remote()
        elif ray_calls.done(slot.asked):
            reference, slot.asked = slot.asked, None
            slot.view = wire.decode(ray_calls.answer(reference, slot.who, ANSWER_SECONDS), ActorView)
        return False

    def _filled(self, number: int, incarnation: int) -> Slot:
        handle = self._make(number, incarnation)
        return Slot(number=number, incarnation=incarnation, handle=handle, ready=handle.ready.remote())

    def _replace(self, slot: Slot, error: StationLost) -> None:
        if slot.incarnation > MOST_RESTARTS:
            raise StationLost(f"{slot.who} died {slot.incarnation} times; the last: {error}") from error
        log.warning("%s died and is replaced: %s", slot.who, error)
        self.restarts += 1
        self.all[slot.number] = self._filled(slot.number, slot.incarnation + 1)
