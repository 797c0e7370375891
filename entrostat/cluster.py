"""The stations as Ray actors: started, asked with a deadline, watched, stopped."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from entrostat import ray_calls, recovery
from entrostat.actors.remote import RolloutActor
from entrostat.controller.remote import ControllerActor
from entrostat.learner.remote import BufferActor
from entrostat.learners import Learners
from entrostat.looks import Lookout, standing
from entrostat.placement import gpu_shares
from entrostat.protocol import wire
from entrostat.protocol.errors import ResourceError, Stalled, StationAway, StationLost
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
    Waits,
    WeightsManifest,
)
from entrostat.protocol.settings import Stations
from entrostat.recovery import Beginning
from entrostat.slots import ANSWER_SECONDS, PLACE_SECONDS, Slot, Slots
from entrostat.stall import Picture, Told

log = logging.getLogger(__name__)

START_SECONDS = 300.0
WANTED_SECONDS = 0.5  # between two questions of how many actors there should be
RESTART_SECONDS = 120.0  # until a station that Ray restarts answers again
RETRY_SECONDS = 0.2
STATION_RESTARTS = 20  # of the controller, and of the sample buffer
STOP_SECONDS = 10.0


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation under way on one actor."""

    who: str
    reference: Any
    began: float  # monotonic seconds


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that the learner writes while it trains on."""

    folder: Path
    reference: Any
    deadline: float  # monotonic


class Cluster:
    """The stations of one run.

    Args:
        stations: the run's settings.
        prompts: all prompts of the run, training ones first.
        training_prompts: how many of them are trained on.
        start: where learner and controller begin.
        address: of a Ray cluster; "local" starts one on this machine.
        stall_seconds: the longest any station may take over one answer.
        say: tells people which station died and what becomes of it.
        beat: told again and again who is waited for.
    """

    def __init__(
        self,
        stations: Stations,
        prompts: PromptSet,
        *,
        training_prompts: int,
        start: Beginning,
        address: str,
        stall_seconds: float,
        say: Callable[[str], None] = log.warning,
        beat: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._stations = stations
        self._beat, self._lookout, self._silent = beat, Lookout(), set[str]()
        self._stall_seconds, self._say = stall_seconds, say
        ray_calls.connect(address, cpus=stations.learner.ranks)
        # A station waits more than it computes: on a machine of our own Ray's count keeps no actor from being placed.
        self._actor_cpus = 0 if address == "local" else 1
        self._settings = ray_calls.share(wire.encode(stations))
        self._prompts = ray_calls.share(wire.encode(prompts))
        self._levels = [prompt.level for prompt in prompts.prompts[:training_prompts]]
        of_task = Counter(prompt.task for prompt in prompts.prompts[:training_prompts])  # their ids are in its order
        self._task_prompts = [of_task[task] for task in range(len(stations.tasks))]
        self._start = start
        # Ray may restart these two: what they are made of is not in its object store.
        settings = wire.encode(stations)
        self._buffer = ray_calls.remote(BufferActor, restarts=STATION_RESTARTS).remote(settings)
        self._buffer_life, self._asked_life = "", self._buffer.life.remote()
        self._controller = ray_calls.remote(ControllerActor, restarts=STATION_RESTARTS).remote(
            settings, start.version.branch, start.version.step
        )
        learner_gpus, self._actor_gpus = gpu_shares(stations, ray_calls.gpus())
        self._learners = Learners(
            stations, self._settings, self._prompts, self._buffer, start.learner, start.checkpoint, gpus=learner_gpus
        )
        self._learner = self._learners.first
        # The engines come up while the learner loads the policy.
        self._controller_away = False  # it died, and does not know the newest weights' manifest yet
        self._returned = False  # a station that was away came back, with another port
        self._learner_starts = self._learner.start.remote()
        self._slots = Slots(
            stations.rollout.actors, self._new_actor, rollout=stations.rollout, say=say, room=self._room
        )
        self._ports: dict[str, int] = {}  # of the metrics of those who are no actors
        self._wanted: Any = None  # reference to how many actors there should be
        self._wanted_at = 0.0

    def start(self) -> WeightsManifest:
        """Waits until every station is up and every actor serves the starting version."""
        begun = self._controller.start.remote(self._levels, self._buffer, self._start.controller, self._task_prompts)
        self._answer(begun, "the controller", START_SECONDS, watch=False)
        weights = self._answer(self._learner_starts, "the learner", START_SECONDS, watch=False)
        for one in self._start.again:
            again = self.retrain(one.order)
            recovery.check(one, again)
            weights = wire.encode(again.manifest)
        self._answer(self._controller.publish.remote(weights), "the controller", ANSWER_SECONDS, watch=False)
        self._slots.weights = weights
        for slot in self._placed():
            self._answer(slot.ready, slot.who, START_SECONDS, watch=False)
            slot.ready = None
            frame = self._answer(self._slots.start(slot), slot.who, START_SECONDS, watch=False)
            slot.view = wire.decode(frame, ActorView)
        for name, station in (("controller", self._controller), ("learner", self._learner), ("buffer", self._buffer)):
            self._ports[name] = self._answer(station.endpoint.remote(), f"the {name}", ANSWER_SECONDS, watch=False)
        self._register_targets()
        self._lookout.locate(self._handles())
        return wire.decode(weights, WeightsManifest)

    @property
    def restarts(self) -> int:
        """How often a rollout actor was replaced."""
        return self._slots.restarts

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Begins an evaluation on the first actor that lives."""
        slot = self._slots.first_living
        reference = slot.evaluation = slot.handle.evaluate.remote(wire.encode(request))
        return Evaluation(who=f"the evaluation on {slot.who}", reference=reference, began=time.monotonic())

    def evaluated(self, evaluation: Evaluation, seconds: float) -> EvaluationResult:
        """Waits for an evaluation to end."""
        return wire.decode(self._answer(evaluation.reference, evaluation.who, seconds), EvaluationResult)

    def has_evaluated(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation has ended."""
        return ray_calls.done(evaluation.reference)

    def serving(self) -> PolicyVersion | None:
        """The policy that the actor which evaluates serves; None while it starts."""
        self.watch()
        view = self._slots.first_living.view
        return None if view is None else view.version

    def next_order(self, wait_seconds: float) -> TrainOrder | None:
        """The next order, or None when none could be made within the time."""
        frame = self._ask("order", wait_seconds, seconds=wait_seconds + ANSWER_SECONDS)
        return None if frame is None else wire.decode(frame, TrainOrder)

    def train(self, order: TrainOrder, wait_seconds: float) -> StepOutcome | GroupsMissing:
        """One optimizer step; its weights are offered to the actors before this returns."""
        reference = self._learner.train.remote(wire.encode(order), wait_seconds)
        frame = self._answer(reference, "the learner", self._stall_seconds)
        outcome: StepOutcome | GroupsMissing = wire.decode(frame, StepOutcome | GroupsMissing)
        if isinstance(outcome, StepOutcome):
            self._slots.weights = wire.encode(outcome.manifest)
        return outcome

    def retrain(self, order: TrainOrder) -> StepOutcome:
        """The step of an order that an earlier process trained, on its recorded groups, from the learner's own version.

        The learner stands at the order's step. Its weights are offered to the actors before this returns.

        Raises:
            CheckpointDamaged: the order's groups were not recorded, or their file has changed.
        """
        reference = self._learner.retrain.remote(wire.encode(order))
        frame = self._answer(reference, "the learner", self._stall_seconds, watch=False)
        outcome = wire.decode(frame, StepOutcome)
        self._slots.weights = wire.encode(outcome.manifest)
        return outcome

    def report(self, outcome: StepOutcome) -> ControllerView:
        """Tells the controller of a step and its weights; returns what it makes of them."""
        frame = self._ask("report", wire.encode(outcome.report))
        self._ask("publish", self._slots.weights)
        return wire.decode(frame, ControllerView)

    def missing(self, missing: GroupsMissing) -> None:
        """Tells the controller that an order can't be trained."""
        self._ask("missing", wire.encode(missing))

    def controller_view(self) -> ControllerView:
        """How the controller stands."""
        return wire.decode(self._ask("view"), ControllerView)

    def waits(self, more: Waits) -> Waits:
        """What the learner waited for since this was asked last, with what the driver knows of it."""
        return wire.decode(self._ask("waits", wire.encode(more)), Waits)

    def told(self) -> tuple[Told, ...]:
        """What the actors last said, without asking."""
        return self._lookout.told()

    def picture(self, reason: str, doing: str, doing_seconds: float) -> Picture:
        """Asks everybody what they do, with a short deadline; who does not answer is not waited for again."""
        looks = self._lookout.look(self._handles())
        self._silent = {look.name for look in looks if look.problem}
        return Picture(
            reason=reason,
            doing=doing,
            doing_seconds=doing_seconds,
            unix_seconds=time.time(),
            lease_seconds=self._stations.rollout.lease_seconds,
            standing=None if "the controller" in self._silent else standing(self._controller),
            told=self.told(),
            looks=looks,
        )

    def save(self, folder: Path) -> Commit:
        """Begins a checkpoint: the learner's state and the controller's, in one folder, whole or not at all.

        When this returns, steps may be trained that are not in it; `committed` tells its end. A learner of several
        ranks has written it by then.
        """
        began = time.monotonic()
        snapshot = self._ask("checkpoint")
        reference = self._learner.save.remote(str(folder), snapshot)
        self._answer(reference, f"the learner, asked to save {folder.name},", self._stall_seconds)
        return Commit(folder=folder, reference=self._learner.commit.remote(), deadline=began + self._stall_seconds)

    def committed(self, commit: Commit, *, wait: bool, watch: bool = True) -> bool:
        """Whether a checkpoint is whole and in its place; waits for it if asked, watching the other stations or not.

        Raises:
            ResourceError: the disk is full, or can't be written.
            Stalled: it took longer than `stall_seconds`.
            StationLost: the learner died.
        """
        while not ray_calls.done(commit.reference, 1.0 if wait else 0.0):
            if time.monotonic() >= commit.deadline:
                raise Stalled(
                    f"the checkpoint {commit.folder} was not committed within run.stall_seconds = "
                    f"{self._stall_seconds:.0f}: the disk is slow or hangs; the checkpoint before it is untouched"
                )
            if not wait:
                return False
            self._beat("the learner's checkpoint")
            if watch:
                self._learners.watch()
                self.watch()
        ray_calls.answer(commit.reference, "the learner", ANSWER_SECONDS)
        return True

    def actor_views(self) -> list[ActorView]:
        """What each living actor last said of itself; asks again without waiting."""
        self.watch()
        return self._slots.views

    def watch(self) -> None:
        """Collects the actors' views, replaces those that died, and makes them as many as they should be.

        Raises:
            StationLost: the sample buffer died, or an actor did more often than accidents explain.
            EntrostatError: an actor stopped for a reason it named.
        """
        self._beat("")
        self._watch_buffer()
        self._heed_scaling()
        changed = self._slots.watch()
        self._lookout.hear(self._slots.views)
        if changed or self._returned:
            if self._returned:
                self._returned = False
                self._lookout.locate(self._handles())
                self._ask_ports()
            self._register_targets()

    def _watch_buffer(self) -> None:
        """Says when the sample buffer lives another life, which it does at its first answer after a restart."""
        if not ray_calls.done(self._asked_life):
            return
        try:
            life = ray_calls.answer(self._asked_life, "the sample buffer", ANSWER_SECONDS)
        except StationAway as error:
            log.warning("%s", error)
        else:
            if self._buffer_life not in ("", life):
                log.warning("the sample buffer died and was restarted")
                self._say("the sample buffer died and is restarted: its groups are sampled again")
                self._returned = True
            self._buffer_life = life
        self._asked_life = self._buffer.life.remote()

    def endpoints(self) -> tuple[str, int]:
        """Where the controller serves `/targets`, `/healthz` and `/scale`, since `start`."""
        return self._stations.metrics_host, self._ports["controller"]

    def finish(self) -> None:
        """The run came to its end: its journal says so."""
        self._ask("finish")

    def close(self) -> None:
        """Stops every station. Never raises: it also runs after a failure, whose error matters more."""
        silent = [slot.handle for slot in self._slots.all if slot.who in self._silent]
        stopped = [handle for handle in self._slots.handles if handle not in silent]
        learner = [] if "the learner" in self._silent else [self._learner]
        ray_calls.stop([*stopped, *learner], STOP_SECONDS)

    def _handles(self) -> dict[str, Any]:
        """Every station by what errors call it."""
        actors = {slot.who: slot.handle for slot in self._slots.all}
        return {"the controller": self._controller, "the sample buffer": self._buffer, **self._learners.all, **actors}

    def _new_actor(self, slot: int, incarnation: int) -> Any:
        # The handlers of view, drain and evaluate must answer while the loop's thread works.
        station = ray_calls.remote(RolloutActor, cpus=self._actor_cpus, gpus=self._actor_gpus, max_concurrency=8)
        return station.remote(self._settings, self._prompts, slot, incarnation, self._controller, self._buffer)

    def _room(self) -> str:
        cpus, gpus = ray_calls.free()
        asked = f"it asks for {self._actor_cpus} CPUs and {self._actor_gpus:g} GPUs"
        return f"{asked}, and Ray has {cpus:g} CPUs and {gpus:g} GPUs free on all nodes together"

    def _placed(self) -> list[Slot]:
        """The slots whose actors Ray has found room for: all of them, or those in time if there are any."""
        began = time.monotonic()
        placed: list[Slot] = []
        for slot in self._slots.all:
            seconds = PLACE_SECONDS if placed else START_SECONDS
            if ray_calls.done(slot.placed, began + seconds - time.monotonic()):
                placed.append(slot)
        if not placed:
            raise ResourceError(f"Ray had no room for any rollout actor within {START_SECONDS:.0f} s: {self._room()}")
        return placed

    def _heed_scaling(self) -> None:
        """Learns from the controller, without waiting, how many actors there should be."""
        now = time.monotonic()
        if self._wanted is None and now >= self._wanted_at:
            self._wanted, self._wanted_at = self._controller.wanted_actors.remote(), now + WANTED_SECONDS
        elif self._wanted is not None and ray_calls.done(self._wanted):
            reference, self._wanted = self._wanted, None
            try:
                self._slots.resize(int(ray_calls.answer(reference, "the controller", ANSWER_SECONDS)))
            except StationAway:
                self._returned = True  # asked again when it is back

    def _register_targets(self) -> None:
        """Lists what can be scraped. Nobody is waited for: a learner in its step answers no question of ports."""
        ports = [*self._ports.items(), *(("rollout", view.metrics_port) for view in self._slots.views)]
        host, run = self._stations.metrics_host, self._stations.run
        self._controller.set_targets.remote(
            [{"targets": [f"{host}:{port}"], "labels": {"station": name, "run": run}} for name, port in ports]
        )

    def _ask_ports(self) -> None:
        """Of those that Ray restarts; with the process the port changes."""
        try:
            for name, station in (("controller", self._controller), ("buffer", self._buffer)):
                self._ports[name] = self._answer(station.endpoint.remote(), f"the {name}", ANSWER_SECONDS, watch=False)
        except StationAway:
            self._returned = True  # again when it is back

    def _ask(self, call: str, *arguments: Any, seconds: float = ANSWER_SECONDS) -> Any:
        """The controller's answer; while Ray restarts it, it is asked again: it takes over from its journal.

        Raises:
            Stalled, StationLost: as `_answer`.
        """
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                if self._controller_away:
                    welcome = self._controller.welcome.remote(self._buffer)
                    self._answer(welcome, "the controller", ANSWER_SECONDS)
                    self._answer(self._controller.publish.remote(self._slots.weights), "the controller", ANSWER_SECONDS)
                    self._controller_away, self._returned = False, True
                return self._answer(getattr(self._controller, call).remote(*arguments), "the controller", seconds)
            except StationAway as error:
                if not self._controller_away:
                    log.warning("%s", error)
                    self._say("the controller died and is restarted: its journal is read again")
                self._controller_away = True
                if time.monotonic() > deadline:
                    raise StationLost(
                        f"the controller was not back within {RESTART_SECONDS:.0f} s; its log is in "
                        f"{self._stations.directory}/logs"
                    ) from error
                time.sleep(RETRY_SECONDS)

    def _answer(self, reference: Any, who: str, seconds: float, *, watch: bool = True) -> Any:
        """A station's answer, watching the learner's ranks meanwhile, and the actors unless told otherwise.

        Raises:
            Stalled: none came within `seconds`.
            StationLost: the station died, or a rank of the learner.
        """
        deadline = time.monotonic() + seconds
        self._beat(who)
        while not ray_calls.done(reference, min(1.0, deadline - time.monotonic())):
            self._beat(who)
            if time.monotonic() >= deadline:
                raise Stalled(
                    f"{who} did not answer within {seconds:.0f} s; its log is in {self._stations.directory}/logs"
                )
            self._learners.watch()
            if watch:
                self.watch()
        return ray_calls.answer(reference, who, ANSWER_SECONDS)
