"""The stations as Ray actors: started, asked with a deadline, watched, replaced, stopped."""

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from entrostat.actors.remote import RolloutActor
from entrostat.controller.remote import ControllerActor
from entrostat.learner.remote import BufferActor, LearnerActor
from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, ResourceError, Stalled, StationLost
from entrostat.protocol.messages import (
    ActorView,
    ControllerView,
    EvaluationRequest,
    EvaluationResult,
    GroupsMissing,
    PolicyVersion,
    PromptSet,
    StepOutcome,
    TrainOrder,
    WeightsManifest,
)
from entrostat.protocol.settings import Stations, VllmSettings

log = logging.getLogger(__name__)

START_SECONDS = 300.0
ANSWER_SECONDS = 60.0
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 1 << 30
MOST_RESTARTS = 5  # of one slot; after that the cause is no accident

T = TypeVar("T")


class Evaluation:
    """An evaluation under way on one actor."""

    def __init__(self, slot: "Slot", reference: Any) -> None:
        self.slot = slot
        self.reference = reference


class Slot(msgspec.Struct, kw_only=True):
    """A rollout actor's stable place, whoever lives in it."""

    number: int
    incarnation: int
    handle: Any
    ready: Any  # reference: the engine is up; None once it is
    started: Any = None  # reference to its first view; None before and after
    asked: Any = None  # reference to a view under way
    view: ActorView | None = None


