"""A training run: wiring and the learner's loop."""

import contextlib
import logging
import time

import msgspec
import psutil

from entrostat import summary as summaries
from entrostat.alarms import Alarms
from entrostat.cluster import Cluster, Evaluation
from entrostat.config import RunConfig
from entrostat.directory import RunDirectory, RunInfo
from entrostat.interrupt import Interrupt
from entrostat.learner import checkpoint as checkpoints
from entrostat.loop import one_round
from entrostat.mismatch import watch
from entrostat.protocol.errors import EntrostatError, Interrupted, Stalled, StationLost
from entrostat.protocol.messages import (
    ActorView,
    ControllerView,
    EvaluationRequest,
    GroupsMissing,
    Prompt,
    StepReport,
    Waits,
)
from entrostat.recovery import Beginning
from entrostat.rows import MetricsRow, evaluation_row, metrics_row, read_evaluations, read_metrics
from entrostat.saving import Saving
from entrostat.scores import tries
from entrostat.screen import Screen
from entrostat.sinks import Sink
from entrostat.summary import Summary

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 5.0  # a shorter wait is no news
MEMORY_EVERY_STEPS = 5
EVALUATION_SECONDS = 3600.0


class Run:
    """One run from its first order to its summary.

    Args:
        config: the effective configuration.
        directory: open, and the run's alone.
        cluster: the stations, not yet started.
        evaluation_prompts: the fixed unseen prompts.
        trained_levels: levels of the training prompts; the scores are made of these.
        start: where the run begins.
        token: file of what whoever scales the run has to know.
        began: when the command was given, Unix time.
        restarts: how often it went on by itself after a station was lost.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        cluster: Cluster,
        screen: Screen,
        sinks: list[Sink],
        *,
        evaluation_prompts: tuple[Prompt, ...],
        trained_levels: frozenset[str],
        start: Beginning,
        token: str,
        began: float,
        restarts: int = 0,
    ) -> None:
        self._config = config
        self._directory = directory
        self._cluster = cluster
        self._screen = screen
        self._sinks = sinks
        self._evaluation_prompts = evaluation_prompts
        self._trained_levels = trained_levels
        self._version = start.version
        self._again = start.again
        self._began = began
        self._token = token
        self._endpoints = ("", 0)  # as run.json names them
        self._restarts = restarts
        self._interrupt = Interrupt(screen.say)
        self._since = self._last_step_ended = time.monotonic()  # the last step, or whatever moved last
        # Seconds of waiting that the controller can't see, since it was last told.
        self._apart = dict.fromkeys(("checkpoint", "evaluation", "other"), 0.0)
        self._alarms = Alarms(directory.path, config.verifier.alarm_share)
        self._watch = watch(config.model, config.rollout, config.learner)
        self._saving = Saving(cluster, directory, config.checkpoint.keep)
        self._evaluation: Evaluation | None = None
        self._first_step_seconds = 0.0
        self._memory_gib = 0.0

    def train(self) -> Summary:
        """Trains to the last step.

        Raises:
            Interrupted: the user stopped it; everything is saved.
            Stalled: nothing moved for `run.stall_seconds`.
            StationLost: a station died.
        """
        with self._interrupt.listening():
            try:
                self._start()
                while self._version.step < self._config.run.steps:
                    self._step()
                self._evaluate_now()
                self._saving.collect(wait=True)
                self._cluster.finish()
            except Stalled:
                raise  # whoever hangs may be the one that writes the checkpoint under way; the one before is whole
            except EntrostatError as error:
                self._saving.settle()
                if isinstance(error, StationLost) and self._interrupt.asked:
                    raise Interrupted(
                        f"stopped, and nothing more could be saved: {error}; go on from what was saved before with: "
                        f"entrostat train --resume {self._directory.path}"
                    ) from error
                raise
        return self._finish()

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from."""
        return self._version.step > 0

    def _start(self) -> None:
        self._screen.waiting("starting vLLM, the learner and the controller")
        self._cluster.start()
        frozen = self._cluster.controller_view().frozen_updates
        self._alarms = Alarms(self._directory.path, self._config.verifier.alarm_share, frozen)
        self._tell_endpoints()
        self._write_missing_rows()
        self._stop_if_asked()
        if self._version.step == 0 and not self._evaluated(0):
            # It shares the engine with the first samples; that actor keeps these weights until it has ended.
            self._begin_evaluation()
        self._last_step_ended = self._since = time.monotonic()

    def _tell_endpoints(self) -> None:
        """Where the run can be asked; a controller that Ray restarted may have another port."""
        if self._cluster.endpoints() == self._endpoints:
            return
        self._endpoints = host, port = self._cluster.endpoints()
        self._directory.write_info(
            RunInfo(
                process=psutil.Process().pid,
                started_unix=self._began,
                targets=f"http://{host}:{port}/targets",
                health=f"http://{host}:{port}/healthz",
                scale=f"http://{host}:{port}/scale",
                token=self._token,
            )
        )

    def _write_missing_rows(self) -> None:
        """A kill may come between a step and its row: what was trained again gets those that are not there."""
        written = max((row.step for row in read_metrics(self._directory.metrics)), default=0)
        if self._again:
            self._screen.say(f"{len(self._again)} recorded steps were trained again, to the same weights")
        for one in self._again:
            if one.report.version.step > written:
                row = metrics_row(
                    one.report,
                    one.view,
                    [],
                    unix_seconds=time.time(),
                    step_seconds=sum(msgspec.structs.astuple(one.report.phases)),
                    coefficient=one.order.coefficient,
                    samples=len(one.order.groups) * self._config.rollout.samples_per_prompt,
                    memory_gib=0.0,
                    waits=Waits(),
                )
                self._show(row)

    def _step(self) -> None:
        done = one_round(
            self._cluster,
            before=self._stop_if_asked,
            after=self._between_polls,
            clock=time.monotonic,
            poll_seconds=POLL_SECONDS,
        )
        if isinstance(done, GroupsMissing):
            self._screen.say(f"{len(done.lease_ids)} groups were lost with the sample buffer and are sampled again")
            self._check_progress()  # orders that can never be trained are no progress
            return
        order, outcome, view = done.order, done.outcome, done.view
        self._since = time.monotonic()
        self._version = outcome.report.version
        now = time.monotonic()
        step_seconds, self._last_step_ended = now - self._last_step_ended, now
        if not self._first_step_seconds:
            self._first_step_seconds = time.time() - self._began
        if self._version.step % MEMORY_EVERY_STEPS == 1:
            self._memory_gib = memory_gib()
        samples = len(order.groups) * self._config.rollout.samples_per_prompt
        actors = self._cluster.actor_views()
        self._tell_endpoints()
        row = metrics_row(
            outcome.report,
            view,
            actors,
            unix_seconds=time.time(),
            step_seconds=step_seconds,
            coefficient=order.coefficient,
            samples=samples,
            memory_gib=self._memory_gib,
            waits=self._waits(done.waited),
        )
        self._show(row)
        self._warn(view, outcome.report, actors)
        self._keep(row.step)

    def _between_polls(self, ordered: bool) -> None:
        self._collect_evaluation(wait=False)
        self._saving.collect(wait=False)
        if not ordered:
            self._check_progress()

    def _waits(self, waited: float) -> Waits:
        """What the learner waited for since the step before, `waited` seconds of it for this order."""
        waits = self._cluster.waits(Waits(**self._apart))
        known = waits.sampling + waits.verifying + waits.weights + waits.no_actors
        other = max(0.0, waited - known)
        self._apart = {"checkpoint": 0.0, "evaluation": 0.0, "other": other}  # the controller hears of it a step later
        return msgspec.structs.replace(waits, other=other)

    def _warn(self, view: ControllerView, report: StepReport, actors: list[ActorView]) -> None:
        """Says what is wrong with the step.

        Raises:
            PolicyMismatch: so much that the run must not go on; the step's weights are kept nowhere.
        """
        probe = max((actor.mismatch for actor in actors), default=0.0)
        watched = () if self._watch is None else self._watch.warnings(report, probe)
        if self._watch is not None:
            self._watch.check(report, probe)
        for text in self._alarms.begun(view, sum(view.statuses), watched):
            self._screen.say(f"warning: {text}")
            log.warning("step %s: %s", view.version, text)

    def _show(self, row: MetricsRow) -> None:
        for sink in self._sinks:
            sink.step(row)
        self._screen.step(row)
        log.info("step %d: reward %.3f, H %.4f nats, %.2f s", row.step, row.reward, row.entropy_nats, row.step_seconds)

    def _keep(self, step: int) -> None:
        last = step == self._config.run.steps
        every = self._config.evaluation.every_steps
        if every and step % every == 0 and not last:
            self._evaluate_now()
        if step % self._config.checkpoint.every_steps == 0 or last:
            self._screen.waiting(f"saving step {step}")
            began = time.monotonic()
            self._saving.begin(step)
            self._since = time.monotonic()
            self._apart["checkpoint"] += self._since - began

    def _stop_if_asked(self) -> None:
        if self._interrupt.asked:
            if not self.begun:
                raise Interrupted("stopped before the first step: there is nothing to save")
            step, go_on = self._version.step, f"go on with: entrostat train --resume {self._directory.path}"
            if self._config.run.deterministic:
                # Another checkpoint than those of the schedule would move later samples to other versions.
                self._saving.collect(wait=True)
                saved = checkpoints.newest(self._directory.checkpoints)
                kept = "the run begins anew" if saved is None else f"it goes on from {saved.name}"
                raise Interrupted(f"stopped after step {step}; {kept}, and makes the same steps: {go_on}")
            self._screen.waiting(f"saving step {step}")
            self._saving.begin(step)
            self._saving.collect(wait=True)
            raise Interrupted(f"stopped after step {step} and saved as {self._saving.folder(step)}; {go_on}")

    def _check_progress(self) -> None:
        waited = time.monotonic() - self._since
        view = self._cluster.controller_view()
        leases = view.leases
        needed = self._config.batch.prompts
        text = (
            f"waiting {waited:.0f} s for groups: {leases.ready} of {needed} ready, {leases.running} being sampled by "
            f"{view.actors} actors"
        )
        if waited > PATIENCE_SECONDS:
            self._screen.waiting(text)
        if waited > self._config.run.stall_seconds and not self._evaluates():
            raise Stalled(
                f"no optimizer step for {waited:.0f} s (run.stall_seconds = {self._config.run.stall_seconds:.0f}): "
                f"the learner waits for groups, {leases.ready} of {needed} are ready, {leases.running} leases run, "
                f"{leases.expired} expired, {view.actors} of {view.wanted_actors} actors were heard from; "
                f"their logs are in {self._directory.path}/logs"
            )

    def _begin_evaluation(self) -> None:
        if self._evaluation_prompts:
            settings = self._config.evaluation
            request = EvaluationRequest(
                prompts=self._evaluation_prompts,
                samples=settings.samples,
                temperature=settings.temperature,
                seed=self._config.run.seed,
                reproducible=settings.reproducible,
            )
            self._evaluation = self._cluster.evaluate(request)

    def _evaluate_now(self) -> None:
        """Evaluates the newest policy: waits until the actor that evaluates serves it."""
        self._collect_evaluation(wait=True)
        if not self._evaluation_prompts:
            return
        self._screen.waiting("evaluating")
        began = time.monotonic()
        while not self._evaluated(self._version.step):
            deadline = time.monotonic() + self._config.run.stall_seconds  # anew: an actor may die while it evaluates
            while self._cluster.serving() != self._version:
                if time.monotonic() > deadline:
                    raise Stalled(f"no rollout actor loaded version {self._version} within run.stall_seconds")
                time.sleep(0.05)
            self._begin_evaluation()
            self._collect_evaluation(wait=True)
        self._last_step_ended = self._since = time.monotonic()  # an evaluation is no part of the next step
        self._apart["evaluation"] += self._since - began

    def _evaluates(self) -> bool:
        """Whether an evaluation is under way that has not passed its own deadline; it may hold up the samples."""
        return self._evaluation is not None and time.monotonic() < self._evaluation.began + EVALUATION_SECONDS

    def _collect_evaluation(self, *, wait: bool) -> None:
        if self._evaluation is None or not (wait or self._cluster.has_evaluated(self._evaluation)):
            return
        try:
            result = self._cluster.evaluated(self._evaluation, EVALUATION_SECONDS)
        except StationLost as error:
            # The actor that replaces the lost one serves newer weights: what they had scored before is lost too.
            self._evaluation = None
            self._screen.say(f"warning: an evaluation was lost with its actor: {error}")
            return
        self._evaluation = None
        settings = self._config.evaluation
        row = evaluation_row(result, self._trained_levels, tries(settings.samples, settings.k))
        for sink in self._sinks:
            sink.evaluation(row)
        self._screen.evaluation(row)

    def _evaluated(self, step: int) -> bool:
        return any(row.step == step for row in read_evaluations(self._directory.evaluations))

    def _finish(self) -> Summary:
        summary = summaries.summarise(
            read_metrics(self._directory.metrics),
            read_evaluations(self._directory.evaluations),
            seconds=time.time() - self._began,
            first_step_seconds=self._first_step_seconds,
            actor_restarts=self._cluster.restarts,
            restarts=self._restarts,
        )
        summaries.write(summary, self._directory.summary)
        return summary


def memory_gib() -> float:
    """Proportional memory of this process and all below it: shared pages are counted once. GiB."""
    total = 0
    process = psutil.Process()
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += one.memory_full_info().pss
    return total / (1 << 30)
