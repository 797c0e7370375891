"""The controller as a Ray actor: bytes in, bytes out, one event loop, and the clock that the desk lacks.

The driver wraps `ControllerActor` with `ray.remote`. Every message in and out is one `[bytes] uint8` frame. Ray may
restart it: its first call then takes over from the journal.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from entrostat.controller.desk import Desk
from entrostat.controller.journal import Folder
from entrostat.controller.snapshot import ControllerState
from entrostat.controller.telemetry import Telemetry
from entrostat.controller.waiting import WaitClock, cause_of, standing
from entrostat.protocol import metrics, wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import StationAway, StationLost
from entrostat.protocol.lives import Writer
from entrostat.protocol.logs import log_to
from entrostat.protocol.messages import (
    GroupsMissing,
    Pulse,
    StepReport,
    TrainOrder,
    Waits,
    WeightsManifest,
)
from entrostat.protocol.metrics import Exporter
from entrostat.protocol.scaling import scale_gate
from entrostat.protocol.settings import Stations
from entrostat.protocol.stacks import stacks

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
SCALE_SECONDS = 10.0  # for one request; the loop is never busy for so long


class RemoteMethod(Protocol):
    """A method of a Ray actor's handle."""

    def remote(self, leases: list[int]) -> object:
        """Starts the call; its answer is not waited for."""
        ...


class BufferHandle(Protocol):
    """The sample buffer, as the controller sees it."""

    @property
    def discard(self) -> RemoteMethod:
        """Forgets the groups of some leases."""
        ...

    @property
    def retain(self) -> RemoteMethod:
        """Forgets all groups but those of some leases."""
        ...


class Started(NamedTuple):
    """What `start` makes."""

    desk: Desk
    exporter: Exporter
    telemetry: Telemetry
    waits: WaitClock


