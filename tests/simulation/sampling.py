"""An engine, verifiers and a tokenizer on virtual time. What is drawn follows from a lease's seed and its version."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.messages import FINISHED_STOP, PolicyVersion, Prompt, Samples, Verdict, WeightsManifest
from entrostat.protocol.ports import Completion, SampleRequest
from tests.simulation.world import World

TOKENS = 2  # of a sample; the first one decides whether it is right
SPREAD = 0.8  # of ln seconds: a group in a hundred takes six times as long as the median one
JUDGING_SECONDS = 0.1
REFUSED_SHARE = 0.02  # of updates, while there are faults
# Of 256: whose answer is right. All of an easy prompt's often are, and none of a hard one's.
SKILL = {"easy": 200, "hard": 60, "odd": 128}


class VirtualEngine:
    """Draws at once, and gives each request its time.

    Args:
        seconds: median of a request's time.
        oldest: the oldest step whose weights can still be read.
        flawed: whether updates may fail now.
        wake: called when a request is done.
    """

    def __init__(
        self,
        world: World,
        seconds: float,
        oldest: Callable[[], int],
        flawed: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        self._world, self._seconds, self._oldest, self._flawed, self._wake = world, seconds, oldest, flawed, wake
        self._version: PolicyVersion | None = None
        self._running: dict[str, tuple[float, Samples]] = {}
        self.mismatch = 0.0

    @property
    def version(self) -> PolicyVersion:
        if self._version is None:
            raise WeightsRefused("nothing was loaded yet")
        return self._version

    @property
    def unfinished(self) -> int:
        return len(self._running)

    def submit(self, request: SampleRequest) -> None:
        seconds = self._seconds * self._world.random.lognormvariate(0.0, SPREAD)
        self._running[request.id] = (self._world.now + seconds, drawn(request, self.version))
        self._world.after(seconds, self._wake)

    def abort(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._running.pop(id, None)

    def step(self) -> list[Completion]:
        done = [(id, samples) for id, (due, samples) in self._running.items() if due <= self._world.now]
        for id, _ in done:
            del self._running[id]
        return [Completion(id=id, samples=samples) for id, samples in done]

    def load(self, manifest: WeightsManifest) -> None:
        if manifest.version.step < self._oldest():
            raise WeightsRefused(f"version {manifest.version} was written over")
        if self._flawed() and self._world.chance(REFUSED_SHARE):
            raise WeightsRefused(f"the probe of version {manifest.version} disagrees")
        self._version = manifest.version

    def score(self, sequences: Sequence[Int32]) -> list[Float32]:
        raise NotImplementedError

    def close(self) -> None:
        self._running.clear()


def drawn(request: SampleRequest, version: PolicyVersion) -> Samples:
    """What a version answers to a request; its branch changes nothing."""
    text = f"{request.prompt.id}:{request.seed}:{version.step}".encode()
    size = request.samples * TOKENS
    tokens = np.frombuffer(hashlib.blake2b(text, digest_size=size).digest(), np.uint8).astype(np.int32)
    spans = [[index, 0, version.branch, version.step] for index in range(request.samples)]
    return Samples(
        tokens=tokens,
        logprobs=np.full(size, -0.3, np.float32),
        lengths=np.full(request.samples, TOKENS, np.int32),
        finish=np.full(request.samples, FINISHED_STOP, np.uint8),
        spans=np.asarray(spans, np.int32),
    )


class Numbers:
    """A tokenizer whose texts are lists of numbers."""

    def encode(self, text: str) -> Int32:
        return np.zeros(1, np.int32)

    def decode(self, tokens: Int32) -> str:
        return " ".join(map(str, tokens.tolist()))


class VirtualVerifiers:
    """Judges by the first token, some time later."""

    def __init__(self, world: World, wake: Callable[[], None]) -> None:
        self._world, self._wake = world, wake
        self._judged: list[tuple[float, object, Verdict]] = []

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        right = int(text.split()[0]) < SKILL[prompt.level]
        seconds = self._world.random.expovariate(1.0 / JUDGING_SECONDS)
        verdict = Verdict(reward=float(right), status="correct" if right else "wrong", seconds=0.0)
        self._judged.append((self._world.now + seconds, ticket, verdict))
        self._world.after(seconds, self._wake)

    def collect(self) -> list[tuple[object, Verdict]]:
        if not self._judged:
            return []
        now = self._world.now
        done = [(ticket, verdict) for due, ticket, verdict in self._judged if due <= now]
        self._judged = [one for one in self._judged if one[0] > now]
        return done
