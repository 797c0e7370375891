"""The controller: a deterministic state machine. `apply(event)` changes its state and says what is to be done.

No clock, no input, no output but the log, no randomness that does not follow from the run's seed: the same events make
the same commands, so that recovery is replay and a bug report is a list of events.
"""

import math
from collections.abc import Sequence

import msgspec

from entrostat.controller.allocation import allocate
from entrostat.controller.coefficient import LawState, Reading, initial_state, law_step, read
from entrostat.controller.difficulty import DifficultySnapshot, DifficultyTable
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
    StepReported,
    Ticked,
)
from entrostat.controller.leases import LeaseBook, LeaseRules, derived_seed
from entrostat.controller.prompts import PromptOrder, PromptPosition
from entrostat.controller.summary import OrderSummary, summarise
from entrostat.controller.thermometer import (
    AnchorMix,
    Estimator,
    bonus_estimator,
    completed_tokens,
    driving_estimator,
    measure,
)
from entrostat.protocol.errors import CheckpointDamaged, TaskError
from entrostat.protocol.messages import (
    ControllerView,
    GroupReport,
    GroupsMissing,
    LeaseCounts,
    OrderedGroup,
    PolicyVersion,
    Pulse,
    PulseReply,
    StepReport,
    TrainOrder,
    WeightsManifest,
)
from entrostat.protocol.settings import Stations


class ControllerSnapshot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """controller → checkpoint → controller. All that can't be computed again; leases under way count as put back."""

    version: PolicyVersion
    law: LawState
    mix: AnchorMix
    difficulty: DifficultySnapshot
    position: PromptPosition
    next_lease: int
    counts: LeaseCounts
    late_reports: int
    fenced_pulses: int


class Actor(msgspec.Struct):
    """A rollout slot's present life."""

    incarnation: int
    seen: float  # seconds, the last pulse


