"""`SimulatedEngine`: an engine without a model. The whole loop runs in seconds, the same way for the same seeds.

It answers right with a probability that grows with the policy's version. Time is simulated by waiting: a step draws one
token for every running sample and takes as long as that many tokens take at `tokens_per_second`, or `step_seconds`
where that is longer. What a sleep was too long by is taken off the next one, so that steps keep their pace.
"""

import time
from collections.abc import Sequence

import msgspec
import numpy as np

from entrostat.actors.flat_buffer import SharedFiles, damaged
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.messages import (
    FINISHED_LENGTH,
    FINISHED_STOP,
    PolicyVersion,
    Samples,
    SharedFile,
    WeightsManifest,
)
from entrostat.protocol.ports import Completion, SampleRequest, Tokenizer
from entrostat.protocol.settings import SimulatedSettings

STEP_SECONDS = 0.02  # at most waited in one step; what is left is waited in the next ones
MEAN_SURPRISE_NATS = 0.15
LONGEST_THOUGHT_TOKENS = 24
LEAST_SLEEP_SECONDS = 0.001


class _Request(msgspec.Struct, kw_only=True):
    """A request being drawn, one token of each sample a round."""

    id: str
    samples: Samples  # as they will be, drawn under the version of the submission
    rounds: int = 0
    versions: list[tuple[int, PolicyVersion]] = []  # from that round on, that version