class Cluster:
    """The stations of one run.

    Args:
        stations: the run's settings.
        prompts: all prompts of the run, training ones first.
        training_prompts: how many of them are trained on.
        branch, step: where the policy stands.
        checkpoint: folder to restore learner and controller from.
        address: of a Ray cluster; "local" starts one on this machine.
        stall_seconds: the longest any station may take over one answer.
    """

    def __init__(
        self,
        stations: Stations,
        prompts: PromptSet,
        *,
        training_prompts: int,
        branch: int,
        step: int,
        checkpoint: Path | None,
        address: str,
        stall_seconds: float,
    ) -> None:
        self._stations = stations
        self._stall_seconds = stall_seconds
        self.restarts = 0
        _connect(address, stations)
        self._settings = ray.put(wire.encode(stations))
        self._prompts = ray.put(wire.encode(prompts))
        levels = [prompt.level for prompt in prompts.prompts[:training_prompts]]
        place = (branch, step)
        self._buffer = _remote(BufferActor).remote(self._settings)
        self._buffer_lives = self._buffer.endpoint.remote()
        snapshot = None if checkpoint is None else ray.put(_read(checkpoint / "controller.bin"))
        self._controller = _remote(ControllerActor).remote(self._settings, levels, self._buffer, *place, snapshot)
        learner_gpus, self._gpus = gpu_shares(stations, ray.cluster_resources().get("GPU", 0.0))
        self._learner = _remote(LearnerActor, cpus=1, gpus=learner_gpus, max_concurrency=4).remote(
            self._settings, self._prompts, self._buffer, *place, None if checkpoint is None else str(checkpoint)
        )
        self._manifest = self._learner.start.remote()  # a reference first, the frame once it is known
        self.slots = [self._live(number, incarnation=1) for number in range(stations.rollout.actors)]

    def start(self) -> WeightsManifest:
        """Waits until every station is up and every actor serves the starting version."""
        self._answer(self._controller.start.remote(), "the controller", START_SECONDS, watch=False)
        self._manifest = self._answer(self._manifest, "the learner", START_SECONDS, watch=False)
        manifest = wire.decode(self._manifest, WeightsManifest)
        self._answer(self._controller.publish.remote(self._manifest), "the controller", ANSWER_SECONDS, watch=False)
        for slot in self.slots:
            who = f"rollout actor {slot.number}"
            self._answer(slot.ready, who, START_SECONDS, watch=False)
            slot.ready = None
            frame = self._answer(slot.handle.start.remote(self._manifest), who, START_SECONDS, watch=False)
            slot.view = wire.decode(frame, ActorView)
        self._register_targets()
        return manifest

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Begins an evaluation on the first actor that lives."""
        slot = self._evaluator()
        return Evaluation(slot, slot.handle.evaluate.remote(wire.encode(request)))

    def evaluated(self, evaluation: Evaluation, seconds: float) -> EvaluationResult:
        """Waits for an evaluation to end."""
        who = f"the evaluation on rollout actor {evaluation.slot.number}"
        return wire.decode(self._answer(evaluation.reference, who, seconds), EvaluationResult)

    def has_evaluated(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation has ended."""
        return _done(evaluation.reference)

    def serving(self) -> PolicyVersion | None:
        """The policy that the actor which evaluates serves; None while it starts."""
        self.watch()
        view = self._evaluator().view
        return None if view is None else view.version

    def _evaluator(self) -> Slot:
        return next((slot for slot in self.slots if slot.view is not None), self.slots[0])

    def next_order(self, wait_seconds: float) -> TrainOrder | None:
        """The next order, or None when none could be made within the time."""
        reference = self._controller.order.remote(wait_seconds)
        frame = self._answer(reference, "the controller", wait_seconds + ANSWER_SECONDS)
        return None if frame is None else wire.decode(frame, TrainOrder)

    def train(self, order: TrainOrder, wait_seconds: float) -> StepOutcome | GroupsMissing:
        """One optimizer step; its weights are offered to the actors before this returns."""
        reference = self._learner.train.remote(wire.encode(order), wait_seconds)
        frame = self._answer(reference, "the learner", self._stall_seconds)
        outcome: StepOutcome | GroupsMissing = wire.decode(frame, StepOutcome | GroupsMissing)
        if isinstance(outcome, StepOutcome):
            self._manifest = wire.encode(outcome.manifest)
        return outcome

    def report(self, outcome: StepOutcome) -> ControllerView:
        """Tells the controller of a step and its weights; returns what it makes of them."""
        frame = self._answer(
            self._controller.report.remote(wire.encode(outcome.report)), "the controller", ANSWER_SECONDS
        )
        self._answer(self._controller.publish.remote(self._manifest), "the controller", ANSWER_SECONDS)
        return wire.decode(frame, ControllerView)

    def missing(self, missing: GroupsMissing) -> None:
        """Tells the controller that an order can't be trained."""
        self._answer(self._controller.missing.remote(wire.encode(missing)), "the controller", ANSWER_SECONDS)

    def controller_view(self) -> ControllerView:
        """How the controller stands."""
        return wire.decode(
            self._answer(self._controller.view.remote(), "the controller", ANSWER_SECONDS), ControllerView
        )

    def save(self, folder: Path) -> None:
        """Commits a checkpoint: the learner's state and the controller's, in one folder, whole or not at all."""
        snapshot = self._answer(self._controller.snapshot.remote(), "the controller", ANSWER_SECONDS)
        self._answer(self._learner.save.remote(str(folder), snapshot), "the learner's checkpoint", self._stall_seconds)

    def actor_views(self) -> list[ActorView]:
        """What each living actor last said of itself; asks again without waiting."""
        self.watch()
        return [slot.view for slot in self.slots if slot.view is not None]

    def watch(self) -> None:
        """Collects the actors' views and replaces those that died.

        Raises:
            StationLost: the sample buffer died, or an actor did more often than accidents explain.
            EntrostatError: an actor stopped for a reason it named.
        """
        if _done(self._buffer_lives):
            _get(self._buffer_lives, "the sample buffer", ANSWER_SECONDS)
            self._buffer_lives = self._buffer.endpoint.remote()
        for slot in self.slots:
            try:
                self._watch_one(slot)
            except StationLost as error:
                self._replace(slot, error)

    def _watch_one(self, slot: Slot) -> None:
        who = f"rollout actor {slot.number}"
        if slot.ready is not None:
            if _done(slot.ready):
                reference, slot.ready = slot.ready, None
                _get(reference, who, ANSWER_SECONDS)
                # Weights of now: those of the moment at which the engine began to start are gone.
                slot.started = slot.handle.start.remote(self._manifest)
        elif slot.started is not None:
            if _done(slot.started):
                reference, slot.started = slot.started, None
                slot.view = wire.decode(_get(reference, who, ANSWER_SECONDS), ActorView)
                self._register_targets()
        elif slot.asked is None:
            slot.asked = slot.handle.view.remote()
        elif _done(slot.asked):
            reference, slot.asked = slot.asked, None
            slot.view = wire.decode(_get(reference, who, ANSWER_SECONDS), ActorView)

    def endpoints(self) -> tuple[str, int]:
        """Where the controller serves `/targets` and `/healthz`."""
        port = self._answer(self._controller.endpoint.remote(), "the controller", ANSWER_SECONDS, watch=False)
        return self._stations.metrics_host, int(port)

    def close(self) -> None:
        """Stops every station. Never raises: it also runs after a failure, whose error matters more."""
        stations = [slot.handle for slot in self.slots] + [self._learner]
        try:
            ray.wait([one.stop.remote() for one in stations], num_returns=len(stations), timeout=10)
        except (RayActorError, RayTaskError) as error:
            log.warning("a station did not stop by itself: %s", error)
        ray.shutdown()

    def _live(self, number: int, incarnation: int) -> Slot:
        # The handlers of view and evaluate must answer while the loop's thread works.
        handle = _remote(RolloutActor, cpus=1, gpus=self._gpus, max_concurrency=8).remote(
            self._settings, self._prompts, number, incarnation, self._controller, self._buffer
        )
        # The engine comes up while the learner loads the policy.
        return Slot(number=number, incarnation=incarnation, handle=handle, ready=handle.ready.remote())

    def _replace(self, slot: Slot, error: StationLost) -> None:
        if slot.incarnation > MOST_RESTARTS:
            raise StationLost(
                f"rollout actor {slot.number} died {slot.incarnation} times; the last: {error}"
            ) from error
        log.warning("rollout actor %d died and is replaced: %s", slot.number, error)
        self.restarts += 1
        fresh = self._live(slot.number, slot.incarnation + 1)
        slot.incarnation, slot.handle, slot.ready = fresh.incarnation, fresh.handle, fresh.ready
        slot.started = slot.asked = slot.view = None

    def _register_targets(self) -> None:
        ports = {"controller": self._controller, "learner": self._learner, "buffer": self._buffer}
        ports |= {f"rollout-{slot.number}": slot.handle for slot in self.slots if slot.view is not None}
        targets = []
        for name, handle in ports.items():
            port = self._answer(handle.endpoint.remote(), name, ANSWER_SECONDS, watch=False)
            labels = {"station": name.split("-")[0], "run": self._stations.run}
            targets.append({"targets": [f"{self._stations.metrics_host}:{port}"], "labels": labels})
        reference = self._controller.set_targets.remote(targets)
        self._answer(reference, "the controller", ANSWER_SECONDS, watch=False)

    def _answer(self, reference: Any, who: str, seconds: float, *, watch: bool = True) -> Any:
        """A station's answer, watching the actors meanwhile.

        Raises:
            Stalled: none came within `seconds`.
            StationLost: the station died.
        """
        deadline = time.monotonic() + seconds
        while not ray.wait([reference], timeout=min(1.0, max(0.0, deadline - time.monotonic())))[0]:
            if time.monotonic() >= deadline:
                raise Stalled(
                    f"{who} did not answer within {seconds:.0f} s; its log is in {self._stations.directory}/logs"
                )
            if watch:
                self.watch()
        return _get(reference, who, ANSWER_SECONDS)


