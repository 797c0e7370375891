"""J's terms on one micro-batch: per-token values, and the sums they are reduced to."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from entrostat.learner.batching import Denominators, MicroBatch
from entrostat.learner.losses import importance_weight, kl_to_reference, smoothed_entropy, surrogate, with_entropy
from entrostat.learner.objective import Objective
from entrostat.learner.rows import HeadOutput
from entrostat.learner.survey import Settled
from entrostat.protocol.entropy_settings import SmoothedTokens
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import LearnerSettings


@dataclass(frozen=True, kw_only=True)
class Terms:
    """J's terms, as added to it, over all samples of an optimizer step."""

    policy: float
    bonus: float
    kl: float

    @property
    def objective(self) -> float:
        """J."""
        return self.policy + self.bonus + self.kl


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Of the tokens in the policy term, how many met a bound."""

    tokens: int
    clipped: int  # the ratio's
    capped: int  # the importance weight's


def terms_of(
    now: HeadOutput,
    settled: Settled,
    reference: Tensor | None,
    batch: MicroBatch,
    objective: Objective,
    count: Denominators,
) -> tuple[Tensor, Tensor]:
    """The micro-batch's share of J's terms `[policy, bonus, kl]` and of `[tokens, clipped, capped]`.

    `reference [T]` is log π_ref.
    """
    settings = objective.learner
    values, clipped, capped = _policy_values(now, settled, batch, settings)
    kl = torch.zeros_like(settled.logprob) if reference is None else kl_to_reference(now.logprob, reference)
    bonus = now.clamped_entropy
    if isinstance(objective.tokens, SmoothedTokens):
        bonus = smoothed_entropy(bonus, objective.usual_entropy, objective.tokens)
    bonus = torch.where(settled.bonus, batch.coefficient * bonus, torch.zeros_like(bonus))
    limit = objective.response_limit
    terms = torch.stack(
        [
            reduced(values, settled.policy, batch.row, settings, count, limit),
            bonus.sum() / count.response_tokens,
            -settings.kl_coefficient * reduced(kl, settled.policy, batch.row, settings, count, limit),
        ]
    )
    cuts = torch.stack([settled.policy, clipped & settled.policy, capped & settled.policy]).sum(1)
    return terms, cuts


def _policy_values(
    now: HeadOutput, settled: Settled, batch: MicroBatch, settings: LearnerSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """`ω · balance · loss`, where the loss was clipped and where ω was cut, each `[T]`."""
    advantage = batch.advantage
    if settings.entropy_advantage:
        advantage = with_entropy(
            advantage, settled.entropy, settings.entropy_advantage, settings.entropy_advantage_bound
        )
    weighted = settings.proximal == "learner" and settings.importance_cap > 0.0
    proximal = settled.logprob if settings.proximal == "learner" else batch.behaviour
    values, clipped = surrogate(settings.loss, now.logprob, proximal, advantage, batch.row, settled.singled_out)
    weight = importance_weight(proximal, batch.behaviour, settings.importance_cap if weighted else 0.0)
    limit = math.log(settings.importance_cap) if weighted else math.inf
    return weight * batch.balance * values, clipped, proximal - batch.behaviour > limit


def reduced(
    values: Tensor, mask: Tensor, row: Tensor, settings: LearnerSettings, count: Denominators, limit: int
) -> Tensor:
    """The micro-batch's share of the aggregate over the tokens in `mask`, for the whole step.

    `token_mean` is Σ/N_A (DAPO); `sequence_mean` the mean over the samples of their tokens' means (GRPO, GSPO);
    `fixed_length` Σ over samples × `limit` (Dr.GRPO). Samples are those with a token in the policy term.
    """
    values = torch.where(mask, values, torch.zeros_like(values))
    # With every sample rejected each sum is 0.
    if settings.aggregation == "token_mean":
        return values.sum() / max(count.policy_tokens, 1)
    samples = max(count.policy_samples, 1)
    if settings.aggregation == "fixed_length":
        return values.sum() / (samples * limit)
    lengths = torch.bincount(row[mask], minlength=int(row.max()) + 1).clamp(min=1)
    return (values / lengths[row]).sum() / samples


def finite(totals: list[float], where: str) -> Terms:
    """The terms, once all micro-batches are done.

    Raises:
        NumericsError: one of them is not finite.
    """
    terms = Terms(policy=totals[0], bonus=totals[1], kl=totals[2])
    for field in fields(terms):
        value = getattr(terms, field.name)
        if not abs(value) < float("inf"):
            raise NumericsError(
                f"{where}: the {field.name} term of the objective is {value}; expected a finite number. The weights "
                "are unchanged; lower learner.lr, and look at the samples of the steps before"
            )
    return terms
