"""Stations that make no samples and learn next to nothing, at a set pace: what is left is our own protocol and Ray.

    python -m benchmarks.overhead_stations train benchmarks/overhead.toml --run DIR …

The actor hands out ready-made groups of 16 × 2,048 tokens, 32 of them in `ENTROSTAT_GROUPS_SECONDS`; its tokenizer and
its verifiers answer at once. The learner takes and decodes whole groups, trains on some tokens of them and waits. Both
write down when things happened, on the machine's monotonic clock, into `actor.jsonl` and `learner.jsonl` of the run.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import paced_learner
from entrostat import cli, cluster, learners
from entrostat.actors import remote
from entrostat.actors.simulated import SimulatedEngine
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.messages import (
    FINISHED_STOP,
    Group,
    PolicyVersion,
    Prompt,
    Samples,
    StepOutcome,
    TrainOrder,
    Verdict,
    WeightsManifest,
)
from entrostat.protocol.ports import Completion, SampleRequest, Tokenizer
from entrostat.protocol.settings import SimulatedSettings, Stations, VerifierSettings
from entrostat.protocol.task_settings import TaskSettings

VARIABLE = "ENTROSTAT_GROUPS_SECONDS"
TOKENS = 2048  # of a sample
DECODE_SECONDS = 0.025  # a GPU's step of decoding
PROMPT_TOKENS = 20
VOCABULARY = 100
KEPT_SAMPLES, KEPT_TOKENS = 2, 16  # of a group, to be trained on


class Diary:
    """Lines of JSON in a file of the run, each with its moment."""

    def __init__(self, directory: str, name: str) -> None:
        self._stream = Path(directory, name).open("a", buffering=1)  # noqa: SIM115 - lives as long as its station

    def note(self, what: str, **more: object) -> None:
        """Writes that something happened now."""
        self._stream.write(json.dumps({"at": time.monotonic(), "what": what, **more}) + "\n")


class SteadyEngine:
    """Finishes a group at a time, at even distances; its steps of decoding cost no processor time."""

    def __init__(self, settings: SimulatedSettings, tokenizer: Tokenizer, batch: int, diary: Diary) -> None:
        self._weights = SimulatedEngine(settings, tokenizer)
        self._seconds = float(os.environ[VARIABLE]) / batch  # between two groups
        self._free_at = 0.0
        self._queue: deque[tuple[float, str]] = deque()  # when it is done
        self._samples: Samples | None = None
        self._diary = diary

    @property
    def version(self) -> PolicyVersion:
        """The policy it pretends to serve."""
        return self._weights.version

    @property
    def mismatch(self) -> float:
        """Nothing is computed, so nothing differs."""
        return 0.0

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet returned or aborted."""
        return len(self._queue)

    def submit(self, request: SampleRequest) -> None:
        """Queues a request."""
        now = time.monotonic()
        if not self._queue:
            self._diary.note("began", step=self.version.step)
        self._free_at = max(self._free_at, now) + self._seconds
        self._queue.append((self._free_at, request.id))
        if self._samples is None:
            self._samples = made_samples(request.samples, TOKENS)

    def abort(self, ids: Sequence[str]) -> None:
        """Forgets requests; they are never returned."""
        self._queue = deque(one for one in self._queue if one[1] not in ids)

    def step(self) -> list[Completion]:
        """Waits as long as a step of decoding lasts, at most until the next group; returns those that are done."""
        time.sleep(min(DECODE_SECONDS, max(0.0, self._queue[0][0] - time.monotonic())))
        done = []
        while self._queue and self._queue[0][0] <= time.monotonic():
            _, id = self._queue.popleft()
            assert self._samples is not None
            spans = np.array(
                [[i, 0, self.version.branch, self.version.step] for i in range(len(self._samples.lengths))]
            )
            samples = msgspec.structs.replace(self._samples, spans=spans.astype(np.int32))
            done.append(Completion(id=id, samples=samples))
            self._diary.note("done", lease=int(id.removeprefix("lease-")))
        return done

    def load(self, manifest: WeightsManifest) -> None:
        """Checks the buffer's checksums and serves the version."""
        self._weights.load(manifest)

    def score(self, sequences: Sequence[Int32]) -> list[Float32]:
        """Plausible log-probs."""
        return self._weights.score(sequences)

    def close(self) -> None:
        """Forgets everything."""
        self._queue.clear()


