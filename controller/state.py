"""The controller: a deterministic state machine. `apply(event)` changes its state and says what is to be done.

No clock, no input, no output but the log, no randomness that does not follow from the run's seed: the same events make
the same commands, so that recovery is replay and a bug report is a list of events.
"""

from collections.abc import Sequence

import msgspec

from entrostat.controller.coefficient import LawState, Reading
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
from entrostat.controller.leases import LeaseBook, lease_rules
from entrostat.controller.prompts import PromptOrder, PromptPosition
from entrostat.controller.rounds import Rounds
from entrostat.controller.steering import Steering
from entrostat.controller.thermometer import AnchorMix
from entrostat.protocol.errors import CheckpointDamaged, TaskError
from entrostat.protocol.messages import (
    ControllerView,
    GroupReport,
    GroupsMissing,
    LeaseCounts,
    PolicyVersion,
    Pulse,
    PulseReply,
    StepReport,
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
    filled_up: int
    filled_orders: int


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
        self.steering = Steering(settings.entropy, momentum=_momentum(settings))
        self._difficulty = DifficultyTable(levels, settings.entropy.weight)
        prompts = PromptOrder(
            len(levels), settings.seed, shuffle=settings.batch.shuffle, levels=self._difficulty.level_numbers
        )
        if snapshot is not None:
            self._restore(snapshot, prompts)
        self._book = LeaseBook(
            lease_rules(settings),
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
        self._round = Rounds(
            settings,
            self._difficulty,
            filled_up=snapshot.filled_up if snapshot else 0,
            filled_orders=snapshot.filled_orders if snapshot else 0,
        )

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
    def actors(self) -> int:
        """Rollout actors heard from within the last lease's deadline."""
        since = self._now - self._settings.rollout.lease_seconds
        return sum(actor.seen >= since for actor in self._actors.values())

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
            actors=self.actors,
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

    def snapshot(self) -> ControllerSnapshot:
        """All that a later branch needs to go on from here."""
        return ControllerSnapshot(
            version=self._version,
            law=self.steering.law,
            mix=self.steering.mix,
            difficulty=self._difficulty.snapshot(),
            position=self._book.position(),
            next_lease=self._book.next_number,
            counts=self._book.counts(),
            late_reports=self._late_reports,
            fenced_pulses=self._fenced_pulses,
            filled_up=self._round.filled_up,
            filled_orders=self._round.filled_orders,
        )

    def _restore(self, snapshot: ControllerSnapshot, prompts: PromptOrder) -> None:
        if snapshot.version.step != self._version.step or snapshot.version.branch >= self._version.branch:
            raise CheckpointDamaged(
                f"the controller's snapshot is of version {snapshot.version}; expected step {self._version.step} of a "
                f"branch before {self._version.branch}: resume from a checkpoint whose files belong together"
            )
        self.steering.restore(snapshot.law, snapshot.mix)
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
        return (Reply(reply=reply), *_discard((*evicted, *useless, *self._drop_filtered())))

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

    def _drop_filtered(self) -> tuple[int, ...]:
        """The leases that were filtered just now; their groups count in the next order's summary."""
        filtered = self._book.take_filtered()
        self._round.leave_out(filtered)
        return tuple(report.lease_id for report in filtered)

    def _published(self, manifest: WeightsManifest) -> tuple[Command, ...]:
        if manifest.version.branch == self._version.branch and manifest.version >= self._newest:
            self._newest, self._manifest = manifest.version, manifest
        return ()

    # ── learner ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _order_requested(self) -> tuple[Command, ...]:
        if self._round.order is not None:
            return (Order(order=self._round.order),)
        law = self.reading
        stale = self._book.drop_stale(self._version.step)
        reports = self._book.order(self._now, along=law.coefficient > 0.0)
        useless = _discard((*stale, *self._drop_filtered()))
        if not reports:
            return useless
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
        return _discard(self._drop_filtered())


def _momentum(settings: Stations) -> float:
    """What is left of a push after one order: β1 of each of its optimizer steps."""
    return settings.learner.betas[0] ** (settings.learner.minibatches * settings.learner.epochs)


def _discard(leases: tuple[int, ...]) -> tuple[Command, ...]:
    return (Discard(lease_ids=leases),) if leases else ()
