"""Leases under way: found by id, by who holds them, and by their deadlines."""

from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile

import msgspec

from entrostat.controller.snapshot import RunningLease
from entrostat.protocol.messages import Lease

Holder = tuple[int, int]  # slot, incarnation


class Running(msgspec.Struct):
    """A lease under way."""

    lease: Lease
    holder: Holder
    granted: float  # seconds on the events' clock
    deadline: float
    place: int
    pulse: int  # number of the pulse that was answered with it


class RunningLeases:
    """All of them; a pulse costs the same with one actor as with a thousand.

    Args:
        lease_seconds: from a grant, or a renewal, to the deadline.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._seconds = lease_seconds
        self._all: dict[int, Running] = {}  # in the order of deadlines
        self._held: dict[Holder, dict[int, Running]] = {}  # of each the first granted first

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, lease: object) -> bool:
        return lease in self._all

    def __iter__(self) -> Iterator[int]:
        return iter(self._all)

    def get(self, lease: int) -> Running | None:
        """The lease, if it is under way."""
        return self._all.get(lease)

    def all(self) -> Collection[Running]:
        """All of them, the next deadline first."""
        return self._all.values()

    def grant(self, lease: Lease, holder: Holder, *, at: float, place: int, pulse: int) -> None:
        """Enters a new one."""
        self._enter(Running(lease, holder, at, at + self._seconds, place, pulse))

    def leave(self, lease: int) -> Running:
        """Takes one out."""
        running = self._all.pop(lease)
        held = self._held[running.holder]
        del held[lease]
        if not held:
            del self._held[running.holder]
        return running

    def renew(self, running: Running, at: float) -> None:
        """Moves a deadline."""
        running.deadline = at + self._seconds
        self._all[running.lease.id] = self._all.pop(running.lease.id)

    def renew_all(self, at: float) -> None:
        """Moves all deadlines."""
        for running in self._all.values():
            running.deadline = at + self._seconds

    def due(self, at: float) -> list[int]:
        """Those whose deadline has passed."""
        return [running.lease.id for running in takewhile(lambda one: one.deadline <= at, self._all.values())]

    def of(self, holder: Holder) -> dict[int, Running]:
        """Those of one life of a slot."""
        return self._held.get(holder, {})

    def of_slot(self, slot: int) -> list[int]:
        """Those of all lives of a slot."""
        return sorted(lease for holder, leases in self._held.items() if holder[0] == slot for lease in leases)

    def state(self) -> tuple[RunningLease, ...]:
        """All there is to know, the next deadline first."""
        return tuple(
            RunningLease(
                lease=running.lease,
                slot=running.holder[0],
                incarnation=running.holder[1],
                granted=running.granted,
                deadline=running.deadline,
                place=running.place,
                pulse=running.pulse,
            )
            for running in self._all.values()
        )

    def restore(self, state: Iterable[RunningLease]) -> None:
        """Goes on from a state."""
        entered = [
            Running(one.lease, (one.slot, one.incarnation), one.granted, one.deadline, one.place, one.pulse)
            for one in state
        ]
        self._all.update((running.lease.id, running) for running in entered)
        # A renewal moves a lease among all, not among its holder's.
        for running in sorted(entered, key=lambda one: one.lease.id):
            self._hold(running)

    def _enter(self, running: Running) -> None:
        self._all[running.lease.id] = running
        self._hold(running)

    def _hold(self, running: Running) -> None:
        self._held.setdefault(running.holder, {})[running.lease.id] = running
