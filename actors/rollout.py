"""The life of one rollout actor: leases in, groups out, weights between two steps.

`RolloutWorker.turn` is called again and again by one thread, which owns the engine. Nothing in it waits for another
station; when there is nothing to do it sleeps for some milliseconds, or until an evaluation comes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import msgspec

from entrostat.actors.evaluation import Evaluation
from entrostat.actors.group import Sampling, Verdicts, report_of, split
from entrostat.actors.pulses import Pulses
from entrostat.actors.updates import Updates
from entrostat.protocol import metrics
from entrostat.protocol.errors import EntrostatError, Stalled
from entrostat.protocol.messages import (
    ActorView,
    EvaluationRequest,
    EvaluationResult,
    Group,
    Lease,
    Prompt,
    Rollout,
    Samples,
    Verdict,
    WeightsManifest,
)
from entrostat.protocol.metrics import Metric
from entrostat.protocol.ports import BufferPort, ControllerPort, Engine, SampleRequest, Tokenizer
from entrostat.protocol.settings import RolloutSettings

IDLE_SECONDS = 0.005
EVALUATION_SECONDS = 900.0  # at most for one; it keeps new weights waiting
BACKLOG = 2  # leases held, judged ones included, at most this many times those in flight


class Verifiers(Protocol):
    """Judges responses somewhere else; both calls return at once."""

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        """Queues a response."""
        ...

    def collect(self) -> list[tuple[object, Verdict]]:
        """Verdicts since the last call, with their tickets."""
        ...


class Meter(Protocol):
    """Where measurements go; `protocol.metrics.Exporter` is one."""

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Counts up."""
        ...

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets a gauge."""
        ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Enters a value in a histogram."""
        ...


class LeaseTicket(msgspec.Struct, frozen=True):
    """One sample of a lease, in the verifiers' hands."""

    lease_id: int
    index: int


class EvaluationTicket(msgspec.Struct, frozen=True):
    """One sample of an evaluation, in the verifiers' hands."""

    serial: int
    number: int
    index: int