class SimulatedEngine:
    """Draws plausible answers by seed; everything is called from one thread.

    Args:
        settings: its speed and skill.
        tokenizer: turns answers into tokens.
    """

    def __init__(self, settings: SimulatedSettings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._version: PolicyVersion | None = None
        self._requests: dict[str, _Request] = {}
        self._owed_seconds = 0.0
        self._files = SharedFiles()

    @property
    def version(self) -> PolicyVersion:
        """The policy it pretends to serve.

        Raises:
            WeightsRefused: none yet.
        """
        if self._version is None:
            raise WeightsRefused("the engine serves nothing yet: no version was loaded and verified")
        return self._version

    @property
    def mismatch(self) -> float:
        """Nothing is computed, so nothing differs."""
        return 0.0

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet returned or aborted."""
        return len(self._requests)

    def submit(self, request: SampleRequest) -> None:
        """Queues a request; what it will answer is decided here."""
        version = self.version
        self._requests[request.id] = _Request(
            id=request.id, samples=self._draw(request, version), versions=[(0, version)]
        )

    def abort(self, ids: Sequence[str]) -> None:
        """Forgets requests; they are never returned."""
        for id in ids:
            self._requests.pop(id, None)

    def step(self) -> list[Completion]:
        """Draws one token for every running sample, or waits for time owed; returns the requests that finished."""
        began = time.monotonic()
        if self._owed_seconds >= STEP_SECONDS:
            self._wait(began)
            return []
        drawn = 0
        done = []
        for request in list(self._requests.values()):
            drawn += int(np.count_nonzero(request.samples.lengths > request.rounds))
            request.rounds += 1
            if request.rounds >= int(request.samples.lengths.max()):
                done.append(Completion(id=request.id, samples=_with_spans(request)))
                del self._requests[request.id]
        if drawn:
            self._owed_seconds += max(self._settings.step_seconds, drawn / self._settings.tokens_per_second)
        self._wait(began)
        return done

    def load(self, manifest: WeightsManifest) -> None:
        """Checks the buffer's checksums and serves the version.

        Raises:
            WeightsRefused: the buffer is damaged, or can't be reached; the version served before is served on.
        """
        if not isinstance(manifest.location, SharedFile):
            raise WeightsRefused(
                f"version {manifest.version} lies in a GPU's memory, which the simulated engine can't open: "
                'set learner.transport = "shared_memory"'
            )
        try:
            names = damaged(self._files.hold(manifest.location, manifest.bytes), manifest.tensors)
        finally:
            self._files.keep(())
        if names:
            raise WeightsRefused(
                f"version {manifest.version} was not loaded: tensors that don't match their checksums: "
                f"{', '.join(names)}"
            )
        time.sleep(self._settings.update_seconds)
        self._version = manifest.version
        for request in self._requests.values():
            request.versions.append((request.rounds, manifest.version))

    def score(self, sequences: Sequence[Int32]) -> list[Float32]:
        """Plausible log-probs `[n − 1]` of each sequence `[n]`, always the same."""
        return [
            -np.random.default_rng([*map(int, tokens)]).exponential(MEAN_SURPRISE_NATS, len(tokens) - 1).astype("f4")
            for tokens in sequences
        ]

    def close(self) -> None:
        """Forgets everything."""
        self._requests.clear()

    def skill(self, version: PolicyVersion) -> float:
        """The probability that a version answers right."""
        return min(1.0, self._settings.skill + self._settings.learning * version.step)

    def _draw(self, request: SampleRequest, version: PolicyVersion) -> Samples:
        random = np.random.default_rng([request.seed & 0xFFFF_FFFF_FFFF_FFFF, version.step])
        pieces = [self._response(request, random, version) for _ in range(request.samples)]
        cut = [piece[: request.max_tokens] for piece in pieces]
        tokens = np.concatenate(cut)
        return Samples(
            tokens=tokens,
            logprobs=-random.exponential(MEAN_SURPRISE_NATS, len(tokens)).astype(np.float32),
            lengths=np.asarray([len(piece) for piece in cut], np.int32),
            finish=np.asarray(
                [FINISHED_LENGTH if len(piece) > request.max_tokens else FINISHED_STOP for piece in pieces],
                np.uint8,
            ),
            spans=np.empty((0, 4), np.int32),
        )

    def _response(self, request: SampleRequest, random: np.random.Generator, version: PolicyVersion) -> Int32:
        """Some of the prompt's own tokens as a thought, then the answer, right or not; `[length] int32`."""
        right = random.random() < self.skill(version)
        # Not a wrong number: it might hold the right digits, which the scorer pays a part for.
        answer = request.prompt.answer if right else "?"
        thought = random.choice(request.prompt_tokens, self._thought_tokens(request, random))
        tokens: Int32 = np.concatenate([thought, self._tokenizer.encode(f"<answer>{answer}</answer>")])
        return tokens

    def _thought_tokens(self, request: SampleRequest, random: np.random.Generator) -> int:
        median, spread = self._settings.median_tokens, self._settings.spread
        if not median:
            return int(random.integers(1, LONGEST_THOUGHT_TOKENS))
        return int(np.clip(random.lognormal(np.log(median), spread), 1, request.max_tokens))

    def _wait(self, began: float) -> None:
        """Waits what is owed, as far as a step may last; the time since the step `began` counts as waited."""
        seconds = began + min(STEP_SECONDS, self._owed_seconds) - time.monotonic()
        # Shorter sleeps than a millisecond take a millisecond: they are saved up.
        if seconds >= LEAST_SLEEP_SECONDS:
            time.sleep(seconds)
        elif self._owed_seconds < LEAST_SLEEP_SECONDS:
            return
        # A machine that stood still for long is not caught up with.
        self._owed_seconds = max(-STEP_SECONDS, self._owed_seconds - (time.monotonic() - began))


def _with_spans(request: _Request) -> Samples:
    """The samples with who drew which of their tokens."""
    rows = [
        [index, start, version.branch, version.step]
        for index, length in enumerate(request.samples.lengths)
        for (start, version), following in zip(request.versions, [*request.versions[1:], None], strict=True)
        # A version that drew nothing of this sample has no row.
        if start < length and (following is None or following[0] > start)
    ]
    return msgspec.structs.replace(request.samples, spans=np.asarray(rows, np.int32).reshape(-1, 4))
