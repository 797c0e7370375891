"""Controller, sample buffer and learner as the simulation's stations: the product's own, but for the learner's step."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from entrostat.controller.desk import Desk
from entrostat.controller.journal import Segment
from entrostat.controller.remote import TICK_SECONDS
from entrostat.controller.snapshot import ControllerState
from entrostat.learner.buffer import SampleBuffer
from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import ResourceError, Stalled, StationLost
from entrostat.protocol.messages import (
    Group,
    GroupsMissing,
    LevelEntropy,
    PolicyVersion,
    Pulse,
    StepOutcome,
    StepReport,
    TrainOrder,
)
from tests.made_messages import manifest, step_of
from tests.simulation.network import Call, Network, Reply, Station
from tests.simulation.world import Life, World

FETCH_SECONDS = 60.0
LEARNING_SECONDS = 0.3  # mean
SYNC_SECONDS = 0.02
BUFFER_BYTES = 1 << 30


class MemorySegment:
    """A journal's file: what was added, and how much of it would survive the machine."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.synced = 0

    def append(self, frame: UInt8) -> None:
        self.content += frame.data

    def sync(self) -> None:
        self.synced = len(self.content)

    def close(self) -> None:
        pass


class MemoryStorage:
    """A journal's folder."""

    def __init__(self) -> None:
        self.files: dict[tuple[int, int], MemorySegment] = {}

    def segments(self) -> list[tuple[int, int]]:
        return sorted(self.files)

    def create(self, branch: int, segment: int) -> Segment:
        if (branch, segment) in self.files:
            raise ResourceError(f"segment {branch}.{segment} exists")
        self.files[branch, segment] = MemorySegment()
        return self.files[branch, segment]

    def read(self, branch: int, segment: int) -> bytes:
        return bytes(self.files[branch, segment].content)

    def tear(self, world: World) -> int:
        """The machine dies: some of what was not synced is lost, maybe in the middle of a record; bytes lost."""
        if not self.files:
            return 0
        newest = self.files[max(self.files)]
        kept = world.random.randint(newest.synced, len(newest.content))
        lost = len(newest.content) - kept
        del newest.content[kept:]
        return lost


class ControllerStation:
    """What controller/remote.py does around a desk, on virtual time."""

    def __init__(self, world: World, network: Network, life: Life, make: Callable[[Callable[[], float]], Desk]) -> None:
        self._world, self._network, self.life = world, network, life
        # Another process, maybe on another machine: its clock began at some other time.
        offset = world.random.uniform(-1e4, 1e4)
        self.desk = make(lambda: world.now + offset)
        self._waiting: list[tuple[float, Reply]] = []
        life.every(TICK_SECONDS, self._tick)
        methods: dict[str, Callable[..., None]] = {
            "pulse": self._pulse,
            "order": self._order,
            "report": self._report,
            "publish": self._publish,
            "missing": self._missing,
            "checkpoint": self._checkpoint,
            "scale": self._scale,
        }
        network.join("controller", Station(life, "controller", methods))
        if self.desk.controller.term:
            network.call(life, "buffer", "retain", self.desk.controller.held)

    def _tick(self) -> None:
        self.desk.tick()
        self._happened()

    def _pulse(self, reply: Reply, frame: UInt8) -> None:
        answer = self.desk.pulse(wire.decode(frame, Pulse))
        self._happened()
        reply(wire.encode(answer))

    def _order(self, reply: Reply, wait_seconds: float) -> None:
        self._waiting.append((self._world.now + wait_seconds, reply))
        self._serve()
        self._world.after(wait_seconds, self._give_up)

    def _serve(self) -> None:
        if not self._waiting:
            return
        order = self.desk.order()
        self._discard()
        if order is not None:
            replies, self._waiting = [reply for _, reply in self._waiting], []
            self._once_synced(replies, order)

    def _once_synced(self, replies: list[Reply], answer: object) -> None:
        """Syncing takes its time, in another thread; all that was recorded meanwhile is on disk with it."""

        def synced() -> None:
            if self.life.alive:
                self.desk.sync()
                for reply in replies:
                    reply(answer)

        self._world.after(self._world.random.uniform(0.0, SYNC_SECONDS), synced)

    def _give_up(self) -> None:
        if self.life.alive:
            late = [reply for deadline, reply in self._waiting if deadline <= self._world.now]
            self._waiting = [(deadline, reply) for deadline, reply in self._waiting if deadline > self._world.now]
            for reply in late:
                reply(None)

    def _report(self, reply: Reply, report: StepReport) -> None:
        view = self.desk.report(report)
        self._happened()
        self._once_synced([reply], view)

    def _publish(self, reply: Reply, version: PolicyVersion) -> None:
        self.desk.publish(manifest(version.step, version.branch))
        self._happened()
        self._once_synced([reply], None)

    def _missing(self, reply: Reply, missing: GroupsMissing) -> None:
        self.desk.missing(missing)
        self._happened()
        reply(None)

    def _checkpoint(self, reply: Reply) -> None:
        state = wire.encode(self.desk.checkpoint())
        self._happened()
        reply(state)

    def _scale(self, reply: Reply, actors: int) -> None:
        self.desk.scale(actors)
        self._happened()
        reply(None)

    def _happened(self) -> None:
        self._discard()
        self._serve()

    def _discard(self) -> None:
        if discarded := self.desk.discards():
            self._network.call(self.life, "buffer", "discard", discarded)