class Seams(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an actor works with."""

    engine: Engine
    controller: ControllerPort
    buffer: BufferPort
    verifiers: Verifiers
    tokenizer: Tokenizer
    meter: Meter
    clock: Callable[[], float] = time.monotonic


class RolloutWorker:
    """One actor's leases, evaluations and weights.

    Args:
        settings: how samples are drawn.
        prompts: `prompts[i].id == i`.
        slot: the actor's stable number.
        incarnation: which life of that slot this is.
        seams: what it works with.
        first: the version to start from.

    Raises:
        WeightsRefused: the engine does not compute the first version.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        prompts: Sequence[Prompt],
        slot: int,
        incarnation: int,
        seams: Seams,
        first: WeightsManifest,
    ) -> None:
        self._settings = settings
        self._prompts = prompts
        self._slot, self._incarnation = slot, incarnation
        self._seams = seams
        self._engine = seams.engine
        self._pulses = Pulses(seams.controller, slot, incarnation, settings.lease_seconds)
        self._updates = Updates(seams.engine)
        self._waiting: deque[Sampling] = deque()  # leases of a version that is not served yet
        self._leases: dict[int, Sampling] = {}  # every lease held, the waiting ones too
        self._requests: dict[str, int | tuple[int, int]] = {}  # lease id, or evaluation's serial and prompt number
        self._drawing = 0  # leases in the engine
        self._asked: deque[Evaluation] = deque()
        self._evaluation: Evaluation | None = None
        self._serial = 0
        self._changed = threading.Condition()
        self._draining = False
        self._tokens = 0
        self._updates.load_first(first)
        self._note_update(served=True)

    # ── called by any thread ─────────────────────────────────────────────────────────────────────────────────────────

    def evaluate(self, request: EvaluationRequest) -> Future[EvaluationResult]:
        """Queues an evaluation; it shares the engine with the leases, and no weights are loaded while it runs."""
        evaluation = Evaluation(request)
        with self._changed:
            self._asked.append(evaluation)
            self._changed.notify()
        return evaluation.answer

    def drain(self) -> None:
        """Asks for no more leases from now on."""
        self._draining = True

    @property
    def idle(self) -> bool:
        """It holds no lease and no evaluation, and everything has been reported."""
        return not (self._leases or self._evaluation or self._asked or self._pulses.unreported)

    def view(self, *, engine_seconds: float, metrics_port: int) -> ActorView:
        """What people look at."""
        return ActorView(
            slot=self._slot,
            incarnation=self._incarnation,
            version=self._engine.version,
            tokens=self._tokens,
            requests=self._drawing,
            updates=self._updates.served,
            refused_updates=self._updates.refused,
            update_seconds=self._updates.last_seconds,
            max_mismatch=self._updates.max_mismatch,
            engine_seconds=engine_seconds,
            metrics_port=metrics_port,
        )

    # ── called by the thread that owns the engine ────────────────────────────────────────────────────────────────────

    def turn(self) -> None:
        """One round of everything there is to do.

        Raises:
            StationLost: a newer incarnation holds the slot, or another station is gone for good.
            WeightsRefused: a version was refused again and again.
        """
        now = self._seams.clock()
        self._hear(now)
        self._update(now)
        self._submit_leases(now)
        self._evaluate(now)
        worked = self._sample()
        self._judge()
        self._confirm()
        self._speak()
        if not worked:
            with self._changed:
                if not self._asked:
                    self._changed.wait(IDLE_SECONDS)

    def abandon(self, error: EntrostatError) -> None:
        """The loop ended: whoever waits for an evaluation is told why."""
        with self._changed:
            evaluations = [*self._asked, *([self._evaluation] if self._evaluation else [])]
            self._asked.clear()
        for evaluation in evaluations:
            evaluation.answer.set_exception(error)

    def _hear(self, now: float) -> None:
        reply = self._pulses.receive(now)
        if reply is None:
            return
        self._end(reply.ended)
        if reply.manifest is not None:
            self._updates.want(reply.manifest)
        for lease in reply.leases:
            sampling = Sampling(lease=lease, prompt=self._prompts[lease.prompt_id])
            self._leases[lease.id] = sampling
            self._waiting.append(sampling)

    def _end(self, lease_ids: Sequence[int]) -> None:
        """Leases that are no longer ours: their work is forgotten wherever it stands."""
        ended = [self._leases.pop(id) for id in lease_ids if id in self._leases]
        self._engine.abort([name for one in ended if self._withdraw(name := _name(one.lease))])
        self._pulses.forget(set(lease_ids))
        self._waiting = deque(one for one in self._waiting if one.lease.id in self._leases)

    def _withdraw(self, name: str) -> bool:
        found = self._requests.pop(name, None) is not None
        self._drawing -= found
        return found

    def _update(self, now: float) -> None:
        if self._evaluation is not None:
            return
        served = self._updates.load_if_due(now)
        if served is not None:
            self._note_update(served=served)

    def _note_update(self, *, served: bool) -> None:
        meter = self._seams.meter
        meter.add(metrics.ROLLOUT_UPDATES, outcome="served" if served else "refused")
        if served:
            meter.observe(metrics.ROLLOUT_UPDATE_SECONDS, self._updates.last_seconds)
            meter.set(metrics.ROLLOUT_MISMATCH, self._engine.mismatch)
            meter.set(metrics.ROLLOUT_VERSION, self._engine.version.step)

    def _submit_leases(self, now: float) -> None:
        """Leases wait for the version they were granted under: their staleness was counted from it."""
        while self._waiting and self._waiting[0].lease.version <= self._engine.version:
            sampling = self._waiting.popleft()
            lease = sampling.lease
            sampling.prompt_tokens = self._seams.tokenizer.encode(sampling.prompt.text)
            sampling.started, sampling.submitted_at = self._engine.version, now
            self._engine.submit(
                SampleRequest(
                    id=_name(lease),
                    prompt_tokens=sampling.prompt_tokens,
                    samples=lease.samples,
                    temperature=self._settings.temperature,
                    max_tokens=self._settings.max_response_tokens,
                    seed=lease.seed,
                    prompt=sampling.prompt,
                )
            )
            self._requests[_name(lease)] = lease.id
            self._drawing += 1

    def _evaluate(self, now: float) -> None:
        """Begins an evaluation, keeps as many of its prompts in the engine as leases may be, and ends it."""
        evaluation = self._evaluation
        if evaluation is None:
            with self._changed:
                evaluation = self._evaluation = self._asked.popleft() if self._asked else None
            if evaluation is None:
                return
            self._serial += 1
            evaluation.version, evaluation.began_at = self._engine.version, now
        request = evaluation.request
        while evaluation.sampling < self._settings.groups_in_flight and (found := evaluation.next_prompt()):
            number, prompt = found
            name = f"evaluation-{self._serial}-{number}"
            self._engine.submit(
                SampleRequest(
                    id=name,
                    prompt_tokens=self._seams.tokenizer.encode(prompt.text),
                    samples=request.samples,
                    temperature=request.temperature,
                    max_tokens=self._settings.max_response_tokens,
                    seed=request.seed + number,
                    prompt=prompt,
                )
            )
            self._requests[name] = (self._serial, number)
        seconds = now - evaluation.began_at
        if evaluation.complete:
            evaluation.answer.set_result(evaluation.result(self._engine.version, seconds))
            self._evaluation = None
        elif seconds > EVALUATION_SECONDS:
            names = [name for name, whose in self._requests.items() if isinstance(whose, tuple)]
            self._engine.abort(names)
            for name in names:
                del self._requests[name]
            evaluation.answer.set_exception(
                Stalled(
                    f"an evaluation of {len(request.prompts)} prompts took longer than {EVALUATION_SECONDS:.0f} s: "
                    "evaluate on fewer prompts or samples"
                )
            )
            self._evaluation = None

    def _sample(self) -> bool:
        """One step of the engine; what it finished goes to the verifiers. Returns whether there was work."""
        if not self._engine.unfinished:
            return False
        for completion in self._engine.step():
            whose = self._requests.pop(completion.id)
            tokens = int(completion.samples.lengths.sum())
            self._tokens += tokens
            self._seams.meter.add(metrics.ROLLOUT_TOKENS, tokens)
            if isinstance(whose, int):
                self._drawing -= 1
                self._lease_sampled(self._leases[whose], completion.samples)
            elif self._evaluation is not None:
                serial, number = whose
                self._evaluation.sampled(number, completion.samples)
                prompt = self._evaluation.request.prompts[number]
                for index, text in enumerate(self._texts(completion.samples)):
                    self._seams.verifiers.submit(EvaluationTicket(serial, number, index), prompt, text)
        return True

    def _lease_sampled(self, sampling: Sampling, samples: Samples) -> None:
        assert sampling.started is not None
        assert sampling.prompt_tokens is not None
        sampling.verdicts = Verdicts(sampling.lease.samples)
        sampling.rollout = Rollout(
            lease=sampling.lease,
            slot=self._slot,
            incarnation=self._incarnation,
            started=sampling.started,
            prompt_tokens=sampling.prompt_tokens,
            samples=samples,
            seconds=self._seams.clock() - sampling.submitted_at,
        )
        for index, text in enumerate(self._texts(samples)):
            self._seams.verifiers.submit(LeaseTicket(sampling.lease.id, index), sampling.prompt, text)

    def _texts(self, samples: Samples) -> list[str]:
        return [self._seams.tokenizer.decode(tokens) for tokens in split(samples)]

    def _judge(self) -> None:
        """Takes in verdicts; a group that is complete goes to the buffer."""
        for ticket, verdict in self._seams.verifiers.collect():
            self._seams.meter.add(metrics.ROLLOUT_SAMPLES, status=verdict.status)
            self._seams.meter.observe(metrics.VERIFY_SECONDS, verdict.seconds)
            if isinstance(ticket, EvaluationTicket):
                if self._evaluation is not None and ticket.serial == self._serial:
                    self._evaluation.judged(ticket.number, ticket.index, verdict)
                continue
            assert isinstance(ticket, LeaseTicket)
            sampling = self._leases.get(ticket.lease_id)
            if sampling is None or sampling.verdicts is None or sampling.rollout is None:
                continue  # the lease ended meanwhile
            sampling.verdicts.enter(ticket.index, verdict)
            if sampling.verdicts.complete:
                sampling.group = Group(rollout=sampling.rollout, verdicts=sampling.verdicts.all())
                self._seams.buffer.send(sampling.group)

    def _confirm(self) -> None:
        """Groups that lie in the buffer are reported; with that the lease is done here."""
        for lease_id in self._seams.buffer.stored():
            sampling = self._leases.pop(lease_id, None)
            if sampling is not None and sampling.group is not None:
                self._pulses.report(report_of(sampling.group))
                seconds = self._seams.clock() - sampling.submitted_at
                self._seams.meter.observe(metrics.ROLLOUT_GROUP_SECONDS, seconds)

    def _speak(self) -> None:
        limit = self._settings.groups_in_flight
        in_flight = self._drawing + len(self._waiting)
        room = 0 if self._draining else max(0, min(limit - in_flight, BACKLOG * limit - len(self._leases)))
        if self._pulses.send_if_due(self._seams.clock(), self._engine.version, room, tuple(self._leases)):
            self._seams.meter.set(metrics.ROLLOUT_RUNNING, self._drawing)


def _name(lease: Lease) -> str:
    return f"lease-{lease.id}"
