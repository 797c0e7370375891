"""The controller as a Ray actor: bytes in, bytes out, one event loop, and the clock that the state machine lacks.

The driver wraps `ControllerActor` with `ray.remote`. Every message in and out is one `[bytes] uint8` frame.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

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
    Rewound,
    Scaled,
    StepReported,
    Ticked,
)
from entrostat.controller.snapshot import ControllerState
from entrostat.controller.state import Controller
from entrostat.controller.telemetry import Telemetry
from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, StationLost
from entrostat.protocol.logs import log_to
from entrostat.protocol.messages import (
    GroupsMissing,
    PolicyVersion,
    Pulse,
    PulseReply,
    StepReport,
    TrainOrder,
    WeightsManifest,
)
from entrostat.protocol.metrics import Exporter
from entrostat.protocol.scaling import scale_gate
from entrostat.protocol.settings import Stations

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
SCALE_SECONDS = 10.0  # for one request; the loop is never busy for so long
KEPT_MANIFESTS = 3  # of the newest versions: what an actor may be offered


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


class Started(NamedTuple):
    """What `start` makes."""

    controller: Controller
    exporter: Exporter
    telemetry: Telemetry


class ControllerActor:
    """The one controller of a run. `start` comes first.

    Args:
        settings: a `Stations` frame.
        levels: `[prompts]` the level of each training prompt.
        buffer: handle of the sample buffer.
        branch: of all versions from now on.
        step: the branch starts from these weights.
        snapshot: a `ControllerState` frame of an earlier branch.
    """

    def __init__(
        self,
        settings: UInt8,
        levels: Sequence[str],
        buffer: BufferHandle,
        branch: int = 0,
        step: int = 0,
        snapshot: UInt8 | None = None,
    ) -> None:
        # What can fail waits for `start`: an error in a constructor reaches nobody with its type.
        self._settings, self._snapshot = settings, snapshot
        self._levels = levels
        self._branch, self._step = branch, step
        self._buffer = buffer
        self._started: Started | None = None
        self._targets: list[dict[str, Any]] = []
        self._ordered: TrainOrder | None = None
        self._manifests: dict[PolicyVersion, WeightsManifest] = {}
        self._changed = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Sets the controller up and starts its clock; returns the port of its metrics.

        Raises:
            TaskError: there are no prompts.
            CheckpointDamaged: the snapshot does not fit.
            ResourceError: the metrics port is taken.
        """
        stations = wire.decode(self._settings, Stations)
        log_to(stations.directory, "controller")
        before = None if self._snapshot is None else wire.decode(self._snapshot, ControllerState)
        controller = Controller(stations, self._levels)
        if self._branch:
            controller.apply(Rewound(branch=self._branch, step=self._step, state=before, at=time.monotonic()))
        loop = asyncio.get_running_loop()

        def scale(actors: int) -> int:
            return asyncio.run_coroutine_threadsafe(self._scale(actors), loop).result(SCALE_SECONDS)

        exporter = Exporter(
            "controller",
            host=stations.metrics_host,
            port=stations.metrics_port,
            targets=lambda: self._targets,
            scale=scale_gate(stations, scale),
        )
        self._started = Started(controller, exporter, Telemetry(exporter, controller))
        log.info("the controller starts at version %s with %d prompts", controller.version, len(self._levels))
        return await self.endpoint()

    async def pulse(self, frame: UInt8) -> UInt8:
        """A `Pulse` in, a `PulseReply` out."""
        pulse = wire.decode(frame, Pulse)
        for command in self._apply(Pulsed(pulse=pulse, at=time.monotonic())):
            if isinstance(command, Reply):
                if command.fenced:
                    log.info("slot %d: incarnation %d is fenced, a newer one lives", pulse.slot, pulse.incarnation)
                return wire.encode(self._with_manifest(command))
        raise EntrostatError(f"the controller had no reply to a pulse of slot {pulse.slot}; expected a PulseReply")

    async def order(self, wait_seconds: float) -> UInt8 | None:
        """The `TrainOrder` of the next step once there are groups for it; None when `wait_seconds` pass first."""
        deadline = time.monotonic() + wait_seconds
        while True:
            changed = self._changed
            for command in self._apply(OrderRequested(at=time.monotonic())):
                if isinstance(command, Order):
                    self._note_order(command.order)
                    return wire.encode(command.order)
            try:
                await asyncio.wait_for(changed.wait(), deadline - time.monotonic())
            except TimeoutError:
                return None

    async def report(self, frame: UInt8) -> UInt8:
        """A `StepReport` in, a `ControllerView` out."""
        report = wire.decode(frame, StepReport)
        controller, _, telemetry = self._running()
        self._apply(StepReported(report=report, at=time.monotonic()))
        if controller.version != report.version:
            log.warning(
                "a report of step %s was ignored: the controller is at %s, its order %s",
                report.version,
                controller.version,
                "is under way" if self._ordered is not None else "was none",
            )
        view = controller.view()
        telemetry.law(view, report)
        return wire.encode(view)

    async def missing(self, frame: UInt8) -> None:
        """A `GroupsMissing` in: the order is given up."""
        missing = wire.decode(frame, GroupsMissing)
        log.info("the buffer lost %d groups of order %s", len(missing.lease_ids), missing.version)
        self._apply(Missing(missing=missing, at=time.monotonic()))

    async def publish(self, frame: UInt8) -> None:
        """A `WeightsManifest` in: actors are told with their next pulse."""
        manifest = wire.decode(frame, WeightsManifest)
        log.info("version %s is published, %d bytes", manifest.version, manifest.bytes)
        self._manifests[manifest.version] = manifest
        for version in sorted(self._manifests)[:-KEPT_MANIFESTS]:
            del self._manifests[version]
        self._apply(Published(version=manifest.version, checksum=manifest.checksum))

    async def view(self) -> UInt8:
        """The `ControllerView` of now."""
        return wire.encode(self._running().controller.view())

    async def snapshot(self) -> UInt8:
        """A `ControllerState` for the checkpoint."""
        return wire.encode(self._running().controller.state())

    async def set_targets(self, targets: list[dict[str, Any]]) -> None:
        """What `/targets` answers: Prometheus' HTTP service-discovery form."""
        self._running()
        self._targets = targets

    async def wanted_actors(self) -> int:
        """How many rollout actors there should be."""
        return self._running().controller.wanted_actors

    async def endpoint(self) -> int:
        """The port of the metrics endpoint; also starts the clock."""
        port = self._running().exporter.port
        self._keep_ticking()
        return port

    async def _scale(self, actors: int) -> int:
        before = self._running().controller.wanted_actors
        self._apply(Scaled(actors=actors))
        return before

    def _with_manifest(self, reply: Reply) -> PulseReply:
        """An offer of a version whose manifest is not here is kept for a later pulse."""
        manifest = None if reply.offer is None else self._manifests.get(reply.offer)
        return PulseReply(leases=reply.leases, ended=reply.ended, manifest=manifest, fenced=reply.fenced)

    def _running(self) -> Started:
        if self._started is None:
            raise StationLost("the controller was asked for work before it was started: call start first")
        return self._started

    def _apply(self, event: Event) -> tuple[Command, ...]:
        controller, _, telemetry = self._running()
        self._keep_ticking()
        commands = controller.apply(event)
        discarded = [lease for command in commands if isinstance(command, Discard) for lease in command.lease_ids]
        if discarded:
            self._buffer.discard.remote(discarded)
        telemetry.leases(controller)
        if not isinstance(event, OrderRequested):
            # Every waiter looks again; the next ones wait for the next change.
            self._changed.set()
            self._changed = asyncio.Event()
        return commands

    def _note_order(self, order: TrainOrder) -> None:
        if order is not self._ordered:
            self._ordered = order
            controller, _, telemetry = self._running()
            telemetry.ordered(controller.view())

    def _keep_ticking(self) -> None:
        """Starts the ticker on the loop that serves the calls; a ticker that failed fails the next call."""
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        elif self._ticker.done():
            self._ticker.result()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._apply(Ticked(at=time.monotonic()))
