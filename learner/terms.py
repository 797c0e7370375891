"""J's terms on one micro-batch: per-token values, and the sums they are reduced to."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from entrostat.learner.batching import Denominators
from entrostat.learner.losses import importance_weight, kl_to_reference, smoothed_entropy, surrogate, with_entropy
from entrostat.learner.microbatch import Responses
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
    responses: Responses,
    shares: Tensor,
    objective: Objective,
    count: Denominators,
) -> tuple[Tensor, Tensor]:
    """What these tokens add to J's terms `[policy, bonus, kl]` and to `[tokens, clipped, capped]`.

    `reference [T]` is log π_ref, `shares [T]` as `shares_of` has them. Only GSPO's value of a token depends on others,
    those of its sample, which must all be there.
    """
    settings = objective.learner
    values, clipped, capped = _policy_values(now, settled, responses, settings)
    kl = torch.zeros_like(settled.logprob) if reference is None else kl_to_reference(now.logprob, reference)
    bonus = now.clamped_entropy
    if isinstance(objective.tokens, SmoothedTokens):
        bonus = smoothed_entropy(bonus, objective.usual_entropy, objective.tokens)
    bonus = torch.where(settled.bonus, responses.coefficient * bonus, torch.zeros_like(bonus))
    terms = torch.stack(
        [
            _added(values, shares),
            bonus.sum() / count.response_tokens,
            -settings.kl_coefficient * _added(kl, shares),
        ]
    )
    cuts = torch.stack([settled.policy, clipped & settled.policy, capped & settled.policy]).sum(1)
    return terms, cuts


def _policy_values(
    now: HeadOutput, settled: Settled, responses: Responses, settings: LearnerSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """`ω · balance · loss`, where the loss was clipped and where ω was cut, each `[T]`."""
    advantage = responses.advantage
    if settings.entropy_advantage:
        advantage = with_entropy(
            advantage, settled.entropy, settings.entropy_advantage, settings.entropy_advantage_bound
        )
    weighted = settings.proximal == "learner" and settings.importance_cap > 0.0
    proximal = settled.logprob if settings.proximal == "learner" else responses.behaviour
    values, clipped = surrogate(settings.loss, now.logprob, proximal, advantage, responses.row, settled.singled_out)
    weight = importance_weight(proximal, responses.behaviour, settings.importance_cap if weighted else 0.0)
    limit = math.log(settings.importance_cap) if weighted else math.inf
    return weight * responses.balance * values, clipped, proximal - responses.behaviour > limit


def shares_of(mask: Tensor, row: Tensor, settings: LearnerSettings, count: Denominators, limit: int) -> Tensor:
    """What each token's value counts for in the aggregate over the tokens in `mask`, for the whole step, `[T]`.

    `token_mean` is Σ/N_A (DAPO); `sequence_mean` the mean over the samples of their tokens' means (GRPO, GSPO);
    `fixed_length` Σ over samples × `limit` (Dr.GRPO). Samples are those with a token in the policy term, and each is
    here whole: `row [T]` says which a token is of.
    """
    # With every sample rejected each sum is 0.
    samples = max(count.policy_samples, 1)
    if settings.aggregation == "token_mean":
        divisor = torch.full_like(row, max(count.policy_tokens, 1))
    elif settings.aggregation == "fixed_length":
        divisor = torch.full_like(row, samples * limit)
    else:
        divisor = torch.bincount(row[mask], minlength=int(row.max()) + 1).clamp(min=1)[row] * samples
    return mask / divisor.double()


def _added(values: Tensor, shares: Tensor) -> Tensor:
    # A token that doesn't count may have any value, NaN too.
    return (torch.where(shares > 0, values, torch.zeros_like(values)) * shares.to(values.dtype)).sum()


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
