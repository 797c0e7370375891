"""Everything around a rollout actor as a fake, and a clock set by hand."""

from collections.abc import Sequence

import numpy as np

from entrostat.actors.rollout import RolloutWorker
from entrostat.actors.seams import Seams
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import StationLost, WeightsRefused
from entrostat.protocol.messages import (
    FINISHED_LENGTH,
    FINISHED_STOP,
    Group,
    Lease,
    PolicyVersion,
    Prompt,
    Pulse,
    PulseReply,
    Samples,
    Verdict,
    WeightsManifest,
)
from entrostat.protocol.metrics import Metric
from entrostat.protocol.ports import Completion, SampleRequest
from entrostat.protocol.settings import RolloutSettings
from tests.made_messages import manifest, version

SAMPLES = 3
SETTINGS = RolloutSettings(samples_per_prompt=SAMPLES, groups_in_flight=3, lease_seconds=10.0, max_response_tokens=9)
PROMPTS = tuple(
    Prompt(id=i, name=f"p{i}", level="easy", task=0, text=f"{i}?", answer=str(i), entry="") for i in range(20)
)


def lease(id: int, step: int = 0, prompt_id: int | None = None) -> Lease:
    """A lease of `SAMPLES` samples, on the prompt of its own number if no other is named."""
    prompt_id = id if prompt_id is None else prompt_id
    return Lease(id=id, prompt_id=prompt_id, samples=SAMPLES, version=version(step), seed=id, deadline_seconds=10.0)


class FakeEngine:
    """Finishes a request when told to, with its prompt's number as the answer of every sample."""

    def __init__(self) -> None:
        self.submitted: dict[str, SampleRequest] = {}
        self.order: list[str] = []
        self.aborted: list[str] = []
        self.loaded: list[PolicyVersion] = []
        self.refuse: set[PolicyVersion] = set()
        self.ready: set[str] = set()
        self.steps = 0

    @property
    def version(self) -> PolicyVersion:
        return self.loaded[-1]

    @property
    def mismatch(self) -> float:
        return 1e-6 * self.version.step

    @property
    def unfinished(self) -> int:
        return len(self.submitted)

    def submit(self, request: SampleRequest) -> None:
        self.submitted[request.id] = request
        self.order.append(request.id)

    def abort(self, ids: Sequence[str]) -> None:
        for id in ids:
            self.aborted.append(id)
            del self.submitted[id]

    def step(self) -> list[Completion]:
        self.steps += 1
        done = [id for id in self.submitted if id in self.ready]
        return [Completion(id=id, samples=answers(self.submitted.pop(id))) for id in done]

    def load(self, manifest: WeightsManifest) -> None:
        if manifest.version in self.refuse:
            raise WeightsRefused(f"{manifest.version} is wrong")
        self.loaded.append(manifest.version)

    def score(self, sequences: Sequence[Int32]) -> list[Float32]:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def finish(self, *ids: str) -> None:
        self.ready |= set(ids)


def answers(request: SampleRequest) -> Samples:
    """The prompt's answer in every sample; the first was cut by the length limit."""
    tokens = Letters().encode(request.prompt.answer)
    count = request.samples
    return Samples(
        tokens=np.tile(tokens, count),
        logprobs=np.full(count * len(tokens), -0.5, np.float32),
        lengths=np.full(count, len(tokens), np.int32),
        finish=np.asarray([FINISHED_LENGTH] + [FINISHED_STOP] * (count - 1), np.uint8),
        spans=np.zeros((count, 4), np.int32),
    )


class Letters:
    """One token a character."""

    def encode(self, text: str) -> Int32:
        return np.asarray([ord(letter) for letter in text], np.int32)

    def decode(self, tokens: Int32) -> str:
        return "".join(chr(token) for token in tokens)


class FakeController:
    """Answers when a reply was laid out for it."""

    def __init__(self) -> None:
        self.pulses: list[Pulse] = []
        self.reply: PulseReply | StationLost | None = None
        self.waiting = False

    def send(self, pulse: Pulse) -> None:
        assert not self.waiting, "two pulses under way"
        self.waiting = True
        self.pulses.append(pulse)

    def receive(self) -> PulseReply | None:
        if not self.waiting or self.reply is None:
            return None
        self.waiting = False
        reply, self.reply = self.reply, None
        if isinstance(reply, StationLost):
            raise reply
        return reply

    def answer(
        self,
        *leases: Lease,
        ended: tuple[int, ...] = (),
        manifest: WeightsManifest | None = None,
        fenced: bool = False,
    ) -> None:
        self.reply = PulseReply(leases=leases, ended=ended, manifest=manifest, fenced=fenced)


class FakeBuffer:
    """Confirms when told to."""

    def __init__(self) -> None:
        self.groups: dict[int, Group] = {}
        self.confirmed: list[int] = []
        self.quick = True

    def send(self, group: Group) -> None:
        self.groups[group.rollout.lease.id] = group
        if self.quick:
            self.confirmed.append(group.rollout.lease.id)

    def stored(self) -> list[int]:
        confirmed, self.confirmed = self.confirmed, []
        return confirmed


class FakeVerifiers:
    """Right if the text is the prompt's answer; hands out verdicts in reverse, when allowed."""

    def __init__(self) -> None:
        self.judged: list[tuple[object, Verdict]] = []
        self.failing = False
        self.open = True

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        if self.failing:
            verdict = Verdict(reward=0.0, status="timeout", seconds=9.0)
        elif text == prompt.answer:
            verdict = Verdict(reward=1.0, status="correct", seconds=0.1)
        else:
            verdict = Verdict(reward=0.0, status="wrong", seconds=0.1)
        self.judged.insert(0, (ticket, verdict))

    def collect(self) -> list[tuple[object, Verdict]]:
        if not self.open:
            return []
        judged, self.judged = self.judged, []
        return judged


class FakeMeter:
    """Keeps what was counted and set, under the metric's name and its labels."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], float] = {}
        self.gauges: dict[tuple[str, ...], float] = {}

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        key = (metric.name, *labels.values())
        self.counts[key] = self.counts.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self.gauges[(metric.name, *labels.values())] = value

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        pass


class World:
    """An actor and everything around it."""

    def __init__(self, settings: RolloutSettings = SETTINGS, engine: FakeEngine | None = None) -> None:
        self.now = 0.0
        self.engine = FakeEngine() if engine is None else engine
        self.controller, self.buffer = FakeController(), FakeBuffer()
        self.verifiers, self.meter = FakeVerifiers(), FakeMeter()
        seams = Seams(
            engine=self.engine,
            controller=self.controller,
            buffer=self.buffer,
            verifiers=self.verifiers,
            tokenizer=Letters(),
            meter=self.meter,
            clock=lambda: self.now,
        )
        self.worker = RolloutWorker(settings, PROMPTS, 4, 2, seams, manifest(0))

    def turn(self, count: int = 1, seconds: float = 0.0) -> None:
        for _ in range(count):
            self.now += seconds
            self.worker.turn()

    def granted(self, *leases: Lease, manifest: WeightsManifest | None = None) -> None:
        """Lets the actor pulse and gives it these leases."""
        self.turn(2, seconds=1.0)
        assert self.controller.waiting
        self.controller.answer(*leases, manifest=manifest)
        self.turn()

    def sampled(self, lease: Lease) -> None:
        """Gives the actor a lease, and has the engine finish it."""
        self.granted(lease)
        self.engine.finish(f"lease-{lease.id}")
