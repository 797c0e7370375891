"""What the learner is ordered to train: a batch, the weight of each group in the bonus, and the law's numbers."""

import math
from collections.abc import Sequence

import numpy as np

from entrostat.controller.allocation import allocate
from entrostat.controller.coefficient import Reading
from entrostat.controller.difficulty import DifficultyTable, group_weights
from entrostat.controller.leases import derived_seed
from entrostat.controller.signals import silent
from entrostat.protocol.messages import GroupReport, OrderedGroup, PolicyVersion, TrainOrder
from entrostat.protocol.settings import Stations


def make_order(
    reports: Sequence[GroupReport],
    *,
    version: PolicyVersion,
    law: Reading,
    difficulty: DifficultyTable,
    settings: Stations,
) -> TrainOrder:
    """The order of a batch, with the weight of each group and its coefficient λ_q = α·w̄_q.

    Args:
        reports: the batch, and after it the groups that come along for their bonus alone.
        version: the step starts from.
        law: what it says now.
        difficulty: of the prompts.
        settings: of the run.
    """
    weighting = settings.entropy.weight
    prompts = [report.prompt_id for report in reports]
    raw = (
        group_weights(reports, weighting)
        if weighting.difficulty == "group"
        else difficulty.weights(prompts, version.step)
    )
    if law.coefficient < 0.0:
        # Entropy is pressed down where it is, not where prompts are hard; and only beside a gradient that opposes it.
        weights = np.full(len(reports), float(not all(map(silent, reports))))
    else:
        weights = allocate(raw, reports, initial_surprise=law.initial_surprise, settings=weighting)
    return TrainOrder(
        version=version,
        groups=tuple(
            OrderedGroup(
                lease_id=report.lease_id,
                prompt_id=report.prompt_id,
                level=difficulty.level_of(report.prompt_id),
                in_policy=place < settings.batch.prompts,
                weight=float(weight),
                coefficient=law.coefficient * float(weight),
            )
            for place, (report, weight) in enumerate(zip(reports, weights, strict=True))
        ),
        coefficient=law.coefficient,
        sample_balance=law.sample_balance,
        usual_entropy=math.nan if law.usual_entropy is None else law.usual_entropy,
        seed=derived_seed(settings.seed, "order", version.step),
    )


def acting_share(order: TrainOrder, reports: Sequence[GroupReport]) -> float:
    """`Σ n_q w̄_q / N_H`, the token mean of the weights: how much of the order's coefficient acts on the mean H̃."""
    tokens = np.array([sum(report.lengths) for report in reports], dtype=np.float64)
    weights = np.array([group.weight for group in order.groups], dtype=np.float64)
    total = float(tokens.sum())
    return float(tokens @ weights) / total if total else 0.0
