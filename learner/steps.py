"""An order's optimizer steps: a survey where one is needed, then part after part of the order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from entrostat.learner.balance import accumulate_apart
from entrostat.learner.batching import Sample
from entrostat.learner.forward import PerToken
from entrostat.learner.minibatches import bounded, minibatches
from entrostat.learner.objective import Objective, needs_survey, steps_per_order
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy
from entrostat.learner.survey import survey
from entrostat.learner.update import Measured, accumulate
from entrostat.protocol.messages import BalanceReport, TrainOrder


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step that was made."""

    measured: Measured
    gradient_norm: float
    balance: BalanceReport | None


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An order that was trained on."""

    samples: tuple[Sample, ...]  # rejected ones don't count
    tokens: PerToken  # before the first update
    steps: tuple[Step, ...]
    gradient_seconds: float  # forward and backward, the survey included
    optimizer_seconds: float


def take(
    policy: Policy,
    reference: Policy | None,
    optimizer: Optimizer,
    samples: Sequence[Sample],
    objective: Objective,
    order: TrainOrder,
    rate: float,
    where: str,
) -> Taken:
    """Makes all of the order's steps at learning rate `rate`; one without an advantage signal has no bonus.

    Raises:
        NumericsError: a measurement, a term of J or a gradient is not finite. That step is not made; those of the order
            that came before it are, and their weights go nowhere, as the order's version is never published.
    """
    began, spent = time.perf_counter(), 0.0
    settings = objective.learner
    seen = survey(policy, reference, samples, objective, order.seed, where) if needs_survey(objective) else None
    samples = tuple(samples) if seen is None else seen.samples
    steps: list[Step] = []
    for part in map(bounded, minibatches(samples, settings.minibatches, settings.epochs, order.seed)):
        here = where if steps_per_order(settings) == 1 else f"{where}, part {len(steps) + 1}"
        unmoved = not steps
        if settings.measure_balance:
            measured, balance = accumulate_apart(
                policy, reference, optimizer, part, objective, order.coefficient, here, seen, unmoved=unmoved
            )
        else:
            measured, balance = accumulate(policy, reference, part, objective, here, seen, unmoved=unmoved), None
        computed = time.perf_counter()
        norm = optimizer.step(rate, here)
        spent += time.perf_counter() - computed
        steps.append(Step(measured=measured, gradient_norm=norm, balance=balance))
    return Taken(
        samples=samples,
        tokens=steps[0].measured.tokens if seen is None else seen.measured,
        steps=tuple(steps),
        gradient_seconds=time.perf_counter() - began - spent,
        optimizer_seconds=spent,
    )
