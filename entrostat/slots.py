"""The rollout actors' places: filled, given the newest weights, watched, filled again, added and taken away.

    placed → ready (its engine is up) → started (it serves the weights of now) → asked for its view, again and again
                                                                                └→ drained → gone

Nothing here waits. An actor that dies, or hangs, is replaced by the next incarnation; the highest slots go first when
there are to be fewer. Who never came up, or dies too often, is given up while others serve.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from entrostat import ray_calls
from entrostat.leaving import Leaving
from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, Stalled, StationLost
from entrostat.protocol.messages import ActorView
from entrostat.protocol.settings import RolloutSettings

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
PLACE_SECONDS = 60.0  # until it is said that Ray has no room; the actor goes on waiting for some
UP_SECONDS = 660.0  # for an engine's start and again for the first weights; the actor itself gives up earlier
DRAIN_SECONDS = 30.0  # beyond rollout.drain_seconds
MOST_RESTARTS = 5  # of one slot in so many seconds; above that the cause is no accident
RESTART_SECONDS = 600.0


class Slot(msgspec.Struct, kw_only=True):
    """A rollout actor's stable place, whoever lives in it."""

    number: int
    incarnation: int
    handle: Any
    placed: Any  # reference: host and process, once Ray has found room; None once they are known
    ready: Any  # reference: the engine is up; None once it is
    deadline: float  # of what it was asked last
    started: Any = None  # reference to its first view; None before and after
    asked: Any = None  # reference to a view under way
    view: ActorView | None = None
    host: str = ""
    process: int = 0
    homeless: bool = False  # it was said that Ray has no room for it
    evaluation: Any = None  # reference to the last evaluation it was given
    drained: Any = None  # reference: it holds nothing any more
    drained_by: float = 0.0

    @property
    def who(self) -> str:
        """What errors call it."""
        return f"rollout actor {self.number}"

    @property
    def serves(self) -> bool:
        """It was heard from, and is to stay."""
        return self.view is not None and self.drained is None


