"""A journal read from its first event to its last: every branch applied again, and held against what was recorded."""

from collections import Counter
from collections.abc import Callable

import msgspec

from entrostat.controller.events import Command, Event, Order, Published, Rewound, Snapshot, StepReported
from entrostat.controller.journal import Frames, Opened, Storage, check_first, name_of
from entrostat.controller.replay import replay
from entrostat.controller.snapshot import ControllerState
from entrostat.controller.state import Controller
from entrostat.protocol import wire
from entrostat.protocol.errors import JournalDamaged, JournalDiffers
from entrostat.protocol.messages import ControllerView, PolicyVersion, StepReport, TrainOrder


class TrainedOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order that was trained."""

    order: TrainOrder
    report: StepReport
    view: ControllerView  # after its report
    checksum: int | None  # of the weights that it made; None where they were not published any more


class Branch(msgspec.Struct, kw_only=True):
    """One life of the run."""

    number: int
    start: int = 0  # step
    parent: PolicyVersion | None = None  # whose state it began with
    segments: int = 0
    bytes: int = 0
    events: Counter[str] = msgspec.field(default_factory=Counter)
    orders: int = 0
    trained: list[TrainedOrder] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)  # of what is void
    began: bool = False
    closed: bool = False
    end: ControllerState | None = None


class _Reader:
    """Applies one branch after the other.

    Args:
        storage: of the journal.
        watch: called after every event.
    """

    def __init__(self, storage: Storage, watch: Callable[[Event, Controller], None] | None) -> None:
        self._storage, self._watch = storage, watch
        self._digests: dict[PolicyVersion, set[int]] = {}  # of the states that a branch may begin with
        self._ordered: TrainOrder | None = None
        self._branches: set[int] = set()

    def branch(self, number: int, segments: list[int]) -> Branch:
        """Applies all segments of a branch."""
        branch = Branch(number=number, began=number == 0 and bool(segments))
        controller: Controller | None = None
        opened = [(segment, first) for segment in segments if (first := self._first(segment, branch)) is not None]
        for place, (segment, first) in enumerate(opened):
            name = name_of(number, segment)
            controller = self._begun(first, controller, name)
            content = self._storage.read(number, segment)
            counted = opened[place + 1][1].follows if place + 1 < len(opened) else len(content)
            if counted < len(content):
                branch.notes.append(
                    f"{name}: the last {len(content) - counted:,} bytes are void, its process was replaced"
                )
            self._events(branch, controller, Frames(content[:counted], name), last=place + 1 == len(opened))
            branch.segments += 1
            branch.bytes += len(content)
        self._branches.add(number)
        branch.end = None if controller is None else controller.state()
        if branch.end is not None:
            self._digests.setdefault(branch.end.version, set()).add(wire.digest(wire.encode(branch.end)))
        return branch

    def _first(self, segment: int, branch: Branch) -> Opened | None:
        name = name_of(branch.number, segment)
        found = next(iter(Frames(self._storage.read(branch.number, segment), name)), None)
        if found is None:
            branch.notes.append(f"{name}: was not yet begun when its process died")
            return None
        return check_first(found[1], name)

    def _begun(self, first: Opened, before: Controller | None, name: str) -> Controller:
        """The controller that a segment begins with; it must be the one that the segment before ended with."""
        if before is None:
            if first.levels is None:
                raise JournalDamaged(
                    f"{name} is the first of its branch and lacks the prompts' levels: one before is missing"
                )
            return Controller(first.settings, first.levels.of_prompts(), task_prompts=first.levels.tasks)
        if first.state is None or wire.encode(first.state).data != wire.encode(before.state()).data:
            raise JournalDiffers(
                f"{name} does not begin with the state that the segment before leads to (version {before.version})"
            )
        return before

    def _events(self, branch: Branch, controller: Controller, frames: Frames, *, last: bool) -> None:
        records = iter(frames)
        next(records)
        for offset, event, commands in replay(controller, records, frames.name):
            branch.events[type(event).__name__] += 1
            self._note(branch, controller, event, commands, f"{frames.name}, byte {offset:,}")
            if self._watch is not None:
                self._watch(event, controller)
        branch.closed = frames.closed
        if frames.torn and not last:
            raise JournalDamaged(
                f"{frames.name} breaks off at byte {frames.end:,}, and the next segment counts more of it"
            )
        if frames.torn:
            branch.notes.append(f"{frames.name}: the last {frames.torn:,} bytes are no whole record: a torn end, void")

    def _note(
        self, branch: Branch, controller: Controller, event: Event, commands: tuple[Command, ...], place: str
    ) -> None:
        """Remembers what later branches are held against, and what was trained."""
        for command in commands:
            if isinstance(command, Snapshot):
                self._digests.setdefault(command.version, set()).add(command.digest)
            elif isinstance(command, Order):
                branch.orders += command.order is not self._ordered
                self._ordered = command.order
        if isinstance(event, Rewound):
            self._check_parent(branch, event, place)
        elif (
            isinstance(event, StepReported) and self._ordered is not None and event.report.version == controller.version
        ):
            made = TrainedOrder(order=self._ordered, report=event.report, view=controller.view(), checksum=None)
            branch.trained.append(made)
            self._ordered = None
        elif isinstance(event, Published) and branch.trained and branch.trained[-1].report.version == event.version:
            branch.trained[-1] = msgspec.structs.replace(branch.trained[-1], checksum=event.checksum)

    def _check_parent(self, branch: Branch, event: Rewound, place: str) -> None:
        branch.start, self._ordered, branch.began = event.step, None, True
        if event.state is None:
            return
        branch.parent = event.state.version
        if branch.parent.branch not in self._branches:
            raise JournalDamaged(
                f"{place}: branch {branch.number} goes on from version {branch.parent}, and the journal has no branch "
                f"{branch.parent.branch}: its files are gone"
            )
        known = self._digests.get(event.state.version)
        if known is not None and wire.digest(wire.encode(event.state)) not in known:
            raise JournalDiffers(
                f"{place}: branch {branch.number} begins with another state of version {branch.parent} than was saved"
            )


def read(storage: Storage, watch: Callable[[Event, Controller], None] | None = None) -> list[Branch]:
    """Applies every branch of a journal again, in order.

    Args:
        storage: of the journal.
        watch: called after every event with the controller that took it in.

    Raises:
        JournalDamaged: a segment is damaged, or one is missing.
        JournalDiffers: an event, or a segment's first state, is not what the events before lead to.
    """
    reader = _Reader(storage, watch)
    found: dict[int, list[int]] = {}
    for branch, segment in storage.segments():
        found.setdefault(branch, []).append(segment)
    return [reader.branch(number, segments) for number, segments in found.items()]


def newest(branches: list[Branch]) -> Branch | None:
    """The last branch that began: a process may die between opening its journal and that."""
    return next((branch for branch in reversed(branches) if branch.began), None)


def since(branches: list[Branch], checkpoint: PolicyVersion) -> list[TrainedOrder]:
    """The orders trained since a checkpoint in the history that leads to the end of the newest branch, in order.

    Branches that go on from elsewhere, or were rewound beyond it, have no part in it; `[]` where the newest branch does
    not descend from the checkpoint.
    """
    by_number = {branch.number: branch for branch in branches}
    branch = newest(branches)
    found: list[TrainedOrder] = []
    while branch is not None:
        found = [*branch.trained, *found]
        if branch.number == checkpoint.branch:
            return [one for one in found if one.order.version.step >= checkpoint.step]
        if branch.parent is None:  # it began anew, as a run does that is killed before its first checkpoint
            return found if checkpoint.step == branch.start == 0 else []
        end, branch = branch.parent, by_number.get(branch.parent.branch)
        if branch is not None:
            branch = msgspec.structs.replace(
                branch, trained=[one for one in branch.trained if one.report.version.step <= end.step]
            )
    return []
