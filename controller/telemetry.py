"""The controller's state as Prometheus metrics. Nothing is decided by it."""

import math
from typing import get_args

from entrostat.controller.leases import Outcome
from entrostat.controller.state import Controller
from entrostat.protocol import metrics
from entrostat.protocol.messages import ControllerView, StepReport


class Telemetry:
    """Writes what changed since the last call to an exporter, so that counters only ever count up."""

    def __init__(self, exporter: metrics.Exporter, controller: Controller) -> None:
        self._exporter, self._controller = exporter, controller
        self._bonus = controller.steering.bonus_estimator
        self._counts = controller.counts  # a restored run's earlier leases are another process's series
        self._late = controller.late_reports
        self._fenced = controller.fenced_pulses
        self._filled_up = controller.filled_up
        self._passed_over = controller.passed_over
        self._frozen = controller.reading.frozen

    def leases(self, controller: Controller) -> None:
        """Leases, late reports, fenced pulses, prompts passed over and actors."""
        counts = controller.counts
        self._exporter.add(metrics.LEASES_GRANTED, counts.granted - self._counts.granted)
        for outcome in (*get_args(Outcome), "filtered", "rewound"):
            more = getattr(counts, outcome) - getattr(self._counts, outcome)
            if more:
                self._exporter.add(metrics.LEASES_ENDED, more, outcome=outcome)
        self._exporter.add(metrics.LATE_REPORTS, controller.late_reports - self._late)
        self._exporter.add(metrics.FENCED_PULSES, controller.fenced_pulses - self._fenced)
        self._exporter.add(metrics.PASSED_OVER, controller.passed_over - self._passed_over)
        self._passed_over = controller.passed_over
        self._exporter.set(metrics.LEASES_RUNNING, counts.running)
        self._exporter.set(metrics.GROUPS_READY, counts.ready)
        self._exporter.set(metrics.ACTORS, controller.actors)
        self._exporter.set(metrics.WANTED_ACTORS, controller.wanted_actors)
        self._counts, self._late, self._fenced = counts, controller.late_reports, controller.fenced_pulses

    def ordered(self, view: ControllerView) -> None:
        """An order that was made: its samples and their ages."""
        for age, groups in enumerate(view.staleness):
            for _ in range(groups):
                self._exporter.observe(metrics.STALENESS, age)
        self._exporter.set(metrics.REWARD, view.reward)
        self._exporter.set(metrics.PASS_RATE, view.pass_rate)
        self._exporter.set(metrics.ENTROPY, view.actor_entropy, estimator="sampled", policy="behaviour")

    def law(self, view: ControllerView, report: StepReport) -> None:
        """What the law made of a step's report."""
        self._exporter.set(metrics.COEFFICIENT, view.coefficient)
        self._exporter.set(metrics.TARGET, math.nan if view.target is None else view.target)
        current = {"full": report.entropy, "sampled": report.sampled_entropy}
        if self._bonus != "full":
            current[self._bonus] = report.clamped_entropy
        for estimator, entropy in current.items():
            self._exporter.set(metrics.ENTROPY, entropy, estimator=estimator, policy="current")
        self._exporter.set(metrics.MEASURED, self._controller.steering.measured_entropy, estimator=view.measured)
        self._exporter.set(metrics.SAMPLE_BALANCE, view.sample_balance)
        filled_up = self._controller.filled_up
        self._exporter.add(metrics.FILLED_UP, filled_up - self._filled_up)
        self._filled_up = filled_up
        self._exporter.add(metrics.LAW_FROZEN, view.frozen_updates - self._frozen)
        self._frozen = view.frozen_updates