class Slots:
    """All slots of a run.

    Args:
        count: how many.
        make: slot and incarnation → the handle of a new actor, whose engine begins to start.
        rollout: its deadlines.
        say: tells people.
        room: what an actor asks of Ray, and what Ray has free, as words.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[int, int], Any],
        *,
        rollout: RolloutSettings,
        say: Callable[[str], None] = log.warning,
        room: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._rollout, self._say, self._room, self._clock = make, rollout, say, room, clock
        self.weights: UInt8 | None = None  # frame of the newest version's manifest, which new actors start from
        self.restarts = 0
        self.wanted = count
        self.leaving = Leaving()
        self._slots: dict[int, Slot] = {}
        self._incarnations: dict[int, int] = {}  # the last of each slot: none lives twice
        self._deaths: dict[int, deque[float]] = {}
        self._given_up: set[int] = set()
        self._fit()

    @property
    def all(self) -> list[Slot]:
        """By number."""
        return [self._slots[number] for number in sorted(self._slots)]

    @property
    def first_living(self) -> Slot:
        """The first whose actor was heard from and stays; the very first while there is none."""
        return next((slot for slot in self.all if slot.serves), self.all[0])

    @property
    def views(self) -> list[ActorView]:
        """What each living actor last said of itself."""
        return [slot.view for slot in self.all if slot.view is not None]

    @property
    def handles(self) -> list[Any]:
        """Of all actors, those on their way out too."""
        return [*(slot.handle for slot in self.all), *self.leaving.handles]

    def start(self, slot: Slot) -> Any:
        """Has an actor whose engine is up load the newest weights; a reference to its first view."""
        slot.deadline = self._clock() + UP_SECONDS
        return slot.handle.start.remote(self.weights)

    def resize(self, count: int) -> None:
        """From now on there shall be so many; `watch` sees to it."""
        if count != self.wanted:
            self._say(f"rollout actors: {self.wanted} → {count}")
            self.wanted = count
            self._given_up.clear()

    def watch(self) -> bool:
        """Takes each slot a step further, without waiting; whether one has come up, or gone.

        Raises:
            StationLost: the last actor that served died more often than accidents explain.
            EntrostatError: an actor stopped for a reason it named.
        """
        changed = False
        for slot in self.all:
            try:
                changed |= self._watch_one(slot)
            except (StationLost, Stalled) as error:
                self._replace(slot, error)
                changed = True
            except EntrostatError as error:
                if slot.view is not None or not self._others_serve(slot):
                    raise
                self._give_up(slot, f"can't be started, so the run goes on without it: {error}")
        changed |= self._fit()
        self.leaving.watch()
        return changed

    def _watch_one(self, slot: Slot) -> bool:
        if slot.drained is not None and self._has_drained(slot):
            self._retire(slot, gently=True)
            return True
        if slot.placed is not None:
            self._watch_place(slot)
        elif slot.ready is not None:
            if self._has_come(slot.ready, slot, "its engine was not up"):
                reference, slot.ready = slot.ready, None
                ray_calls.answer(reference, slot.who, ANSWER_SECONDS)
                # Weights of now: those of the moment at which the engine began to start are gone.
                slot.started = self.start(slot)
        elif slot.started is not None:
            if self._has_come(slot.started, slot, "it did not serve its first weights"):
                reference, slot.started = slot.started, None
                slot.view = wire.decode(ray_calls.answer(reference, slot.who, ANSWER_SECONDS), ActorView)
                return True
        elif slot.asked is None:
            slot.asked, slot.deadline = slot.handle.view.remote(), self._clock() + self._rollout.lease_seconds
        elif self._has_come(slot.asked, slot, "it did not answer"):
            reference, slot.asked = slot.asked, None
            slot.view = wire.decode(ray_calls.answer(reference, slot.who, ANSWER_SECONDS), ActorView)
            if slot.view.turn_seconds > self._rollout.lease_seconds:
                raise Stalled(f"its loop has not come round for {slot.view.turn_seconds:.0f} s (rollout.lease_seconds)")
        return False

    def _watch_place(self, slot: Slot) -> None:
        if ray_calls.done(slot.placed):
            reference, slot.placed = slot.placed, None
            slot.host, slot.process = ray_calls.answer(reference, slot.who, ANSWER_SECONDS)
            slot.deadline = self._clock() + UP_SECONDS
        elif self._clock() > slot.deadline and not slot.homeless:
            slot.homeless = True
            self._say(f"warning: {slot.who} has no place yet, and joins when it finds one: {self._room()}")

    def _has_come(self, reference: Any, slot: Slot, otherwise: str) -> bool:
        """Whether an answer is there.

        Raises:
            Stalled: it is not, and its time is over.
        """
        if ray_calls.done(reference):
            return True
        if self._clock() > slot.deadline:
            raise Stalled(f"{otherwise} within its deadline")
        return False

    def _has_drained(self, slot: Slot) -> bool:
        if slot.evaluation is not None and not ray_calls.done(slot.evaluation):
            return False
        return ray_calls.done(slot.drained) or self._clock() > slot.drained_by

    def _fit(self) -> bool:
        """Fills slots that are wanted and empty, and has those that are not wanted drain; whether one has gone."""
        changed = False
        for number in range(self.wanted):
            if number not in self._slots and number not in self._given_up:
                self._fill(number)
        for slot in reversed(self.all):
            if slot.number < self.wanted or slot.drained is not None:
                continue
            if slot.view is None:
                self._retire(slot, gently=False)
                changed = True
            else:
                slot.drained = slot.handle.drain.remote(self._rollout.drain_seconds)
                slot.drained_by = self._clock() + self._rollout.drain_seconds + DRAIN_SECONDS
        return changed

    def _fill(self, number: int) -> None:
        incarnation = self._incarnations[number] = self._incarnations.get(number, 0) + 1
        handle = self._make(number, incarnation)
        self._slots[number] = Slot(
            number=number,
            incarnation=incarnation,
            handle=handle,
            placed=handle.place.remote(),
            ready=handle.ready.remote(),
            deadline=self._clock() + PLACE_SECONDS,
        )

    def _retire(self, slot: Slot, *, gently: bool) -> None:
        del self._slots[slot.number]
        self.leaving.add(slot.who, slot.handle, slot.host, slot.process, gently=gently)

    def _replace(self, slot: Slot, error: EntrostatError) -> None:
        """The next incarnation takes the slot, if it is still wanted.

        Raises:
            StationLost: it died too often, and nobody else serves.
        """
        deaths = self._deaths.setdefault(slot.number, deque())
        deaths.append(self._clock())
        while deaths[0] < self._clock() - RESTART_SECONDS:
            deaths.popleft()
        if len(deaths) > MOST_RESTARTS:
            often = f"{len(deaths)} times within {RESTART_SECONDS / 60:.0f} minutes"
            if not self._others_serve(slot):
                raise StationLost(f"{slot.who} died {often}; the last: {error}") from error
            self._give_up(slot, f"died {often}, so the run goes on without it; the last: {error}")
            return
        self._retire(slot, gently=False)
        if slot.number < self.wanted:
            log.warning("%s died or hangs and is replaced: %s", slot.who, error)
            what = "hangs" if isinstance(error, Stalled) else "died"
            why = str(error).removeprefix(f"{slot.who} died: ").splitlines()[0]
            self._say(f"{slot.who} {what} and is replaced: {why}")
            self.restarts += 1
            self._fill(slot.number)

    def _give_up(self, slot: Slot, why: str) -> None:
        """Leaves a slot empty until another number of actors is asked for."""
        self._retire(slot, gently=False)
        self._given_up.add(slot.number)
        self._say(f"warning: {slot.who} {why}")

    def _others_serve(self, slot: Slot) -> bool:
        return any(other.serves for other in self._slots.values() if other is not slot)
