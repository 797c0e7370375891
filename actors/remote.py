"""The Ray shell of a rollout actor: frames in, frames out, one thread that owns the engine.

The engine's thread starts with `prepare`, before there are weights, so that the engine comes up while the learner loads
the policy. `view`, `evaluate` and `drain` answer while it works: the actor needs a `max_concurrency` of a few.
"""

import concurrent.futures
import logging
import os
import socket
import threading
import time
import traceback
from typing import Any

import numpy as np

from entrostat.actors.handles import RayBuffer, RayController
from entrostat.actors.rollout import RolloutWorker
from entrostat.actors.seams import Seams
from entrostat.actors.simulated import SimulatedEngine
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, Stalled, StationLost
from entrostat.protocol.learner_settings import Lora
from entrostat.protocol.logs import log_to
from entrostat.protocol.messages import (
    EvaluationRequest,
    PromptSet,
    WeightsManifest,
)
from entrostat.protocol.metrics import Exporter
from entrostat.protocol.ports import Engine, Tokenizer
from entrostat.protocol.settings import SimulatedSettings, Stations
from entrostat.protocol.stacks import stacks

log = logging.getLogger(__name__)

ENGINE_SECONDS = 600.0  # until the engine is up and serves the first version
EVALUATION_SECONDS = 1800.0  # with those that are before it in the queue
STOP_SECONDS = 10.0
DRAIN_POLL_SECONDS = 0.2