class Controller:
    """Leases, difficulty, coefficient and orders of one branch.

    Args:
        settings: of the run.
        levels: `[prompts]` the level of each training prompt.
        branch: of all versions from now on.
        step: the branch starts from these weights.
        snapshot: what an earlier branch knew at that step.

    Raises:
        TaskError: there are no prompts.
        CheckpointDamaged: the snapshot belongs to another step, to other prompts, or to a branch not before this one.
    """

    def __init__(
        self,
        settings: Stations,
        levels: Sequence[str],
        branch: int = 0,
        step: int = 0,
        snapshot: ControllerSnapshot | None = None,
    ) -> None:
        if not levels:
            raise TaskError("the controller was given no prompts; expected at least one training prompt")
        self._settings = settings
        self._version = PolicyVersion(branch=branch, step=step)
        self._law = initial_state(settings.entropy.law, momentum=settings.learner.betas[0])
        self._driving: Estimator = driving_estimator(settings.entropy)
        self._mix = AnchorMix()
        self._measured = math.nan
        self._difficulty = DifficultyTable(levels, settings.entropy.weight)
        prompts = PromptOrder(
            len(levels), settings.seed, shuffle=settings.batch.shuffle, levels=self._difficulty.level_numbers
        )
        if snapshot is not None:
            self._restore(snapshot, prompts)
        self._book = LeaseBook(
            LeaseRules(
                batch=settings.batch.prompts,
                max_staleness=settings.rollout.max_staleness,
                last_step=settings.total_steps,
                samples=settings.rollout.samples_per_prompt,
                lease_seconds=settings.rollout.lease_seconds,
                seed=settings.seed,
            ),
            prompts,
            branch=branch,
            start=step,
            counts=snapshot.counts if snapshot else None,
            next_number=snapshot.next_lease if snapshot else 0,
        )
        self._late_reports = snapshot.late_reports if snapshot else 0
        self._fenced_pulses = snapshot.fenced_pulses if snapshot else 0
        self._newest = self._version  # that actors may serve
        self._manifest: WeightsManifest | None = None
        self._actors: dict[int, Actor] = {}
        self._now = 0.0
        self._order: TrainOrder | None = None  # under way
        self._completed: dict[str, int] = {}  # response tokens by level, of all groups completed for it
        self._summary = OrderSummary(staleness=(0,) * (settings.rollout.max_staleness + 1))

    def apply(self, event: Event) -> tuple[Command, ...]:
        """Takes an event in; returns what is to be done about it, in order."""
        match event:
            case Pulsed():
                self._now = max(self._now, event.at)
                return self._pulsed(event.pulse)
            case Ticked():
                self._now = max(self._now, event.at)
                return _discard(self._book.expire(self._now))
            case OrderRequested():
                self._now = max(self._now, event.at)
                return self._order_requested()
            case StepReported():
                self._now = max(self._now, event.at)
                return self._step_reported(event.report)
            case Published():
                return self._published(event.manifest)
            case Missing():
                self._now = max(self._now, event.at)
                return self._missing(event.missing)

    @property
    def version(self) -> PolicyVersion:
        """What the next order starts from."""
        return self._version

    @property
    def reading(self) -> Reading:
        """What the law says now."""
        return read(self._settings.entropy.law, self._law)

    @property
    def measured_entropy(self) -> float:
        """What the law was told last, nats; NaN before the first time."""
        return self._measured

    @property
    def bonus_estimator(self) -> Estimator:
        """Which entropy the bonus is on."""
        return bonus_estimator(self._settings.entropy)

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
    def actors(self) -> int:
        """Rollout actors heard from within the last lease's deadline."""
        since = self._now - self._settings.rollout.lease_seconds
        return sum(actor.seen >= since for actor in self._actors.values())

    def view(self) -> ControllerView:
        """What people look at; the coefficient is that of the next order, the samples are those of the last one."""
        law, summary = self.reading, self._summary
        return ControllerView(
            version=self._version,
            coefficient=law.coefficient,
            sample_balance=law.sample_balance,
            measured=self._driving,
            target=law.target,
            low=law.low,
            high=law.high,
            initial_entropy=law.initial_entropy,
            frozen_updates=law.frozen,
            brake=law.brake,
            ceiling_orders=law.ceiling_orders,
            leases=self._book.counts(),
            late_reports=self._late_reports,
            actors=self.actors,
            staleness=summary.staleness,
            difficulty=self._difficulty.histogram(self._version.step),
            reward=summary.reward,
            pass_rate=summary.pass_rate,
            statuses=summary.statuses,
            actor_entropy=summary.actor_entropy,
            response_tokens=summary.response_tokens,
            truncated=summary.truncated,
        )

    def snapshot(self) -> ControllerSnapshot:
        """All that a later branch needs to go on from here."""
        return ControllerSnapshot(
            version=self._version,
            law=self._law,
            mix=self._mix,
            difficulty=self._difficulty.snapshot(),
            position=self._book.position(),
            next_lease=self._book.next_number,
            counts=self._book.counts(),
            late_reports=self._late_reports,
            fenced_pulses=self._fenced_pulses,
        )

    def _restore(self, snapshot: ControllerSnapshot, prompts: PromptOrder) -> None:
        if snapshot.version.step != self._version.step or snapshot.version.branch >= self._version.branch:
            raise CheckpointDamaged(
                f"the controller's snapshot is of version {snapshot.version}; expected step {self._version.step} of a "
                f"branch before {self._version.branch}: resume from a checkpoint whose files belong together"
            )
        if type(snapshot.law) is not type(self._law):
            raise CheckpointDamaged(
                f"the controller's snapshot holds a {type(snapshot.law).__name__}; the run's law needs a "
                f"{type(self._law).__name__}: resume with the law the run was started with"
            )
        self._law, self._mix = snapshot.law, snapshot.mix
        self._difficulty.restore(snapshot.difficulty)
        prompts.restore(snapshot.position)

    # ── rollout actors ───────────────────────────────────────────────────────────────────────────────────────────────

    def _pulsed(self, pulse: Pulse) -> tuple[Command, ...]:
        actor = self._actors.get(pulse.slot)
        if actor is not None and pulse.incarnation < actor.incarnation:
            self._fenced_pulses += 1
            useless = self._take_reports(pulse.reports)
            reply = PulseReply(leases=(), ended=pulse.running, manifest=None, fenced=True)
            return (Reply(reply=reply), *_discard(useless))
        evicted: tuple[int, ...] = ()
        if actor is not None and pulse.incarnation > actor.incarnation:
            evicted = self._book.evict(pulse.slot)
        self._actors[pulse.slot] = Actor(pulse.incarnation, self._now)
        useless = self._take_reports(pulse.reports)
        holder = (pulse.slot, pulse.incarnation)
        ended = self._book.renew(holder, pulse.running, self._now)
        leases = self._book.grant(holder, room=pulse.room, serves=pulse.version, newest=self._newest, at=self._now)
        known = self._manifest is None or self._manifest.version == pulse.version
        reply = PulseReply(leases=leases, ended=ended, manifest=None if known else self._manifest, fenced=False)
        return (Reply(reply=reply), *_discard((*evicted, *useless)))

    def _take_reports(self, reports: Sequence[GroupReport]) -> tuple[int, ...]:
        """Accepts reports of running leases; returns the leases of the others whose groups nobody will ask for."""
        useless: list[int] = []
        for report in reports:
            if self._book.accept(report, self._now):
                correct = report.statuses.count("correct")
                self._difficulty.observe(report.prompt_id, report.started.step, correct, len(report.statuses) - correct)
                continue
            self._late_reports += 1
            if not self._book.holds(report.lease_id):
                useless.append(report.lease_id)
        return tuple(useless)

    def _published(self, manifest: WeightsManifest) -> tuple[Command, ...]:
        if manifest.version.branch == self._version.branch and manifest.version >= self._newest:
            self._newest, self._manifest = manifest.version, manifest
        return ()

    # ── learner ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _order_requested(self) -> tuple[Command, ...]:
        if self._order is not None:
            return (Order(order=self._order),)
        stale = _discard(self._book.drop_stale(self._version.step))
        reports = self._book.order(self._now)
        if not reports:
            return stale
        self._order = self._make_order(reports)
        self._summary = summarise(reports, self._version.step, self._settings.rollout.max_staleness)
        self._completed = completed_tokens(
            (self._difficulty.level_of(report.prompt_id), report.lengths) for report in reports
        )
        return (*stale, Order(order=self._order))

    def _make_order(self, reports: Sequence[GroupReport]) -> TrainOrder:
        """The batch, with the weight of each group and its coefficient λ_q = α·w̄_q."""
        law = self.reading
        weights = allocate(
            self._difficulty.weights([report.prompt_id for report in reports], self._version.step),
            reports,
            initial_entropy=law.initial_entropy,
            settings=self._settings.entropy.weight,
        )
        return TrainOrder(
            version=self._version,
            groups=tuple(
                OrderedGroup(
                    lease_id=report.lease_id,
                    prompt_id=report.prompt_id,
                    level=self._difficulty.level_of(report.prompt_id),
                    in_policy=True,
                    weight=float(weight),
                    coefficient=law.coefficient * float(weight),
                )
                for report, weight in zip(reports, weights, strict=True)
            ),
            coefficient=law.coefficient,
            sample_balance=law.sample_balance,
            usual_entropy=math.nan if law.usual_entropy is None else law.usual_entropy,
            seed=derived_seed(self._settings.seed, "order", self._version.step),
        )

    def _step_reported(self, report: StepReport) -> tuple[Command, ...]:
        """Steps the law once; a report that does not answer the order under way (a repetition) changes nothing."""
        made = PolicyVersion(branch=self._version.branch, step=self._version.step + 1)
        if self._order is None or report.measured != self._version or report.version != made:
            return ()
        self._step_law(report)
        self._order = None
        self._version = made
        return _discard(self._book.train())

    def _step_law(self, report: StepReport) -> None:
        before = self._law.intake
        measurement, mix = measure(
            report,
            self._driving,
            mix=self._mix,
            completed=self._completed,
            anchoring=before.initial_entropy is None,
        )
        self._law = law_step(self._settings.entropy.law, self._law, measurement)
        if self._law.intake.accepted > before.accepted:
            self._mix, self._measured = mix, measurement.entropy

    def _missing(self, missing: GroupsMissing) -> tuple[Command, ...]:
        if self._order is not None and missing.version == self._order.version:
            self._book.give_up(missing.lease_ids)
            self._order = None
        return ()


def _discard(leases: tuple[int, ...]) -> tuple[Command, ...]:
    return (Discard(lease_ids=leases),) if leases else ()
