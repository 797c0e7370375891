"""What the learner waits for while there is no order, and who holds what: for people. Nothing is decided by it."""

from typing import Literal

from entrostat.controller.snapshot import ControllerState
from entrostat.protocol import metrics
from entrostat.protocol.messages import HeardActor, LeaseCounts, RunningNow, Standing, Waits
from entrostat.protocol.metrics import Exporter

Cause = Literal["sampling", "verifying", "weights", "no_actors"]


def cause_of(leases: LeaseCounts, *, needed: int, actors: int, judging: int) -> Cause:
    """What an order of `needed` groups waits for, by where the leases are.

    `actors` were heard from of late; `judging` of the running leases are drawn and wait for verdicts or for the buffer.
    """
    if not actors:
        return "no_actors"
    if not leases.running:
        # Whoever lives and has no lease asks for one: the staleness bound holds it back.
        return "weights"
    return "verifying" if judging and leases.ready + judging >= needed else "sampling"


class WaitClock:
    """Adds up the learner's waits: for Prometheus for ever, for the driver step by step."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._waits = Waits()

    def add(self, more: Waits) -> None:
        """Enters some."""
        together: dict[str, float] = {}
        for cause in metrics.WAITS:
            seconds = float(getattr(more, cause))
            self._exporter.add(metrics.WAITING, seconds, cause=cause)
            together[cause] = float(getattr(self._waits, cause)) + seconds
        self._waits = Waits(**together)

    def take(self) -> Waits:
        """What came together since this was asked last."""
        taken, self._waits = self._waits, Waits()
        return taken


def standing(state: ControllerState, *, needed: int, now: float) -> Standing:
    """Who holds what at `now` on the events' clock."""
    book = state.book
    return Standing(
        version=state.version,
        newest=state.newest,
        needed=needed,
        ordered=len(book.ordered),
        leases=book.counts,
        running=tuple(
            RunningNow(
                id=one.lease.id,
                prompt_id=one.lease.prompt_id,
                slot=one.slot,
                incarnation=one.incarnation,
                version=one.lease.version,
                age_seconds=now - one.granted,
                left_seconds=one.deadline - now,
            )
            for one in book.running
        ),
        actors=tuple(
            HeardActor(
                slot=actor.slot,
                incarnation=actor.incarnation,
                silent_seconds=now - actor.seen,
                judging=actor.judging,
            )
            for actor in state.actors
        ),
    )