class RolloutActor:
    """One rollout actor. `prepare` may come first, `start` must; what can fail waits for `start`.

    Args:
        settings_frame: a `Stations` frame.
        prompts_frame: a `PromptSet` frame.
        slot: its stable number.
        incarnation: which life of that slot this is.
        controller_handle, buffer_handle: Ray's handles.
    """

    def __init__(
        self,
        settings_frame: UInt8,
        prompts_frame: UInt8,
        slot: int,
        incarnation: int,
        controller_handle: Any,
        buffer_handle: Any,
    ) -> None:
        self._settings_frame, self._prompts_frame = settings_frame, prompts_frame
        self._slot, self._incarnation = slot, incarnation
        self._controller, self._buffer = RayController(controller_handle), RayBuffer(buffer_handle)
        self._exporter = Exporter(
            "rollout", labels={"actor": str(slot)}, host=wire.decode(settings_frame, Stations).metrics_host
        )
        self._first: concurrent.futures.Future[WeightsManifest] = concurrent.futures.Future()
        self._built: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._serving: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._worker: RolloutWorker | None = None
        self._engine_seconds = 0.0
        self._failure: EntrostatError | None = None
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def prepare(self) -> None:
        """Begins to build the engine; returns at once. May be called again."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="rollout", daemon=True)
                self._thread.start()

    def ready(self) -> None:
        """Returns once the engine is up, so that `start` can be given weights that are still there.

        Raises:
            ModelError: the engine can't be built.
            Stalled: it was not up within its deadline.
        """
        self.prepare()
        try:
            self._built.result(ENGINE_SECONDS)
        except TimeoutError as error:
            raise Stalled(
                f"the engine of rollout actor {self._slot} was not up within {ENGINE_SECONDS:.0f} s"
            ) from error

    def start(self, manifest_frame: UInt8) -> UInt8:
        """Loads the first version and begins to sample: an `ActorView`.

        Raises:
            ModelError, WeightsRefused: the engine can't be built, or does not compute this version.
            Stalled: it was not up within its deadline.
        """
        manifest = wire.decode(manifest_frame, WeightsManifest)
        self.prepare()
        self._first.set_result(manifest)
        try:
            self._serving.result(ENGINE_SECONDS)
        except TimeoutError as error:
            raise Stalled(f"rollout actor {self._slot} was not up within {ENGINE_SECONDS:.0f} s") from error
        return self.view()

    def evaluate(self, frame: UInt8) -> UInt8:
        """An `EvaluationRequest` in, an `EvaluationResult` out, when all is judged.

        Raises:
            Stalled: it was not done in time.
            EntrostatError: the actor stopped meanwhile.
        """
        asked = self._running().evaluate(wire.decode(frame, EvaluationRequest))
        try:
            return wire.encode(asked.result(EVALUATION_SECONDS))
        except TimeoutError as error:
            raise Stalled(f"rollout actor {self._slot} did not evaluate within {EVALUATION_SECONDS:.0f} s") from error

    def view(self) -> UInt8:
        """An `ActorView`; raises what ended the actor's work, if it ended."""
        worker = self._running()
        host, process = self.place()
        return wire.encode(
            worker.view(
                engine_seconds=self._engine_seconds,
                metrics_port=self._exporter.port,
                host=host,
                process=process,
            )
        )

    def place(self) -> tuple[str, int]:
        """Host and process id; answers as soon as Ray has found a place for the actor."""
        return socket.gethostname(), os.getpid()

    def endpoint(self) -> int:
        """The port of its metrics."""
        return self._exporter.port

    def stacks(self) -> UInt8:
        """A `Stacks`."""
        return wire.encode(stacks())

    def drain(self, seconds: float) -> bool:
        """Asks for no more leases, ends those begun within `seconds`, hands the others back; whether nothing is left.

        An evaluation under way is finished first, however long it takes.
        """
        worker = self._running()
        worker.drain(seconds)
        deadline = time.monotonic() + seconds + EVALUATION_SECONDS
        while not worker.drained(DRAIN_POLL_SECONDS) and time.monotonic() < deadline and self._failure is None:
            pass
        return worker.drained(0.0)

    def stop(self) -> None:
        """Ends the work, the engine and the verifiers."""
        self._stopping.set()
        if not self._first.done():
            self._first.cancel()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
        self._exporter.close()

    def _running(self) -> RolloutWorker:
        if self._failure is not None:
            raise self._failure
        if self._worker is None:
            raise StationLost(f"rollout actor {self._slot} was asked for work before it was started: call start first")
        return self._worker

    def _live(self) -> None:
        """The engine's thread, from its first moment to its last."""
        failure: EntrostatError = StationLost(f"rollout actor {self._slot} was stopped")
        try:
            self._work()
        except EntrostatError as error:
            failure = self._failure = error
        except concurrent.futures.CancelledError:
            log.info("stopped before it was started")
        except BaseException:
            # A thread's error reaches nobody by itself: this one ends in `view`, named, and is raised on here.
            failure = self._failure = StationLost(f"rollout actor {self._slot} failed: {traceback.format_exc()}")
            raise
        finally:
            if self._failure is not None:
                log.error("rollout actor %d stops: %s", self._slot, self._failure)
            for waited_for in (self._built, self._serving):
                if not waited_for.done():
                    waited_for.set_exception(failure)
            if self._worker is not None:
                self._worker.abandon(failure)

    def _work(self) -> None:
        stations = wire.decode(self._settings_frame, Stations)
        prompts = wire.decode(self._prompts_frame, PromptSet).prompts
        log_to(stations.directory, f"rollout-{self._slot}")
        verifiers = VerifierPool(stations.verifier, (*stations.tasks, *stations.evaluation_tasks), self._exporter)
        engine: Engine | None = None
        try:
            began = time.monotonic()
            tokenizer = HuggingFaceTokenizer(stations.model.path, trust_remote_code=stations.model.trust_remote_code)
            seed = np.random.SeedSequence([stations.seed, self._slot, self._incarnation]).generate_state(1)[0]
            engine = build_engine(stations, tokenizer, int(seed))
            self._engine_seconds = time.monotonic() - began
            seams = Seams(
                engine=engine,
                controller=self._controller,
                buffer=self._buffer,
                verifiers=verifiers,
                tokenizer=tokenizer,
                meter=self._exporter,
            )
            log.info("the engine is up after %.1f s", self._engine_seconds)
            self._built.set_result(None)
            worker = RolloutWorker(
                stations.rollout,
                prompts,
                self._slot,
                self._incarnation,
                seams,
                self._first_version(),
                deterministic=stations.deterministic,
            )
            log.info("incarnation %d serves version %s", self._incarnation, engine.version)
            self._worker = worker
            self._serving.set_result(None)
            while not self._stopping.is_set():
                worker.turn()
        finally:
            verifiers.close()
            if engine is not None:
                engine.close()

    def _first_version(self) -> WeightsManifest:
        try:
            return self._first.result(ENGINE_SECONDS)
        except TimeoutError as error:
            raise Stalled(
                f"rollout actor {self._slot} got no weights to start from within {ENGINE_SECONDS:.0f} s"
            ) from error


def build_engine(stations: Stations, tokenizer: Tokenizer, seed: int) -> Engine:
    """The engine that the run's settings ask for; `seed` is for requests that bring none of their own.

    Raises:
        ModelError: vLLM can't build one for this model with these settings.
    """
    settings = stations.rollout.engine
    if isinstance(settings, SimulatedSettings):
        return SimulatedEngine(settings, tokenizer)
    # vLLM takes seconds to import: a simulated run does without.
    from entrostat.actors.engine import VllmEngine

    weights = stations.learner.weights
    adapter = weights if isinstance(weights, Lora) and weights.publish == "adapter" else None
    return VllmEngine(stations.model, settings, seed, adapter)
