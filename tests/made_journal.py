"""A journal in memory, whose end can be cut off, and a controller's desk that writes it."""

from collections.abc import Callable, Sequence

from entrostat.controller.desk import Desk
from entrostat.controller.journal import Segment
from entrostat.controller.snapshot import ControllerState
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.messages import Lease, Pulse, PulseReply, TrainOrder
from entrostat.protocol.settings import Stations
from tests.made_messages import group_of, manifest, run_of, step_of

LEVELS = ("easy", "hard") * 5


class MemorySegment:
    """Remembers how much of it was synced."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.synced = 0
        self.full = False
        self.meanwhile: Callable[[], object] | None = None  # happens in a sync, after it took what was there

    def append(self, frame: UInt8) -> None:
        if self.full:
            raise ResourceError("the journal can't be written (No space left on device)")
        self.content += frame.tobytes()

    def sync(self) -> None:
        self.synced = len(self.content)
        if self.meanwhile is not None:
            self.meanwhile()

    def close(self) -> None:
        pass


class Memory:
    """A `Storage` that lives as long as the test."""

    def __init__(self) -> None:
        self.files: dict[tuple[int, int], MemorySegment] = {}

    def segments(self) -> list[tuple[int, int]]:
        return sorted(self.files)

    def create(self, branch: int, segment: int) -> Segment:
        assert (branch, segment) not in self.files
        self.files[branch, segment] = MemorySegment()
        return self.files[branch, segment]

    def read(self, branch: int, segment: int) -> bytes:
        return bytes(self.files[branch, segment].content)

    @property
    def last(self) -> MemorySegment:
        return self.files[max(self.files)]


class Office:
    """A desk, one actor, one learner, and a clock set by hand."""

    def __init__(self, storage: Memory | None = None, settings: Stations | None = None) -> None:
        self.storage = storage or Memory()
        self.settings = settings or run_of()
        self.now = 100.0
        self.branch, self.number = 0, 0
        self.desk = self.opened(LEVELS)

    def opened(
        self, levels: Sequence[str] | None, branch: int = 0, step: int = 0, state: ControllerState | None = None
    ) -> Desk:
        """A desk over what is in the storage by now."""
        return Desk(self.settings, levels, self.storage, lambda: self.now, branch=branch, step=step, state=state)

    def killed(self) -> None:
        """The process dies, and another one takes over, on a machine whose clock says something else."""
        self.now = 7.0
        self.desk = self.opened(None)

    def resumed(self, state: ControllerState) -> None:
        """The run goes on from a checkpoint, on a new branch."""
        self.branch += 1
        self.desk = self.opened(LEVELS, self.branch, state.version.step, state)

    def pulse(self, room: int = 0, done: Sequence[Lease] = (), running: Sequence[int] = ()) -> PulseReply:
        self.number += 1
        at = self.desk.controller.version
        return self.desk.pulse(
            Pulse(
                slot=0,
                incarnation=1,
                version=at,
                room=room,
                running=tuple(running),
                reports=tuple(group_of(lease, started=at.step) for lease in done),
                number=self.number,
            )
        )

    def ordered(self) -> TrainOrder:
        self.pulse(done=self.pulse(room=99).leases)
        order = self.desk.order()
        assert order is not None
        self.desk.sync()
        return order

    def step(self) -> TrainOrder:
        """One round as it should go."""
        order = self.ordered()
        self.now += 1.0
        self.desk.tick()
        self.desk.report(step_of(order))
        self.desk.publish(manifest(order.version.step + 1, self.branch))
        return order
