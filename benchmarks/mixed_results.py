"""Groups with mixed results under `batch.sampling = uniform` and `mixed_results`, where pass rates are spread.

The controller is the real one; actors and learner are a model: a prompt has a pass rate of its own, its samples are
right by chance. Most prompts are never or always solved. Counted are all groups completed, and those of them whose
samples are neither all right nor all wrong.

python -m benchmarks.mixed_results [--seeds 5] [--to FILE.json]
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import msgspec
import numpy as np
from msgspec.structs import replace

from entrostat.controller.events import Command, Event, Order, OrderRequested, Published, Pulsed, Reply, StepReported
from entrostat.controller.state import Controller
from entrostat.protocol.entropy_settings import FixedLaw
from entrostat.protocol.messages import GroupReport, Lease, Pulse, TrainOrder
from entrostat.protocol.settings import MixedResults, SamplingSettings, Stations, Uniform
from tests.made_messages import group_of, run_of, step_of, version

BATCH, SAMPLES, PROMPTS, STEPS = 32, 8, 2000, 300
NEVER, ALWAYS = 0.45, 0.35  # shares of prompts with pass rates of 0 and 1; those of the others are spread evenly
AT_ONCE = 16  # groups that are done between two requests of the learner


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is like."""

    name: str
    staleness: int = 2
    refill: float = 0.0  # of the filter; 0: none
    learning: float = 0.0  # that every prompt's logit grows in a step


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    mixed: float  # share of groups with mixed results, of all completed
    mixed_late: float  # the same in the last half of the steps
    groups: int  # completed
    trained_mixed: float  # share of the trained groups
    filtered: int
    passed_over: int
    visited: float  # share of prompts of which a group was completed
    controller_seconds: float


CASES = (
    Case(name="as they are"),
    Case(name="16 versions late", staleness=16),
    Case(name="learning", learning=0.05),
    Case(name="filtered", refill=8.0),
)
SAMPLINGS: dict[str, SamplingSettings] = {"uniform": Uniform(), "mixed_results": MixedResults()}


def settings_of(case: Case, sampling: SamplingSettings, seed: int) -> Stations:
    """A run's."""
    run = run_of(batch=BATCH, staleness=case.staleness, law=FixedLaw(coefficient=0.0), refill=case.refill)
    rollout = replace(run.rollout, samples_per_prompt=SAMPLES)
    batch = replace(run.batch, sampling=sampling)
    return replace(run, seed=seed, rollout=rollout, batch=batch, total_steps=STEPS)


class World:
    """Prompts with pass rates, and the one actor that samples them."""

    def __init__(self, case: Case, sampling: SamplingSettings, seed: int) -> None:
        self._case = case
        self._random = np.random.default_rng(seed)
        kind = self._random.random(PROMPTS)
        between = self._random.random(PROMPTS)
        # A prompt that is learnt is not at 0 or 1 exactly: it lies far out and moves.
        far = 8.0 + 12.0 * self._random.random(PROMPTS)
        middle = np.log(between / (1.0 - between))
        self._logits = np.where(kind < NEVER, -far, np.where(kind < NEVER + ALWAYS, far, middle))
        self._controller = Controller(settings_of(case, sampling, seed), ["a"] * PROMPTS)
        self._seconds = 0.0
        self._held: list[Lease] = []
        self._pulses = self._serves = 0
        self._completed: list[tuple[int, int, bool]] = []  # step, prompt, mixed
        self._mixed_leases: set[int] = set()
        self._trained: list[bool] = []

    def run(self) -> Counted:
        """Trains the last step."""
        while self._serves < STEPS:
            self._pulse()
            order = self._order()
            if order is not None:
                self._learn(order)
        mixed = np.array([one for _, _, one in self._completed])
        late = np.array([step >= STEPS // 2 for step, _, _ in self._completed])
        return Counted(
            mixed=float(mixed.mean()),
            mixed_late=float(mixed[late].mean()),
            groups=mixed.size,
            trained_mixed=mean(self._trained),
            filtered=self._controller.counts.filtered,
            passed_over=self._controller.passed_over,
            visited=len({prompt for _, prompt, _ in self._completed}) / PROMPTS,
            controller_seconds=self._seconds,
        )

    def _pulse(self) -> None:
        done, self._held = self._held[:AT_ONCE], self._held[AT_ONCE:]
        reports = tuple(self._sampled(lease) for lease in done)
        self._pulses += 1
        pulse = Pulse(
            slot=0,
            incarnation=1,
            number=self._pulses,
            version=version(self._serves),
            room=(self._case.staleness + 1) * BATCH,
            running=tuple(lease.id for lease in self._held),
            reports=reports,
        )
        (reply,) = [one for one in self._apply(Pulsed(pulse=pulse, at=0.0)) if isinstance(one, Reply)]
        self._held += reply.leases

    def _sampled(self, lease: Lease) -> GroupReport:
        rate = 1.0 / (1.0 + np.exp(-self._logits[lease.prompt_id]))
        correct = int(self._random.binomial(SAMPLES, rate))
        mixed = 0 < correct < SAMPLES
        self._completed.append((self._serves, lease.prompt_id, mixed))
        if mixed:
            self._mixed_leases.add(lease.id)
        return group_of(lease, started=lease.version.step, correct=correct)

    def _order(self) -> TrainOrder | None:
        commands = self._apply(OrderRequested(at=0.0))
        return next((one.order for one in commands if isinstance(one, Order)), None)

    def _learn(self, order: TrainOrder) -> None:
        self._trained += [one.lease_id in self._mixed_leases for one in order.groups]
        self._apply(StepReported(report=step_of(order), at=0.0))
        self._serves = order.version.step + 1
        self._apply(Published(version=version(self._serves), checksum=0))
        self._logits += self._case.learning

    def _apply(self, event: Event) -> tuple[Command, ...]:
        began = time.process_time()
        commands = self._controller.apply(event)
        self._seconds += time.process_time() - began
        return commands


def main() -> int:
    """A line for each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed_results", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--to", type=Path, help="a file for the numbers as JSON")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found: dict[str, dict[str, list[Counted]]] = {}
    for case in CASES:
        runs = {
            name: [World(case, sampling, seed).run() for seed in range(options.seeds)]
            for name, sampling in SAMPLINGS.items()
        }
        found[case.name] = runs
        print(told(case, runs["uniform"], runs["mixed_results"]), flush=True)
    if options.to is not None:
        options.to.write_text(json.dumps(msgspec.to_builtins(found), indent=1) + "\n", encoding="utf-8")
    return 0


def told(case: Case, uniform: list[Counted], mixed: list[Counted]) -> str:
    """A case in words; ± is the standard deviation over seeds."""

    def both(name: str) -> str:
        before, after = ([getattr(one, name) for one in runs] for runs in (uniform, mixed))
        ratios = [now / then for now, then in zip(after, before, strict=True)]
        return f"{mean(before):.3g} → {mean(after):.3g}, × {mean(ratios):.2f} ± {stdev(ratios):.2f}"

    rates = [sum(one.groups for one in runs) / sum(one.controller_seconds for one in runs) for runs in (uniform, mixed)]
    lines = [
        f"{case.name}:",
        f"  groups with mixed results, of all       {both('mixed')}",
        f"  the same in the last half               {both('mixed_late')}",
        f"  the same of those trained               {both('trained_mixed')}",
        f"  groups completed for {STEPS} steps         {both('groups')}",
        f"  prompts sampled at least once           {both('visited')}",
        f"  passed over                             {mean(one.passed_over for one in mixed):,.0f}",
        f"  groups a second of the controller       {rates[0]:,.0f} → {rates[1]:,.0f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