class ControllerActor:
    """The one controller of a run. `start` comes first.

    Args:
        settings: a `Stations` frame.
        branch: of all versions from now on.
        step: the branch starts from these weights.
    """

    def __init__(self, settings: UInt8, branch: int = 0, step: int = 0) -> None:
        # What can fail waits for `start`: an error in a constructor reaches nobody with its type. What lies in Ray's
        # object store is given there too, or a restart would depend on it: the prompts' levels and the state are in
        # the journal by then, the buffer's handle comes with `welcome`.
        self._settings = wire.decode(settings, Stations)
        self._branch, self._step = branch, step
        self._buffer: BufferHandle | None = None
        self._writer: Writer | None = None
        self._journal = Folder(Path(self._settings.directory) / "journal")
        self._started: Started | None = None
        self._targets: list[dict[str, Any]] = []
        self._ordered: TrainOrder | None = None
        self._changed = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None
        self._stepped = 0.0  # when the last step was reported

    async def start(
        self,
        levels: Sequence[str],
        buffer: BufferHandle,
        state: UInt8 | None = None,
        task_prompts: Sequence[int] = (),
    ) -> int:
        """Sets the controller up and starts its clock; returns the port of its metrics.

        Args:
            levels: `[prompts]` the level of each training prompt.
            buffer: handle of the sample buffer.
            state: a `ControllerState` frame of an earlier branch.
            task_prompts: how many of the prompts each task has, by id one after the other.

        Raises:
            StationLost: a newer life of the run has begun.
            TaskError: there are no prompts.
            CheckpointDamaged: the state does not fit.
            JournalDamaged, JournalDiffers: the branch's journal can't be gone on with.
            ResourceError: the metrics port is taken, or the journal can't be written.
        """
        self._buffer = buffer
        if self._started is None:
            before = None if state is None else wire.decode(state, ControllerState)
            self._started = self._start(levels, before, task_prompts)
        return await self.endpoint()

    def _start(
        self, levels: Sequence[str] | None, state: ControllerState | None, task_prompts: Sequence[int]
    ) -> Started:
        stations, began = self._settings, time.monotonic()
        if self._writer is None:
            self._writer = Writer(stations.directory, self._branch, "the controller")
        log_to(stations.directory, "controller")
        desk = Desk(
            stations,
            levels,
            self._journal,
            time.monotonic,
            branch=self._branch,
            step=self._step,
            state=state,
            task_prompts=task_prompts,
        )
        loop = asyncio.get_running_loop()

        def scale(actors: int) -> int:
            asked = asyncio.run_coroutine_threadsafe(self.scale(actors), loop)
            try:
                return asked.result(SCALE_SECONDS)
            except TimeoutError:
                asked.cancel()  # who was told that it failed must not find it done later
                raise

        exporter = Exporter(
            "controller",
            host=stations.metrics_host,
            port=stations.metrics_port,
            targets=lambda: self._targets,
            scale=scale_gate(stations, scale),
        )
        log.info(
            "the controller starts at version %s, its life %d in this branch, after %.2f s",
            desk.controller.version,
            desk.controller.term,
            time.monotonic() - began,
        )
        exporter.set(metrics.STALL_LIMIT, stations.stall_seconds)
        self._stepped = time.monotonic()
        return Started(desk, exporter, Telemetry(exporter, desk.controller), WaitClock(exporter))

    async def pulse(self, frame: UInt8) -> UInt8:
        """A `Pulse` in, a `PulseReply` out."""
        pulse = wire.decode(frame, Pulse)
        reply = self._running().desk.pulse(pulse)
        self._happened()
        if reply.fenced:
            log.info("slot %d: incarnation %d is fenced, a newer one lives", pulse.slot, pulse.incarnation)
        return wire.encode(reply)

    async def order(self, wait_seconds: float) -> UInt8 | None:
        """The `TrainOrder` of the next step once there are groups for it; None when `wait_seconds` pass first."""
        deadline = time.monotonic() + wait_seconds
        while True:
            changed, desk = self._changed, self._welcomed().desk
            order = desk.order()
            self._discard(desk)
            if order is not None:
                if not desk.synced:
                    await asyncio.to_thread(desk.sync)
                self._note_order(order)
                return wire.encode(order)
            if not await self._waited(changed, deadline - time.monotonic()):
                return None

    async def report(self, frame: UInt8) -> UInt8:
        """A `StepReport` in, a `ControllerView` out."""
        report = wire.decode(frame, StepReport)
        desk, _, telemetry, _ = self._welcomed()
        view = desk.report(report)
        self._stepped = time.monotonic()
        self._happened()
        # The learner has gone on: should this be forgotten, the same step would be ordered again.
        if not desk.synced:
            await asyncio.to_thread(desk.sync)
        if view.version != report.version:
            log.warning(
                "a report of step %s was ignored: the controller is at %s, its order %s",
                report.version,
                view.version,
                "is under way" if self._ordered is not None else "was none",
            )
        telemetry.law(view, report)
        return wire.encode(view)

    async def missing(self, frame: UInt8) -> None:
        """A `GroupsMissing` in: the order is given up."""
        missing = wire.decode(frame, GroupsMissing)
        log.info("the buffer lost %d groups of order %s", len(missing.lease_ids), missing.version)
        self._welcomed().desk.missing(missing)
        self._happened()

    async def publish(self, frame: UInt8) -> None:
        """A `WeightsManifest` in: actors are told with their next pulse."""
        manifest = wire.decode(frame, WeightsManifest)
        log.info("version %s is published, %d bytes", manifest.version, manifest.bytes)
        desk = self._welcomed().desk
        desk.publish(manifest)
        self._happened()
        # Nobody publishes it again: should it be forgotten, actors would wait for it, and the learner for them.
        if not desk.synced:
            await asyncio.to_thread(desk.sync)

    async def welcome(self, buffer: BufferHandle) -> None:
        """After a restart: the buffer's handle, which the journal does not hold."""
        self._buffer = buffer
        # What was to be forgotten when the process before died is known no more.
        buffer.retain.remote(self._running().desk.controller.held)

    async def scale(self, actors: int) -> int:
        """So many rollout actors are wanted from now on; returns how many were until now."""
        log.info("%d rollout actors are wanted", actors)
        desk = self._running().desk
        before = desk.controller.wanted_actors
        desk.scale(actors)
        self._happened()
        return before

    async def view(self) -> UInt8:
        """The `ControllerView` of now."""
        return wire.encode(self._welcomed().desk.controller.view())

    async def waits(self, frame: UInt8) -> UInt8:
        """The driver's own `Waits` in; all since this was asked last out."""
        clock = self._running().waits
        clock.add(wire.decode(frame, Waits))
        return wire.encode(clock.take())

    async def standing(self) -> UInt8:
        """A `Standing`, for the report of a stall."""
        controller = self._running().desk.controller
        return wire.encode(standing(controller.state(), needed=self._settings.batch.prompts, now=controller.now))

    async def stacks(self) -> UInt8:
        """A `Stacks`."""
        return wire.encode(stacks())

    async def checkpoint(self) -> UInt8:
        """A `ControllerState` for the checkpoint."""
        return wire.encode(self._welcomed().desk.checkpoint())

    async def set_targets(self, targets: list[dict[str, Any]]) -> None:
        """What `/targets` answers: Prometheus' HTTP service-discovery form."""
        self._running()
        self._targets = targets

    async def wanted_actors(self) -> int:
        """How many rollout actors there should be."""
        return self._running().desk.controller.wanted_actors

    async def endpoint(self) -> int:
        """The port of the metrics endpoint; also starts the clock."""
        port = self._running().exporter.port
        self._keep_ticking()
        return port

    async def finish(self) -> None:
        """The run came to its end: the journal says so, and nothing is answered any more."""
        desk = self._welcomed().desk
        if self._ticker is not None:
            self._ticker.cancel()
        desk.close()

    async def _waited(self, changed: asyncio.Event, seconds: float) -> bool:
        """Whether something changed within the time, which counts as the learner's waiting for what is missing now."""
        desk, _, _, waits = self._running()
        needed, now = self._settings.batch.prompts, desk.controller
        cause = cause_of(now.counts, needed=needed, actors=now.actors, judging=now.judging)
        began = time.monotonic()
        try:
            await asyncio.wait_for(changed.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            waits.add(Waits(**{cause: time.monotonic() - began}))
        return True

    def _running(self) -> Started:
        if self._started is None:
            if not any(branch == self._branch for branch, _ in self._journal.segments()):
                raise StationLost("the controller was asked for work before it was started: call start first")
            # Ray restarted this process.
            self._started = self._start(None, None, ())
        return self._started

    def _welcomed(self) -> Started:
        """For calls of the driver: it must know of a restart, since it alone has the buffer's handle.

        Raises:
            StationAway: it has not been told yet.
        """
        started = self._running()
        if self._buffer is None:
            raise StationAway("the controller was restarted: welcome it, and ask again")
        return started

    def _happened(self) -> None:
        """After every event."""
        desk, _, telemetry, _ = self._running()
        self._keep_ticking()
        self._discard(desk)
        telemetry.leases(desk.controller)
        # Every waiter looks again; the next ones wait for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    def _discard(self, desk: Desk) -> None:
        if self._buffer is not None and (discarded := desk.discards()):
            self._buffer.discard.remote(discarded)

    def _note_order(self, order: TrainOrder) -> None:
        if order is not self._ordered:
            self._ordered = order
            desk, _, telemetry, _ = self._running()
            telemetry.ordered(desk.controller.view())

    def _keep_ticking(self) -> None:
        """Starts the ticker on the loop that serves the calls; a ticker that failed fails the next call."""
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        elif self._ticker.done():
            self._ticker.result()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._running().desk.tick()
            self._running().exporter.set(metrics.STEP_AGE, time.monotonic() - self._stepped)
            self._happened()