def join_buffer(network: Network, life: Life) -> SampleBuffer:
    """A new, empty sample buffer."""
    buffer = SampleBuffer(BUFFER_BYTES)

    def put(reply: Reply, lease_id: int, frame: UInt8) -> None:
        buffer.put(lease_id, frame)
        reply(lease_id)

    def take(reply: Reply, lease_ids: list[int]) -> None:
        reply(buffer.take(lease_ids))

    def discard(reply: Reply, lease_ids: list[int]) -> None:
        buffer.discard(lease_ids)
        reply(None)

    def retain(reply: Reply, lease_ids: list[int]) -> None:
        buffer.retain(lease_ids)
        reply(None)

    methods: dict[str, Callable[..., None]] = {"put": put, "take": take, "discard": discard, "retain": retain}
    network.join("buffer", Station(life, "buffer", methods))
    return buffer


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a learner and a controller go on from."""

    step: int
    digest: bytes
    state: ControllerState | None


class LearnerStation:
    """What learner/remote.py does, with a step that only remembers what it was made of."""

    def __init__(
        self,
        world: World,
        network: Network,
        life: Life,
        *,
        version: PolicyVersion,
        digest: bytes,
        trained: Callable[[TrainOrder, list[Group], bytes], None],
        commit: Callable[[Checkpoint], None],
    ) -> None:
        self._world, self._network, self.life = world, network, life
        self.version, self.digest = version, digest
        self._trained, self._commit = trained, commit
        network.join("learner", Station(life, "learner", {"train": self._train, "save": self._save}))

    def _train(self, reply: Reply, order: TrainOrder) -> None:
        leases = [group.lease_id for group in order.groups]
        life = Life(self._world, "learner's fetch", self.life.node, lambda: self._fetched(reply, order, call))
        self.life.ended.append(lambda: life.end("its learner died"))
        call = self._network.call(life, "buffer", "take", leases, reliable=True)
        self._world.after(FETCH_SECONDS, lambda: self._too_late(reply, call, life))

    def _too_late(self, reply: Reply, call: Call, life: Life) -> None:
        if not call.arrived and self.life.alive:
            life.alive = False
            reply(Stalled("the sample buffer did not hand out the groups within its deadline"))

    def _fetched(self, reply: Reply, order: TrainOrder, call: Call) -> None:
        if isinstance(call.value, StationLost):
            leases = tuple(group.lease_id for group in order.groups)
            reply(GroupsMissing(version=order.version, lease_ids=leases))
            return
        taken = call.answer()
        if taken.missing:
            reply(GroupsMissing(version=order.version, lease_ids=taken.missing))
            return
        groups = [wire.decode(frame, Group) for frame in taken.frames]
        seconds = self._world.random.expovariate(1.0 / LEARNING_SECONDS)
        self._world.after(seconds, lambda: self._step(reply, order, groups))

    def _step(self, reply: Reply, order: TrainOrder, groups: list[Group]) -> None:
        if not self.life.alive:
            return
        self.digest = digest_of(self.digest, order, groups)
        self._trained(order, groups, self.digest)
        self.version = PolicyVersion(branch=order.version.branch, step=order.version.step + 1)
        report = report_of(order, groups, self.digest)
        reply(StepOutcome(report=report, manifest=manifest(self.version.step, self.version.branch)))

    def _save(self, reply: Reply, frame: UInt8) -> None:
        made = Checkpoint(step=self.version.step, digest=self.digest, state=wire.decode(frame, ControllerState))

        def commit() -> None:
            if self.life.alive:
                self._commit(made)
                reply(None)

        self._world.after(self._world.random.uniform(0.0, 0.5), commit)


def digest_of(before: bytes, order: TrainOrder, groups: list[Group]) -> bytes:
    """What the policy became: of all that mathematics sees, in order; no lease's number, no actor's."""
    seen: list[Any] = [before, order.version.step, order.coefficient, order.sample_balance, order.seed]
    seen.append(repr(order.usual_entropy))  # NaN at first
    for one, group in zip(order.groups, groups, strict=True):
        rollout = group.rollout
        seen += [one.prompt_id, one.level, one.in_policy, one.weight, one.coefficient, rollout.started.step]
        seen += [rollout.samples.tokens.tobytes(), [verdict.reward for verdict in group.verdicts]]
    return hashlib.blake2b(msgspec.msgpack.encode(seen), digest_size=16).digest()


def report_of(order: TrainOrder, groups: list[Group], digest: bytes) -> StepReport:
    """What a learner would measure: entropies that follow from the digest, level by level."""
    noise = np.frombuffer(digest, np.uint16)[0] / 65535.0
    entropy = 0.3 + 0.1 * float(noise)
    tokens: dict[str, int] = {}
    for one, group in zip(order.groups, groups, strict=True):
        tokens[one.level] = tokens.get(one.level, 0) + int(group.rollout.samples.lengths.sum())
    levels = tuple(
        LevelEntropy(
            level=level,
            tokens=count,
            entropy=entropy + 0.01 * len(level),
            clamped_entropy=entropy - 0.05,
            sampled_entropy=entropy,
        )
        for level, count in sorted(tokens.items())
    )
    return step_of(order, entropy=entropy, clamped=entropy - 0.05, sampled=entropy, levels=levels)