def _connect(address: str, stations: Stations) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # A station waits more than it computes: Ray's count of CPUs must not keep an actor from being placed.
        needed = 1 + stations.rollout.actors
        options |= {"num_cpus": max(needed, os.cpu_count() or 1), "object_store_memory": OBJECT_STORE_BYTES}
    ray.init(address=address, **options)


def _remote(station: type, *, cpus: float = 0, gpus: float = 0, max_concurrency: int | None = None) -> Any:
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
    if max_concurrency is not None:
        options["max_concurrency"] = max_concurrency
    return ray.remote(**options)(station)


def _get(reference: Any, who: str, seconds: float) -> Any:
    try:
        return ray.get(reference, timeout=seconds)
    except RayTaskError as error:
        if isinstance(error.cause, EntrostatError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise StationLost(f"{who} died: {first_sentence(str(error))}") from error
    except GetTimeoutError as error:
        raise Stalled(f"the answer of {who} could not be read within {seconds:.0f} s") from error


def gpu_shares(stations: Stations, gpus: float) -> tuple[float, float]:
    """How much of Ray's `gpus` the learner and each rollout actor are given; what computes on a CPU takes none.

    Raises:
        ResourceError: together they ask for more than there is.
    """
    learner = stations.learner.gpus if gpus and stations.learner.device != "cpu" else 0.0
    actor = stations.rollout.gpus if gpus and isinstance(stations.rollout.engine, VllmSettings) else 0.0
    wanted = learner + stations.rollout.actors * actor
    if wanted > gpus:
        raise ResourceError(
            f"the learner ({learner:g}) and {stations.rollout.actors} rollout actors ({actor:g} each) ask for "
            f"{wanted:g} GPUs, Ray has {gpus:g}: lower learner.gpus and rollout.gpus (0.5 each shares one), or "
            'use a CPU (learner.device = "cpu", rollout.gpus = 0)'
        )
    return learner, actor


def first_sentence(text: str) -> str:
    """What Ray says of a death, without its advice and tables."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next(
        (line for line in lines if "cause" in line.lower() or "died" in line.lower()), lines[0] if lines else ""
    )
    return told[:300]


def check_address(address: str) -> None:
    """Sees that a Ray cluster answers at `host:port`; other forms are Ray's own business.

    Raises:
        ResourceError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address} ({error}): start one there (ray start --head), or leave --address out"
        ) from error


def _done(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def _read(path: Path) -> UInt8:
    import numpy as np

    return np.frombuffer(path.read_bytes(), np.uint8)
