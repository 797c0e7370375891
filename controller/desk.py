"""The controller without its process: the state machine, its journal, and the manifests of what it offers.

Every event is applied and recorded with what came of it, and only then does an answer leave. An order also waits until
all that led to it is on disk (`sync`), many events at a time. Whoever comes after a crash reads the last segment: the
state it begins with, and the events since.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from entrostat.controller.events import (
    Command,
    Discard,
    Event,
    Missing,
    Order,
    OrderRequested,
    Published,
    Pulsed,
    Reply,
    Restarted,
    Rewound,
    Scaled,
    Snapshotted,
    StepReported,
    Ticked,
)
from entrostat.controller.journal import (
    Closed,
    Frames,
    Levels,
    Offered,
    Opened,
    Record,
    Recorded,
    Segment,
    Storage,
    check_first,
    name_of,
)
from entrostat.controller.replay import replay
from entrostat.controller.snapshot import ControllerState
from entrostat.controller.state import Controller
from entrostat.protocol import wire
from entrostat.protocol.errors import EntrostatError, JournalDamaged, StationLost
from entrostat.protocol.messages import (
    ControllerView,
    GroupsMissing,
    PolicyVersion,
    Pulse,
    PulseReply,
    StepReport,
    TrainOrder,
    WeightsManifest,
)
from entrostat.protocol.settings import Stations

log = logging.getLogger(__name__)

KEPT_MANIFESTS = 3  # of the newest versions, at least: what an actor may be offered


class Desk:
    """One life of the controller.

    Where the journal has segments of this branch, it goes on from their end; else the branch begins.

    Args:
        stations: the run's settings.
        levels: `[prompts]` the level of each training prompt; None where the journal has them.
        storage: of the journal.
        clock: seconds; the events' clock goes on from where the journal ends, whatever this one says.
        branch: of the run directory's life.
        step: the branch starts from these weights.
        state: of an earlier branch at that step.
        task_prompts: how many prompts each task has, see `Controller`; () where the journal has them.

    Raises:
        TaskError: there are no prompts.
        CheckpointDamaged: the state does not fit.
        JournalDamaged: the branch's journal is damaged, or does not lead to what it says.
        ResourceError: it can't be written.
    """

    def __init__(
        self,
        stations: Stations,
        levels: Sequence[str] | None,
        storage: Storage,
        clock: Callable[[], float],
        *,
        branch: int = 0,
        step: int = 0,
        state: ControllerState | None = None,
        task_prompts: Sequence[int] = (),
    ) -> None:
        self._stations, self._storage, self._clock, self._branch = stations, storage, clock, branch
        self._began, self._base = clock(), 0.0
        self._manifests: dict[PolicyVersion, WeightsManifest] = {}
        self._discards: deque[int] = deque()
        self._failure: EntrostatError | None = None
        self._synced = (-1, 0)  # segment, bytes
        self._file: Segment
        self._before: Segment | None = None
        self._segment = self._bytes = 0
        earlier = [number for found, number in storage.segments() if found == branch]
        if not self._goes_on(earlier):
            if levels is None:
                raise JournalDamaged(
                    f"no segment of branch {branch} was begun, so the controller knows no prompts: its process died at "
                    "once. Resume the run"
                )
            self.controller = Controller(stations, levels, task_prompts=task_prompts)
            self._open(earlier[-1] + 1 if earlier else 0, term=0, follows=0, levels=_levels(levels, task_prompts))
            if branch:
                self.apply(Rewound(branch=branch, step=step, state=state, at=self._now()))
                self.sync()  # a segment without it would be gone on with as a run's first branch

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def pulse(self, pulse: Pulse) -> PulseReply:
        """The answer to an actor."""
        commands = self.apply(Pulsed(pulse=pulse, at=self._now()))
        (reply,) = [command for command in commands if isinstance(command, Reply)]
        # Without its manifest an offer is made again in a later pulse.
        manifest = None if reply.offer is None else self._manifests.get(reply.offer)
        return PulseReply(leases=reply.leases, ended=reply.ended, manifest=manifest, fenced=reply.fenced)

    def order(self) -> TrainOrder | None:
        """The order under way, or a new one if there are groups for it. `sync` before it leaves."""
        commands = self.apply(OrderRequested(at=self._now()))
        return next((command.order for command in commands if isinstance(command, Order)), None)

    def report(self, report: StepReport) -> ControllerView:
        """Takes in what became of the order; one that does not answer the order under way changes nothing."""
        self.apply(StepReported(report=report, at=self._now()))
        return self.controller.view()

    def missing(self, missing: GroupsMissing) -> None:
        """The order under way can't be trained."""
        self.apply(Missing(missing=missing, at=self._now()))

    def publish(self, manifest: WeightsManifest) -> None:
        """A version's weights can be pulled."""
        self._keep(manifest)
        self._write(Offered(manifest=manifest))
        self.apply(Published(version=manifest.version, checksum=manifest.checksum))

    def _keep(self, manifest: WeightsManifest) -> None:
        self._manifests[manifest.version] = manifest
        # With fixed places a group is sampled up to `max_staleness` versions after its own was published.
        kept = max(KEPT_MANIFESTS, self._stations.rollout.max_staleness + 1)
        for version in sorted(self._manifests)[:-kept]:
            del self._manifests[version]

    def tick(self) -> None:
        """Time passed."""
        self.apply(Ticked(at=self._now()))

    def scale(self, actors: int) -> None:
        """Somebody asked for so many rollout actors."""
        self.apply(Scaled(actors=actors))

    def checkpoint(self) -> ControllerState:
        """The state for a checkpoint; the journal goes on in a new segment, so that recovery starts here."""
        self.apply(Snapshotted())
        state = self.controller.state()
        self.sync()
        # Another thread may yet sync the segment before: it is closed at the next checkpoint.
        self._before, before = self._file, self._before
        if before is not None:
            before.close()
        self._open(self._segment + 1, term=self.controller.term, follows=self._bytes, state=state)
        return state

    def discards(self) -> list[int]:
        """Leases whose groups the sample buffer may forget, since this was asked last."""
        found = list(self._discards)
        self._discards.clear()
        return found

    # ── the journal ──────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, event: Event) -> tuple[Command, ...]:
        """Applies and records one event.

        Raises:
            ResourceError: it can't be recorded; then nothing is answered any more.
        """
        if self._failure is not None:
            raise self._failure
        commands = self.controller.apply(event)
        self._write(Recorded(event=event, commands=commands))
        for command in commands:
            if isinstance(command, Discard):
                self._discards.extend(command.lease_ids)
        return commands

    @property
    def synced(self) -> bool:
        """Whether all that was recorded is on disk."""
        return self._synced == (self._segment, self._bytes)

    def sync(self) -> None:
        """Returns once all that was recorded by now is on disk; may run in another thread.

        Raises:
            ResourceError: it can't be written; then nothing is answered any more.
        """
        if self._failure is not None:
            raise self._failure
        recorded = (self._segment, self._bytes)
        try:
            self._file.sync()
        except EntrostatError as error:
            self._failure = error
            raise
        self._synced = max(self._synced, recorded)

    def close(self) -> None:
        """The run came to its end: says so in the journal, once. Nothing is answered any more."""
        if self._failure is not None:
            return
        self._write(Closed())
        self.sync()
        self._failure = StationLost("the run has come to its end: its controller answers no more")
        self._file.close()

    def _now(self) -> float:
        return self._base + self._clock() - self._began

    def _write(self, record: Record) -> None:
        frame = wire.encode(record)
        try:
            self._file.append(frame)
        except EntrostatError as error:
            self._failure = error
            raise
        self._bytes += frame.nbytes

    def _open(
        self,
        segment: int,
        *,
        term: int,
        follows: int,
        levels: Levels | None = None,
        state: ControllerState | None = None,
    ) -> None:
        """Begins a segment."""
        self._segment, self._bytes = segment, 0
        self._file = self._storage.create(self._branch, segment)
        self._write(
            Opened(
                branch=self._branch,
                segment=segment,
                term=term,
                settings=self._stations,
                levels=levels,
                state=state,
                follows=follows,
            )
        )
        for manifest in self._manifests.values():
            self._write(Offered(manifest=manifest))
        self.sync()

    def _goes_on(self, earlier: list[int]) -> bool:
        """Takes over from another process, if it came so far as to begin a segment."""
        for segment in reversed(earlier):
            frames = Frames(self._storage.read(self._branch, segment), name_of(self._branch, segment))
            records = iter(frames)
            first = next(records, None)
            if first is None:
                log.warning("%s was not yet begun when its process died", frames.name)
                continue
            opened = check_first(first[1], frames.name)
            levels = self._known_levels(earlier)
            self.controller = Controller(self._stations, levels.of_prompts(), opened.state, task_prompts=levels.tasks)
            events = sum(1 for _ in replay(self.controller, self._offered(records), frames.name))
            if self.controller.version.branch != self._branch:
                raise JournalDamaged(
                    f"{frames.name} leads to version {self.controller.version}; expected one of branch {self._branch}: "
                    "its process died before the branch began. Resume the run"
                )
            if frames.torn:
                log.warning("%s: the last %d bytes are no whole record and are void", frames.name, frames.torn)
            self._base, term = self.controller.now, opened.term + 1
            log.info("%s: %d events after its state; this is life %d of the controller", frames.name, events, term)
            self._open(earlier[-1] + 1, term=term, follows=frames.end, state=self.controller.state())
            self.apply(Restarted(term=term, at=self._now()))
            return True
        return False

    def _offered(self, records: Iterable[tuple[int, Record, memoryview]]) -> Iterator[tuple[int, Record, memoryview]]:
        """The same records; keeps the manifests among them."""
        for offset, record, frame in records:
            if isinstance(record, Offered):
                self._keep(record.manifest)
            yield offset, record, frame

    def _known_levels(self, segments: list[int]) -> Levels:
        """Those in the first segment that was begun."""
        for segment in segments:
            name = name_of(self._branch, segment)
            for _, record, _ in Frames(self._storage.read(self._branch, segment), name):
                opened = check_first(record, name)
                if opened.levels is None:
                    break
                return opened.levels
        raise JournalDamaged(f"branch {self._branch} of the journal lacks the prompts' levels: a segment is gone")


def _levels(levels: Sequence[str], task_prompts: Sequence[int]) -> Levels:
    numbers: dict[str, int] = {}
    found = np.fromiter((numbers.setdefault(level, len(numbers)) for level in levels), np.int32, len(levels))
    return Levels(names=tuple(numbers), numbers=found, tasks=tuple(task_prompts))
