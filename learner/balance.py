"""How the policy term and the bonus move the entropy, each by itself: what the thermostat is calibrated by."""

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import torch

from entrostat.learner.batching import Sample
from entrostat.learner.objective import Objective
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy
from entrostat.learner.survey import Survey
from entrostat.learner.update import Measured, accumulate
from entrostat.protocol.errors import EntrostatError, NumericsError
from entrostat.protocol.messages import BalanceReport

# λ_q and α·w̄_q are one product of floats, made elsewhere: a larger difference is not rounding.
COEFFICIENT_TOLERANCE = 1e-9


def accumulate_apart(
    policy: Policy,
    reference: Policy | None,
    optimizer: Optimizer,
    samples: Sequence[Sample],
    objective: Objective,
    coefficient: float,
    where: str,
    survey: Survey | None = None,
    *,
    unmoved: bool = False,
) -> tuple[Measured, BalanceReport | None]:
    """`accumulate`, and the inner products of its two gradients in the optimizer's metric; None before its first step.

    g_H is the gradient of `(1/N_H) Σ m w̄_q H̃`, the bonus with α = 1, from a pass of its own. The step's gradient is
    `g = g_P + α g_H`, so that `⟨P g_P, g_H⟩ = ⟨P g, g_H⟩ − α ⟨P g_H, g_H⟩`; it stays what it is without measuring. Both
    are gradients of what is maximised: a policy term that lowers the entropy has a negative push. g_P holds the pull to
    a reference, if there is one.

    Raises:
        EntrostatError: a sample's coefficient is not α times its weight.
        NumericsError: as `accumulate`, or an inner product is not finite.
    """
    if not optimizer.has_moments:
        return accumulate(policy, reference, samples, objective, where, survey, unmoved=unmoved), None
    _check_weights(samples, coefficient, where)
    free = replace(objective, learner=msgspec.structs.replace(objective.learner, kl_coefficient=0.0))
    alone = [_bonus_alone(sample) for sample in samples]
    accumulate(policy, None, alone, free, where, None if survey is None else _survey_alone(survey))
    bonus = optimizer.gradients()
    optimizer.clear()
    measured = accumulate(policy, reference, samples, objective, where, survey, unmoved=unmoved)
    bonus_push = optimizer.inner(bonus, bonus)
    # The gradients are those of −J and of −bonus: the signs cancel.
    policy_push = optimizer.inner(optimizer.gradients(), bonus) - coefficient * bonus_push
    if not math.isfinite(bonus_push) or not math.isfinite(policy_push):
        raise NumericsError(
            f"{where}: the balance of policy term and bonus is {policy_push} and {bonus_push}; expected finite "
            "numbers. The weights are unchanged; lower learner.lr, and look at the samples of the steps before"
        )
    return measured, BalanceReport(policy_push=policy_push, bonus_push=bonus_push)


def _bonus_alone(sample: Sample) -> Sample:
    return replace(sample, coefficient=sample.weight, in_policy=False)


def _survey_alone(survey: Survey) -> Survey:
    """The same without a token in the policy term."""
    none = torch.zeros_like(survey.settled.policy)
    return replace(survey, settled=replace(survey.settled, policy=none))


def _check_weights(samples: Sequence[Sample], coefficient: float, where: str) -> None:
    for sample in samples:
        wanted = coefficient * sample.weight
        if not math.isclose(sample.coefficient, wanted, rel_tol=COEFFICIENT_TOLERANCE, abs_tol=COEFFICIENT_TOLERANCE):
            raise EntrostatError(
                f"{where}: learner.measure_balance needs λ_q = α·w̄_q, and sample {sample.index} of the order has "
                f"λ_q = {sample.coefficient} with α = {coefficient} and w̄_q = {sample.weight}: the controller and the "
                "learner disagree"
            )
