"""The controller: a deterministic state machine. `apply(event)` changes its state and says what is to be done.

No clock, no input, no output but the log, no randomness that does not follow from the run's seed: the same events make
the same commands, so that recovery is replay and a bug report is a list of events.
"""

import logging
from collections.abc import Callable, Sequence

import msgspec

from entrostat.controller.coefficient import Reading
from entrostat.controller.difficulty import DifficultyTable
from entrostat.controller.events import (
    Command,
    Discard,
    Event,
    Missing,
    Order,
    OrderRequested,
    Published,
    Pulsed,
    Reply,
    Restarted,
    Rewound,
    Scaled,
    Snapshot,
    Snapshotted,
    StepReported,
    Ticked,
)
from entrostat.controller.lease_rules import lease_rules
from entrostat.controller.leases import LeaseBook
from entrostat.controller.prompts import PromptOrder
from entrostat.controller.rounds import Rounds
from entrostat.controller.snapshot import ActorState, ControllerState
from entrostat.controller.steering import Steering
from entrostat.controller.turns import WeightedTasks
from entrostat.protocol import wire
from entrostat.protocol.errors import CheckpointDamaged, TaskError
from entrostat.protocol.messages import (
    ControllerView,
    GroupReport,
    GroupsMissing,
    LeaseCounts,
    PolicyVersion,
    Pulse,
    StepReport,
)
from entrostat.protocol.settings import MixedResults, Stations, Uniform

log = logging.getLogger(__name__)


class Actor(msgspec.Struct):
    """A rollout slot's present life."""

    incarnation: int
    seen: float  # seconds, the last pulse
    judging: int
    number: int  # of its last pulse


