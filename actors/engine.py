"""`VllmEngine`: the real engine. It owns vLLM's step loop and updates weights between two steps.

By default vLLM's core lives in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`): quickest to start, and nothing
happens but in `step`. With `own_process` the core steps by itself; then its scheduler pauses during an update.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from entrostat.actors.core_watch import CoreWatch, core_lives
from entrostat.actors.engine_setup import build_engine
from entrostat.actors.probe import Receipt, describe, judge, sequences
from entrostat.actors.sampling import samples_of, sampling_parameters, scoring_parameters
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import Stalled, StationLost, TaskError, WeightsRefused
from entrostat.protocol.learner_settings import Lora
from entrostat.protocol.messages import PolicyVersion, WeightsManifest
from entrostat.protocol.ports import Completion, SampleRequest
from entrostat.protocol.settings import ModelSettings, VllmSettings

SCORE_SECONDS = 300.0  # at most for one probe


class VllmEngine:
    """vLLM behind `ports.Engine`. Everything is called from one thread, the one that made it.

    Args:
        model: which policy to build; nothing is served before `load` has brought the first version, or `serve_own` has
            said that the model's own weights are to be.
        settings: the engine's section.
        seed: for requests that are not reproducible, which draw from one stream.
        adapter: what versions hold, where they hold an adapter to the model's own weights; None: all weights.

    Raises:
        ModelError: vLLM can't build an engine for this model with these settings.
    """

    def __init__(
        self, model: ModelSettings, settings: VllmSettings, seed: int = 0, adapter: Lora | None = None
    ) -> None:
        began = time.monotonic()
        self._settings, self._adapter = settings, adapter
        self._llm = build_engine(model, settings, seed, adapter)
        self._watch = CoreWatch(self._llm.engine_core) if settings.own_process else None
        self._context: int = self._llm.model_config.max_model_len
        self._requests: dict[str, SampleRequest] = {}
        self._scores: dict[str, Float32 | None] = {}
        self._held: list[Completion] = []  # finished while a probe was scored
        self._served: WeightsManifest | None = None
        self._version: PolicyVersion | None = None
        self._loads = 0
        self._mismatch = 0.0
        self.start_seconds = time.monotonic() - began

    @property
    def version(self) -> PolicyVersion:
        """The policy it serves.

        Raises:
            WeightsRefused: none yet.
        """
        if self._version is None:
            raise WeightsRefused("the engine serves nothing yet: no version was loaded and verified")
        return self._version

    @property
    def mismatch(self) -> float:
        """The largest probe difference of the version it serves, nats."""
        return self._mismatch

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet returned or aborted."""
        return len(self._requests) + len(self._held)

    def submit(self, request: SampleRequest) -> None:
        """Queues a request; it joins the running ones at the next step.

        Raises:
            TaskError: the prompt leaves no room for a response in the model's context.
            WeightsRefused: no version is served yet.
        """
        if len(request.prompt_tokens) >= self._context:
            raise TaskError(
                f"prompt {request.prompt.name} has {len(request.prompt_tokens)} tokens, the engine's context "
                f"{self._context}: shorten it, or raise rollout.engine.max_model_tokens if the model allows"
            )
        salt = f"{self.version}/{self._loads}/{request.id if request.alone else ''}"
        self._add(request.id, request.prompt_tokens, sampling_parameters(request), salt)
        self._requests[request.id] = request

    def abort(self, ids: Sequence[str]) -> None:
        """Forgets requests; they are never returned."""
        running = [id for id in ids if self._requests.pop(id, None)]
        if running:
            with core_lives():
                self._llm.abort_request(running)
        self._held = [completion for completion in self._held if completion.id not in ids]

    def step(self) -> list[Completion]:
        """Draws at least one token for the running requests; returns those that finished.

        Raises:
            StationLost: the core died, in its own process.
        """
        held, self._held = self._held, []
        return held + (self._advance() if self._requests else [])

    def serve_own(self, version: PolicyVersion) -> None:
        """Serves what vLLM has read from the model's folder itself, as this version; no learner vouches for it."""
        with core_lives():
            self._llm.engine_core.set_weight_version(str(version))
        self._version = version

    def load(self, manifest: WeightsManifest) -> None:
        """Loads a version between two steps, verifies it by its probe, and serves it.

        Running requests go on. Tokens they draw while the probe is scored are the new version's; when it is refused
        these requests start again, so that no token of a refused version ever leaves.

        Raises:
            WeightsRefused: the buffer is damaged or the probe disagrees; the version served before is served on.
            StationLost: it was refused and the version before can't be restored: the engine is of no more use.
        """
        self._inspect(manifest)
        if self._served is None:
            self._refuse_canary(manifest)
        held, self._held = self._held, []
        running = dict(self._requests)
        receipt = self._apply(manifest)
        judgement = judge(self.score(sequences(manifest.probe)), manifest.probe, receipt)
        if not judgement.accepted:
            self._held = held
            self._restore(running)
            raise WeightsRefused(
                f"version {manifest.version} is not what the engine computes after loading it: {judgement.reason}. "
                f"Largest difference {judgement.difference:.3g} nats; {describe(receipt)}"
            )
        self._held = held + self._held
        self._served, self._version = manifest, manifest.version
        self._mismatch = judgement.difference
        # What was served before is needed no more: the learner writes a later version over it.
        self._rpc("entrostat_keep", versions=[str(manifest.version)])

    def score(self, sequences: Sequence[Int32]) -> list[Float32]:
        """Log-probs `[n − 1]` of each sequence `[n]`'s tokens after its first, without temperature.

        vLLM scores a prompt from its plain logits, whatever the mode of the sampled tokens' log-probs.

        Raises:
            Stalled: the engine did not answer in time.
        """
        ids = [f"probe-{self._loads}-{index}" for index in range(len(sequences))]
        for id, tokens in zip(ids, sequences, strict=True):
            self._scores[id] = None
            self._add(id, tokens, scoring_parameters(), "probe")
        deadline = time.monotonic() + SCORE_SECONDS
        while any(self._scores[id] is None for id in ids):
            self._held.extend(self._advance())
            if time.monotonic() > deadline:
                raise Stalled(f"the engine did not score {len(ids)} sequences within {SCORE_SECONDS:.0f} s")
        return [found for id in ids if (found := self._scores.pop(id)) is not None]

    def close(self) -> None:
        """Ends the engine and its processes."""
        if self._watch is not None:
            self._watch.close()
        self._llm.engine_core.shutdown()
        del self._llm
        gc.collect()

    def _add(self, id: str, tokens: Int32, sampling: Any, salt: str) -> None:
        from vllm.inputs.engine import tokens_input

        from entrostat.actors.adapter import REQUEST

        # The salt keeps keys and values computed under other weights out of the prefix cache; clearing the cache
        # itself is impossible while requests hold blocks of it.
        adapter = None if self._adapter is None else REQUEST
        with core_lives():
            self._llm.add_request(id, tokens_input(tokens.tolist(), cache_salt=salt), sampling, lora_request=adapter)

    def _advance(self) -> list[Completion]:
        done = []
        with core_lives():
            outputs = self._llm.step()
        for output in outputs:
            if output.request_id in self._scores:
                self._scores[output.request_id] = np.asarray(output.prompt_logprobs.logprobs, np.float32)
            elif self._requests.pop(output.request_id, None):
                done.append(Completion(id=output.request_id, samples=samples_of(output.outputs)))
        return done

    def _inspect(self, manifest: WeightsManifest) -> None:
        """Refuses a damaged buffer before the model is touched."""
        for answer in self._rpc("entrostat_inspect", info=self._update_info(manifest)):
            if answer["error"] or answer["damaged"]:
                raise WeightsRefused(
                    f"version {manifest.version} was not loaded: "
                    + (answer["error"] or f"tensors that don't match their checksums: {', '.join(answer['damaged'])}")
                )

    def _refuse_canary(self, manifest: WeightsManifest) -> None:
        """Loads the version with wrong values, and insists that the probe sees it.

        Raises:
            WeightsRefused: the probe passed with wrong weights: it proves nothing on this engine.
        """
        receipt = self._apply(manifest, perturb=True)
        if judge(self.score(sequences(manifest.probe)), manifest.probe, receipt).accepted:
            raise WeightsRefused(
                f"the probe of version {manifest.version} passed with perturbed weights: either loading has no effect "
                f"on what this engine computes, or the probe is blind. {describe(receipt)}"
            )

    def _apply(self, manifest: WeightsManifest, *, perturb: bool = False) -> Receipt:
        """Puts a version's tensors into the model; tokens drawn from now on are labelled with it."""
        info = self._update_info(manifest, perturb=perturb)
        with core_lives(), self._paused():
            if self._adapter is not None:
                self._adapt(info)
            else:
                self._rpc("start_weight_update")
                self._rpc("update_weights", update_info=info)
                self._rpc("finish_weight_update")
            self._llm.engine_core.set_weight_version(str(manifest.version))
        self._loads += 1
        if not self._requests:
            self._llm.reset_prefix_cache()
        receipts = self._rpc("entrostat_receipt")
        missing = sorted({name for receipt in receipts for name in receipt["missing"]})
        return Receipt(loaded=tuple(receipts[0]["loaded"]), missing=tuple(missing), damaged=())

    def _adapt(self, info: dict[str, Any]) -> None:
        """Exchanges the adapter.

        Raises:
            WeightsRefused: vLLM can't have an adapter beside one of the layers; the one it has stays.
        """
        homeless = self._rpc("entrostat_adapt", info=info, lora=msgspec.to_builtins(self._adapter))[0]
        if homeless:
            raise WeightsRefused(
                f"vLLM has no place for an adapter beside {len(homeless)} layers of this model, {homeless[0]} first: "
                'leave them out of [learner.weights] targets, or set publish = "merged"'
            )

    def _restore(self, running: dict[str, SampleRequest]) -> None:
        """Serves the version before again; what ran under the refused one starts anew."""
        if self._served is None:
            return
        self._llm.abort_request([*self._requests])
        self._requests.clear()
        before = self._served
        try:
            self._inspect(before)
        except WeightsRefused as error:
            raise StationLost(
                f"a version was refused, and {before.version}, served before it, is gone: {error}"
            ) from error
        receipt = self._apply(before)
        if not judge(self.score(sequences(before.probe)), before.probe, receipt).accepted:
            raise StationLost(f"a version was refused, and {before.version} can't be restored: its probe fails")
        for request in running.values():
            self.submit(request)

    def _update_info(self, manifest: WeightsManifest, *, perturb: bool = False) -> dict[str, Any]:
        from entrostat.actors.weight_plugin import update_info

        keep = (str(self._served.version),) if self._served is not None else ()
        return update_info(manifest, perturb=perturb, keep=keep)

    def _rpc(self, method: str, **arguments: Any) -> list[Any]:
        with core_lives():
            answers: list[Any] = self._llm.collective_rpc(method, kwargs=arguments)
        return answers

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """No step happens inside; in this process none does anyway."""
        if not self._settings.own_process:
            yield
            return
        core = self._llm.engine_core
        core.call_utility("pause_scheduler", "keep", False)
        try:
            yield
        finally:
            core.call_utility("resume_scheduler")