def made_samples(samples: int, tokens: int) -> Samples:
    """Random tokens, all samples of one length."""
    random = np.random.default_rng(0)
    return Samples(
        tokens=random.integers(2, VOCABULARY, samples * tokens, dtype=np.int32),
        logprobs=-random.exponential(0.15, samples * tokens).astype(np.float32),
        lengths=np.full(samples, tokens, np.int32),
        finish=np.full(samples, FINISHED_STOP, np.uint8),
        spans=np.zeros((0, 4), np.int32),
    )


class NoTokenizer:
    """Texts of one length, and no text."""

    def __init__(self, path: str, *, trust_remote_code: bool) -> None:
        del path, trust_remote_code

    def encode(self, text: str) -> Int32:
        """Some tokens."""
        del text
        return np.arange(2, 2 + PROMPT_TOKENS, dtype=np.int32)

    def decode(self, tokens: Int32) -> str:
        """Nothing."""
        del tokens
        return ""


class InstantVerifiers:
    """Every second sample is right, at once."""

    def __init__(self, settings: VerifierSettings, tasks: Sequence[TaskSettings]) -> None:
        del settings, tasks
        self._judged: list[tuple[object, Verdict]] = []

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        """Judges a response."""
        del prompt, text
        right = len(self._judged) % 2 == 0
        verdict = Verdict(reward=float(right), status="correct" if right else "wrong", seconds=0.0)
        self._judged.append((ticket, verdict))

    def collect(self) -> list[tuple[object, Verdict]]:
        """Verdicts since the last call."""
        judged, self._judged = self._judged, []
        return judged

    def close(self) -> None:
        """Nothing to end."""


class SteadyActor(remote.RolloutActor):
    """The rollout actor's Ray actor with that engine, tokenizer and verifiers."""

    def prepare(self) -> None:
        """Begins to build the engine."""

        def build(stations: Stations, tokenizer: Tokenizer, seed: int) -> SteadyEngine:
            del seed
            settings = stations.rollout.engine
            assert isinstance(settings, SimulatedSettings)
            return SteadyEngine(settings, tokenizer, stations.batch.prompts, Diary(stations.directory, "actor.jsonl"))

        # In a process of its own.
        paced_learner.stand_in(
            remote, build_engine=build, HuggingFaceTokenizer=NoTokenizer, VerifierPool=InstantVerifiers
        )
        super().prepare()


class FewTokensTrainer(paced_learner.PacedTrainer):
    """Takes whole groups and trains on some of their tokens; says when it held them and how long it worked."""

    def __init__(self, stations: Stations, *rest: Any, **more: Any) -> None:
        super().__init__(stations, *rest, **more)
        self._diary = Diary(stations.directory, "learner.jsonl")

    def train(
        self, order: TrainOrder, groups: Sequence[Group], *, wait: float, fetch: float, again: bool = False
    ) -> StepOutcome:
        """An order's optimizer steps and the version they make."""
        leases = [group.rollout.lease.id for group in groups]
        self._diary.note("decoded", step=order.version.step, leases=leases, wait=wait, fetch=fetch)
        began = time.thread_time()
        outcome = super().train(order, [cut(group) for group in groups], wait=wait, fetch=fetch, again=again)
        self._diary.note("trained", step=order.version.step, work=time.thread_time() - began)
        return outcome


def cut(group: Group) -> Group:
    """The first tokens of a group's first samples."""
    rollout = group.rollout
    whole = rollout.samples
    starts = [int(start) for start in np.cumsum(whole.lengths) - whole.lengths][:KEPT_SAMPLES]
    places = np.concatenate([np.arange(start, start + KEPT_TOKENS) for start in starts])
    samples = Samples(
        tokens=whole.tokens[places],
        logprobs=whole.logprobs[places],
        lengths=np.full(KEPT_SAMPLES, KEPT_TOKENS, np.int32),
        finish=whole.finish[:KEPT_SAMPLES],
        spans=whole.spans[:KEPT_SAMPLES],
    )
    few = msgspec.structs.replace(rollout, samples=samples)
    return msgspec.structs.replace(group, rollout=few, verdicts=group.verdicts[:KEPT_SAMPLES])


class FewTokensLearner(paced_learner.PacedLearner):
    """The learner's Ray actor with that trainer."""

    made_by = FewTokensTrainer


if __name__ == "__main__":
    # Ray finds the classes by their module's name, which is not that of the program.
    from benchmarks import overhead_stations

    paced_learner.stand_in(learners, LearnerActor=overhead_stations.FewTokensLearner)
    paced_learner.stand_in(cluster, RolloutActor=overhead_stations.SteadyActor)
    sys.exit(cli.main())