class Controller:
    """Leases, difficulty, coefficient and orders of a run, one branch after the other.

    Args:
        settings: of the run.
        levels: `[prompts]` the level of each training prompt.
        state: to go on from, all of it; None begins branch 0 at step 0.
        task_prompts: how many of the prompts each task has, by id one after the other; needed where tasks have weights.

    Raises:
        TaskError: there are no prompts, or tasks with weights that do not add up to them.
        CheckpointDamaged: the state belongs to other prompts, or to another law.
    """

    def __init__(
        self,
        settings: Stations,
        levels: Sequence[str],
        state: ControllerState | None = None,
        *,
        task_prompts: Sequence[int] = (),
    ) -> None:
        if not levels:
            raise TaskError("the controller was given no prompts; expected at least one training prompt")
        self._settings, self._level_names = settings, levels
        self._tasks = _weighted(settings, task_prompts, len(levels))
        self._late_reports = self._fenced_pulses = 0
        self._wanted_actors = settings.rollout.actors
        self._now = 0.0
        self._term = 0
        self._version: PolicyVersion
        self._newest: PolicyVersion
        if state is None:
            self._begin(PolicyVersion(branch=0, step=0))
        else:
            self._begin(state.version, state.book.start)
            self._restore(state)

    def apply(self, event: Event) -> tuple[Command, ...]:
        """Takes an event in; returns what is to be done about it, in order."""
        if isinstance(event, Published | Scaled | Snapshotted):
            return self._timeless(event)
        self._now = max(self._now, event.at)
        match event:
            case Pulsed():
                return self._pulsed(event.pulse)
            case Ticked():
                return _discard(self._book.expire(self._now))
            case OrderRequested():
                return self._order_requested()
            case StepReported():
                return self._step_reported(event.report)
            case Missing():
                return self._missing(event.missing)
            case Rewound():
                return self._rewound(event)
            case Restarted():
                return self._restarted(event.term)

    def _timeless(self, event: Published | Scaled | Snapshotted) -> tuple[Command, ...]:
        match event:
            case Published():
                if event.version.branch == self._version.branch and event.version > self._newest:
                    self._newest = event.version
            case Scaled():
                self._wanted_actors = event.actors
            case Snapshotted():
                return (Snapshot(version=self._version, digest=wire.digest(wire.encode(self.state()))),)
        return ()

    @property
    def version(self) -> PolicyVersion:
        """What the next order starts from."""
        return self._version

    @property
    def held(self) -> list[int]:
        """Leases whose groups may yet be trained, or are being sampled."""
        return self._book.held()

    @property
    def now(self) -> float:
        """Seconds on the events' clock."""
        return self._now

    @property
    def reading(self) -> Reading:
        """What the law says now."""
        return self.steering.reading

    @property
    def counts(self) -> LeaseCounts:
        """How many leases were granted, and where each of them is."""
        return self._book.counts()

    @property
    def late_reports(self) -> int:
        """Reports of leases that had ended."""
        return self._late_reports

    @property
    def fenced_pulses(self) -> int:
        """Pulses of a slot's earlier life."""
        return self._fenced_pulses

    @property
    def filled_up(self) -> int:
        """Groups without an advantage signal that were trained all the same, because a filter had left out its most."""
        return self._round.filled_up

    @property
    def passed_over(self) -> int:
        """Prompts' turns at which they were not drawn, because their samples would likely agree."""
        return self._prompts.passed_over

    @property
    def actors(self) -> int:
        """Rollout actors heard from within the last lease's deadline."""
        return len(self._living())

    @property
    def judging(self) -> int:
        """Running leases whose samples are drawn and wait for verdicts or for the buffer."""
        return sum(actor.judging for actor in self._living())

    @property
    def wanted_actors(self) -> int:
        """How many rollout actors there should be."""
        return self._wanted_actors

    @property
    def term(self) -> int:
        """Which life of the controller this is, in this branch."""
        return self._term

    def view(self) -> ControllerView:
        """What people look at; the coefficient is that of the next order, the samples are those of the last one."""
        law, summary = self.reading, self._round.summary
        return ControllerView(
            version=self._version,
            coefficient=law.coefficient,
            sample_balance=law.sample_balance,
            measured=self.steering.driving_estimator,
            measured_entropy=self.steering.measured_entropy,
            target=law.target,
            low=law.low,
            high=law.high,
            initial_entropy=law.initial_entropy,
            frozen_updates=law.frozen,
            brake=law.brake,
            ceiling_orders=law.ceiling_orders,
            leases=self._book.counts(),
            late_reports=self._late_reports,
            passed_over=self.passed_over,
            actors=self.actors,
            wanted_actors=self._wanted_actors,
            judging=self.judging,
            term=self._term,
            staleness=summary.staleness,
            difficulty=self._difficulty.histogram(self._version.step),
            reward=summary.reward,
            pass_rate=summary.pass_rate,
            statuses=summary.statuses,
            actor_entropy=summary.actor_entropy,
            actor_ages=summary.actor_ages,
            response_tokens=summary.response_tokens,
            truncated=summary.truncated,
        )

    def state(self) -> ControllerState:
        """All it knows."""
        return ControllerState(
            version=self._version,
            newest=self._newest,
            term=self._term,
            now=self._now,
            law=self.steering.law,
            mix=self.steering.mix,
            measured=self.steering.measured_entropy,
            difficulty=self._difficulty.snapshot(),
            observed=self._observed,
            position=self._prompts.position(),
            book=self._book.state(),
            round=self._round.state(),
            actors=tuple(
                ActorState(
                    slot=slot,
                    incarnation=actor.incarnation,
                    seen=actor.seen,
                    judging=actor.judging,
                    number=actor.number,
                )
                for slot, actor in sorted(self._actors.items())
            ),
            wanted_actors=self._wanted_actors,
            late_reports=self._late_reports,
            fenced_pulses=self._fenced_pulses,
        )

    # ── beginnings ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, version: PolicyVersion, start: int | None = None) -> None:
        """A branch of which nothing is known yet, at `version`; it began at step `start`."""
        settings = self._settings
        self._version = version
        self._newest = version  # that actors may serve
        self.steering = Steering(settings.entropy, momentum=_momentum(settings))
        self._difficulty = DifficultyTable(self._level_names, settings.entropy.weight)
        self._prompts = PromptOrder(
            len(self._level_names),
            settings.seed,
            shuffle=settings.batch.shuffle,
            levels=self._difficulty.level_numbers,
            tasks=self._tasks,
            chance=self._chance_of(settings),
        )
        self._book = LeaseBook(
            lease_rules(settings),
            self._prompts,
            branch=version.branch,
            start=version.step if start is None else start,
        )
        self._round = Rounds(settings, self._difficulty)
        self._actors: dict[int, Actor] = {}
        self._observed = version.step - 1  # of a deterministic run: the last step whose groups the difficulty knows

    def _chance_of(self, settings: Stations) -> Callable[[int], float] | None:
        """How likely a prompt is drawn when its turn comes; None where all are."""
        difficulty, samples = self._difficulty, settings.rollout.samples_per_prompt
        match settings.batch.sampling:
            case Uniform():
                return None
            case MixedResults(floor=floor, prior=prior):
                return lambda prompt: (
                    floor + (1.0 - floor) * difficulty.mixed(prompt, self._version.step, samples, prior)
                )

    def _learnt(self, state: ControllerState) -> None:
        """Takes over what no branch loses."""
        self.steering.restore(state.law, state.mix, state.measured)
        self._difficulty.restore(state.difficulty)
        self._prompts.restore(state.position)
        self._late_reports, self._fenced_pulses = state.late_reports, state.fenced_pulses

    def _restore(self, state: ControllerState) -> None:
        self._learnt(state)
        self._newest, self._term, self._now = state.newest, state.term, state.now
        self._wanted_actors = state.wanted_actors
        self._observed = state.observed
        self._book.restore(state.book, state.term)
        self._round.restore(state.round)
        self._actors = {one.slot: Actor(one.incarnation, one.seen, one.judging, one.number) for one in state.actors}

    def _rewound(self, event: Rewound) -> tuple[Command, ...]:
        """Begins a branch.

        Raises:
            CheckpointDamaged: the state is of another step, of other prompts, or of a branch not before this one.
        """
        state = event.state
        version = PolicyVersion(branch=event.branch, step=event.step)
        before = self._version if state is None else state.version
        if before.branch >= version.branch or (state is not None and before.step != version.step):
            raise CheckpointDamaged(
                f"the controller's state is of version {before}; expected step {version.step} of a branch before "
                f"{version.branch}: resume from a checkpoint whose files belong together"
            )
        self._begin(version)
        self._term = 0
        if state is not None:
            self._learnt(state)
            self._book.begin_anew(state.book)
            self._round.begin_anew(state.round)
        return ()

    def _restarted(self, term: int) -> tuple[Command, ...]:
        self._term = term
        self._book.renew_all(self._now, term)
        for actor in self._actors.values():
            actor.seen = self._now
        return ()

    def _living(self) -> list[Actor]:
        since = self._now - self._settings.rollout.lease_seconds
        return [actor for actor in self._actors.values() if actor.seen >= since]

    # ── rollout actors ───────────────────────────────────────────────────────────────────────────────────────────────

    def _pulsed(self, pulse: Pulse) -> tuple[Command, ...]:
        actor = self._actors.get(pulse.slot)
        of_earlier_branch = pulse.version.branch < self._version.branch
        if of_earlier_branch or (actor is not None and pulse.incarnation < actor.incarnation):
            self._fenced_pulses += 1
            useless = self._take_reports(pulse.reports)
            return (Reply(leases=(), ended=pulse.running, offer=None, fenced=True), *_discard(useless))
        ended_here: tuple[int, ...] = ()
        if actor is not None and pulse.incarnation > actor.incarnation:
            ended_here = self._book.evict(pulse.slot)
        same = actor is not None and pulse.incarnation == actor.incarnation
        newest = max(pulse.number, actor.number) if actor is not None and same else pulse.number
        self._actors[pulse.slot] = Actor(pulse.incarnation, self._now, pulse.judging, newest)
        useless = self._take_reports(pulse.reports)
        holder = (pulse.slot, pulse.incarnation)
        if pulse.number == newest:  # else it was overtaken
            ended_here += self._book.end_unheard(holder, pulse.running, pulse.number)
        returned = self._book.take_back(holder, pulse.returned)
        gone = self._book.renew(holder, pulse.running, self._now)
        leases = self._book.grant(
            holder,
            room=pulse.room,
            serves=pulse.version,
            newest=self._newest,
            at=self._now,
            pulse=pulse.number,
        )
        offer = self._book.offer(holder, self._newest)
        reply = Reply(leases=leases, ended=gone, offer=None if offer == pulse.version else offer, fenced=False)
        return (reply, *_discard((*ended_here, *returned, *useless, *self._drop_filtered())))

    def _take_reports(self, reports: Sequence[GroupReport]) -> tuple[int, ...]:
        """Accepts reports of running leases; returns the leases of the others whose groups nobody will ask for."""
        useless: list[int] = []
        for report in reports:
            if self._book.accept(report, self._now):
                if not self._settings.deterministic:
                    self._observe(report)
                continue
            self._late_reports += 1
            if not self._book.holds(report.lease_id):
                useless.append(report.lease_id)
        return tuple(useless)

    def _observe(self, report: GroupReport) -> None:
        correct = report.statuses.count("correct")
        self._difficulty.observe(report.prompt_id, report.started.step, correct, len(report.statuses) - correct)

    def _drop_filtered(self) -> tuple[int, ...]:
        """The leases that were filtered just now; their groups count in the next order's summary."""
        filtered = self._book.take_filtered()
        self._round.leave_out(filtered)
        return tuple(report.lease_id for report in filtered)

    # ── learner ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _order_requested(self) -> tuple[Command, ...]:
        if self._round.order is not None:
            return (Order(order=self._round.order),)
        law = self.reading
        stale = self._book.drop_stale(self._version.step)
        reports = self._book.order(self._version.step, self._now, along=law.coefficient > 0.0)
        useless = _discard((*stale, *self._drop_filtered()))
        if not reports:
            return useless
        if self._settings.deterministic and self._observed < self._version.step:
            # In the order of places: when each group was done is an accident. Once, though an order may be given up.
            self._observed = self._version.step
            for report in reports:
                self._observe(report)
        return (*useless, Order(order=self._round.begin(reports, self._version, law)))

    def _step_reported(self, report: StepReport) -> tuple[Command, ...]:
        """Steps the law once; a report that does not answer the order under way (a repetition) changes nothing."""
        made = PolicyVersion(branch=self._version.branch, step=self._version.step + 1)
        if self._round.order is None or report.measured != self._version or report.version != made:
            return ()
        self.steering.tell(report, self._round.completed, self._round.share)
        self._round.end()
        self._version = made
        return _discard(self._book.train())

    def _missing(self, missing: GroupsMissing) -> tuple[Command, ...]:
        if self._round.order is not None and missing.version == self._round.order.version:
            self._book.give_up(missing.lease_ids)
            self._round.give_up()
            # A buffer that was only away may hold them yet.
            return _discard((*missing.lease_ids, *self._drop_filtered()))
        return _discard(self._drop_filtered())


def _weighted(settings: Stations, prompts: Sequence[int], together: int) -> WeightedTasks | None:
    weights = [task.weight for task in settings.tasks]
    if not any(weights):
        return None
    if len(prompts) != len(weights) or sum(prompts) != together:
        raise TaskError(
            f"{len(weights)} tasks with weights were said to have {list(prompts)} prompts; expected a number for each, "
            f"{together} together"
        )
    return WeightedTasks(prompts, weights)


def _momentum(settings: Stations) -> float:
    """What is left of a push after one order: β1 of each of its optimizer steps."""
    return settings.learner.betas[0] ** (settings.learner.minibatches * settings.learner.epochs)


def _discard(leases: tuple[int, ...]) -> tuple[Command, ...]:
    return (Discard(lease_ids=leases),) if leases else ()
