"""The life of one rollout actor: leases in, groups out, weights between two steps.

`RolloutWorker.turn` is called again and again by one thread, which owns the engine. Nothing in it waits for another
station; when there is nothing to do it sleeps for some milliseconds, or until an evaluation comes.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec

from entrostat.actors.evaluations import Evaluations, EvaluationTicket
from entrostat.actors.group import HeldLease, Verdicts, report_of, responses
from entrostat.actors.pulses import Pulses
from entrostat.actors.seams import Seams
from entrostat.actors.updates import Updates
from entrostat.protocol import metrics
from entrostat.protocol.errors import EntrostatError
from entrostat.protocol.messages import (
    ActorView,
    EvaluationRequest,
    EvaluationResult,
    Group,
    Lease,
    Prompt,
    Rollout,
    Samples,
    WeightsManifest,
)
from entrostat.protocol.ports import SampleRequest
from entrostat.protocol.settings import RolloutSettings

LOAD_SECONDS = 600.0  # a version's weights and its probe, at most, before the loop counts as stuck
BACKLOG = 2  # leases held, judged ones included, at most this many times those in flight


class LeaseTicket(msgspec.Struct, frozen=True):
    """One sample of a lease, in the verifiers' hands."""

    lease_id: int
    index: int


class RolloutWorker:
    """One actor's leases, evaluations and weights.

    Args:
        settings: how samples are drawn.
        prompts: `prompts[i].id == i`.
        slot: the actor's stable number.
        incarnation: which life of that slot this is.
        seams: what it works with.
        first: the version to start from.
        deterministic: the engine has one lease at a time, under exactly the version it was granted for: what it
            computes then depends on nothing else that it has to do.

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
        *,
        deterministic: bool = False,
    ) -> None:
        self._settings = settings
        self._deterministic = deterministic
        self._prompts = prompts
        self._slot, self._incarnation = slot, incarnation
        self._seams = seams
        self._engine = seams.engine
        self._pulses = Pulses(seams.controller, slot, incarnation, settings.lease_seconds)
        self._updates = Updates(seams.engine)
        self._waiting: deque[HeldLease] = deque()  # leases of a version that is not served yet
        self._leases: dict[int, HeldLease] = {}  # every lease held, the waiting ones too
        self._requests: dict[str, int] = {}  # those in the engine → lease id
        self._evaluations = Evaluations(
            seams.engine,
            seams.verifiers,
            seams.tokenizer,
            settings.groups_in_flight * settings.samples_per_prompt,
            settings.max_response_tokens,
        )
        self._drained_by: float | None = None  # when what is not done is handed back; None: it does not drain
        self._empty = threading.Event()
        self._came_round = seams.clock()
        self._loading_since: float | None = None
        self._tokens = 0
        self._updates.load_first(first)
        self._note_update(served=True)

    # ── called by any thread ─────────────────────────────────────────────────────────────────────────────────────────

    def evaluate(self, request: EvaluationRequest) -> Future[EvaluationResult]:
        """Queues an evaluation; it shares the engine with the leases, and no weights are loaded while it runs."""
        return self._evaluations.ask(request)

    def drain(self, seconds: float) -> None:
        """Asks for no more leases from now on, ends those begun within `seconds`, and hands the others back."""
        self._drained_by = self._seams.clock() + seconds

    def drained(self, seconds: float) -> bool:
        """Waits at most so long until it drains and holds nothing any more: no lease, no evaluation, no report."""
        return self._empty.wait(seconds)

    @property
    def idle(self) -> bool:
        """It holds no lease and no evaluation, and everything has been reported."""
        return not self._leases and not self._pulses.unreported and self._evaluations.idle

    @property
    def turn_seconds(self) -> float:
        """Since the loop last came round; loading weights is given `LOAD_SECONDS` for itself."""
        now, loading = self._seams.clock(), self._loading_since
        return now - self._came_round if loading is None else max(0.0, now - loading - LOAD_SECONDS)

    def view(self, *, engine_seconds: float, metrics_port: int, host: str = "", process: int = 0) -> ActorView:
        """What people look at."""
        return ActorView(
            slot=self._slot,
            incarnation=self._incarnation,
            version=self._engine.version,
            tokens=self._tokens,
            requests=len(self._requests),
            updates=self._updates.served,
            refused_updates=self._updates.refused,
            update_seconds=self._updates.last_seconds,
            mismatch=self._engine.mismatch,
            max_mismatch=self._updates.max_mismatch,
            engine_seconds=engine_seconds,
            metrics_port=metrics_port,
            host=host,
            process=process,
            turn_seconds=self.turn_seconds,
            held=len(self._leases),
            draining=self._drained_by is not None,
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
        self._hand_back(now)
        self._submit_leases(now)
        if not (self._deterministic and self._requests):
            self._evaluations.advance(now)
        worked = self._sample()
        self._judge()
        self._confirm()
        self._speak()
        if self._drained_by is not None and self.idle and not self._pulses.expecting:
            self._empty.set()
        self._came_round = self._seams.clock()
        if not worked:
            self._evaluations.wait(self._seams.idle_seconds)

    def abandon(self, error: EntrostatError) -> None:
        """The loop ended: whoever waits for an evaluation is told why."""
        self._evaluations.abandon(error)

    def _hear(self, now: float) -> None:
        reply = self._pulses.receive(now)
        if reply is None:
            return
        self._end(reply.ended)
        if reply.manifest is not None:
            self._updates.want(reply.manifest)
        for lease in reply.leases:
            held = HeldLease(lease=lease, prompt=self._prompts[lease.prompt_id])
            self._leases[lease.id] = held
            self._waiting.append(held)

    def _hand_back(self, now: float) -> None:
        """Of an actor that drains: what it has not begun at once, at its deadline all that is not in the buffer."""
        if self._drained_by is None:
            return
        late = now >= self._drained_by
        back = [id for id, held in self._leases.items() if held.group is None and (late or held.started is None)]
        if back:
            self._end(back)
            self._pulses.hand_back(back)

    def _end(self, lease_ids: Sequence[int]) -> None:
        """Leases that are no longer ours: their work is forgotten wherever it stands."""
        ended = [self._leases.pop(id) for id in lease_ids if id in self._leases]
        drawn = [name for one in ended if self._requests.pop(name := _name(one.lease), None) is not None]
        self._engine.abort(drawn)
        self._pulses.forget(set(lease_ids))
        self._waiting = deque(one for one in self._waiting if one.lease.id in self._leases)

    def _update(self, now: float) -> None:
        if self._evaluations.running or (self._deterministic and self._requests):
            return
        self._loading_since = now
        served = self._updates.load_if_due(now)
        self._came_round, self._loading_since = self._seams.clock(), None
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
        while self._waiting and self._may_begin(self._waiting[0].lease):
            held = self._waiting.popleft()
            lease = held.lease
            held.prompt_tokens = self._seams.tokenizer.encode(held.prompt.text)
            held.started, held.submitted_at = self._engine.version, now
            self._engine.submit(
                SampleRequest(
                    id=_name(lease),
                    prompt_tokens=held.prompt_tokens,
                    samples=lease.samples,
                    temperature=self._settings.temperature,
                    max_tokens=self._settings.max_response_tokens,
                    seed=lease.seed,
                    reproducible=self._settings.reproducible or self._deterministic,
                    alone=self._deterministic,
                    prompt=held.prompt,
                )
            )
            self._requests[_name(lease)] = lease.id

    def _may_begin(self, lease: Lease) -> bool:
        """Leases wait for the version they were granted under: their staleness was counted from it."""
        if self._deterministic:
            return lease.version == self._engine.version and not self._requests and not self._evaluations.running
        return lease.version <= self._engine.version

    def _sample(self) -> bool:
        """One step of the engine; what it finished goes to the verifiers. Returns whether there was work."""
        if not self._engine.unfinished:
            return False
        for completion in self._engine.step():
            tokens = int(completion.samples.lengths.sum())
            self._tokens += tokens
            self._seams.meter.add(metrics.ROLLOUT_TOKENS, tokens)
            if not self._evaluations.take(completion):
                self._sampled(self._leases[self._requests.pop(completion.id)], completion.samples)
        return True

    def _sampled(self, held: HeldLease, samples: Samples) -> None:
        assert held.started is not None
        assert held.prompt_tokens is not None
        held.verdicts = Verdicts(held.lease.samples)
        held.rollout = Rollout(
            lease=held.lease,
            slot=self._slot,
            incarnation=self._incarnation,
            started=held.started,
            prompt_tokens=held.prompt_tokens,
            samples=samples,
            seconds=self._seams.clock() - held.submitted_at,
        )
        for index, tokens in enumerate(responses(samples)):
            text = self._seams.tokenizer.decode(tokens)
            self._seams.verifiers.submit(LeaseTicket(held.lease.id, index), held.prompt, text)

    def _judge(self) -> None:
        """Takes in verdicts; a group that is complete goes to the buffer."""
        for ticket, verdict in self._seams.verifiers.collect():
            self._seams.meter.add(metrics.ROLLOUT_SAMPLES, status=verdict.status)
            self._seams.meter.observe(metrics.VERIFY_SECONDS, verdict.seconds)
            if isinstance(ticket, EvaluationTicket):
                self._evaluations.judged(ticket, verdict)
                continue
            assert isinstance(ticket, LeaseTicket)
            held = self._leases.get(ticket.lease_id)
            if held is None or held.verdicts is None or held.rollout is None:
                continue  # the lease ended meanwhile
            held.verdicts.enter(ticket.index, verdict)
            if held.verdicts.complete:
                held.group = Group(rollout=held.rollout, verdicts=held.verdicts.all())
                self._seams.buffer.send(held.group)

    def _confirm(self) -> None:
        """Groups that lie in the buffer are reported; with that the lease is done here."""
        for lease_id in self._seams.buffer.stored():
            held = self._leases.pop(lease_id, None)
            if held is not None and held.group is not None:
                self._pulses.report(report_of(held.group))
                seconds = self._seams.clock() - held.submitted_at
                self._seams.meter.observe(metrics.ROLLOUT_GROUP_SECONDS, seconds)

    def _speak(self) -> None:
        limit = self._settings.groups_in_flight
        in_flight = len(self._requests) + len(self._waiting)
        room = max(0, min(limit - in_flight, BACKLOG * limit - len(self._leases)))
        if self._drained_by is not None:
            room = 0
        if self._pulses.send_if_due(
            self._seams.clock(), self._engine.version, room, tuple(self._leases), len(self._leases) - in_flight
        ):
            self._seams.meter.set(metrics.ROLLOUT_RUNNING, len(self._requests))


def _name(lease: Lease) -> str:
    return f"lease-{lease.id}"
