"""The gradient of one optimizer step, and everything that is measured on the way.

    J = (1/N_A) Σ m ω · PPO  +  (1/N_H) Σ m λ_q · H̃  −  β (1/N_A) Σ m · k3

summed over all response tokens of the order. m is 0 for rejected samples, which lose every term; N_A counts the tokens
with m = 1, N_H all of them, so that the entropy term stays in step with the controller's weights, whose token-weighted
mean over the order is at most 1. The entropy term carries no importance weight and no clip: the right weight would be a
ratio of whole prefixes. ∇ of the state distribution is left out too, as in the papers.

π_prox is the policy before the step: with one step per order the ratio is 1 and clipping never acts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from entrostat.learner.batching import (
    Block,
    Denominators,
    MicroBatch,
    Sample,
    blocks,
    collate,
    denominators,
    padding_share,
)
from entrostat.learner.head import HeadOutput, head
from entrostat.learner.losses import importance_weight, is_clipped, kl_to_reference, ppo_clip
from entrostat.learner.policy import Policy
from entrostat.learner.shared_prompt import SharedPrompts
from entrostat.protocol.entropy_settings import EstimatorSettings
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import LearnerSettings, PpoClip


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is maximised."""

    learner: LearnerSettings
    estimator: EstimatorSettings
    temperature: float  # the rollout's: log-probs and entropies are those of the distribution that was drawn from


@dataclass(frozen=True, kw_only=True)
class PerToken:
    """What was measured before the step, `[T]` on the CPU, the micro-batches one after another."""

    sample: Tensor  # int64, Sample.index
    counts: Tensor  # bool
    drift: Tensor  # |log π − log μ|, nats
    entropy: Tensor  # H, nats
    clamped_entropy: Tensor  # H̃, nats
    clamped_mass: Tensor
    kl: Tensor  # nats; 0 without a reference
    clipped: Tensor  # bool: the bound took the gradient away
    capped: Tensor  # bool: the importance weight was cut


@dataclass(frozen=True, kw_only=True)
class Terms:
    """J's terms, as added to it, over the whole order."""

    policy: float
    bonus: float
    kl: float

    @property
    def objective(self) -> float:
        """J."""
        return self.policy + self.bonus + self.kl


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `accumulate` found."""

    terms: Terms
    tokens: PerToken
    denominators: Denominators
    padding_share: float


def accumulate(
    policy: Policy, reference: Policy | None, samples: Sequence[Sample], objective: Objective, where: str
) -> Measured:
    """Adds the gradient of −J over all samples to the policy's parameters, micro-batch by micro-batch.

    Args:
        policy: the one to be updated.
        reference: where the KL term pulls to; needed when `kl_coefficient` is above 0.
        samples: those of the whole order.
        objective: what is maximised.
        where: names the step in errors.

    Raises:
        NumericsError: a term of J is not finite, or there is no response token.
    """
    count = denominators(samples)
    if not count.response_tokens:
        raise NumericsError(f"{where}: the order holds no response token, so there is nothing to learn from")
    shared = policy.shares_prompts and (reference is None or reference.shares_prompts)
    plan = blocks(samples, objective.learner.microbatch_tokens, shared=shared)
    totals = torch.zeros(3, dtype=torch.float64, device=policy.device)
    pieces: list[PerToken] = []
    for block in plan:
        ours, theirs = _prompts(policy, block), None if reference is None else _prompts(reference, block)
        for chosen in block.batches:
            batch = collate(chosen, block.prompts, device=policy.device, dtype=_number(policy.dtype))
            anchor = None if reference is None else _anchor(reference, theirs, batch, objective)
            terms, piece = _terms(_evaluate(policy, ours, batch, objective), anchor, batch, objective, count)
            (-terms.sum()).backward()
            totals += terms.detach()
            pieces.append(piece)
        if ours is not None:
            ours.backward()
    return Measured(
        terms=_finite(totals.tolist(), where),
        tokens=_joined(pieces),
        denominators=count,
        padding_share=padding_share(plan),
    )


def _terms(
    now: HeadOutput, anchor: Tensor | None, batch: MicroBatch, objective: Objective, count: Denominators
) -> tuple[Tensor, PerToken]:
    """The micro-batch's share of J's terms `[policy, bonus, kl]`, and its measurements; `anchor [T]` is log π_ref."""
    settings = objective.learner
    proximal = now.logprob.detach()
    low, high = (settings.loss.clip_low, settings.loss.clip_high) if isinstance(settings.loss, PpoClip) else (0.2, 0.2)
    weight = importance_weight(proximal, batch.behaviour, settings.importance_cap)
    surrogate = weight * ppo_clip(now.logprob, proximal, batch.advantage, low, high)
    kl = torch.zeros_like(proximal)
    if anchor is not None:
        kl = kl_to_reference(now.logprob, anchor)
    zero = torch.zeros_like(proximal)
    policy_tokens = max(count.policy_tokens, 1)  # with every sample rejected each sum is 0
    terms = torch.stack(
        [
            torch.where(batch.counts, surrogate, zero).sum() / policy_tokens,
            torch.where(batch.counts, batch.coefficient * now.clamped_entropy, zero).sum() / count.response_tokens,
            -settings.kl_coefficient * torch.where(batch.counts, kl, zero).sum() / policy_tokens,
        ]
    )
    return terms, PerToken(
        sample=batch.sample,
        counts=batch.counts,
        drift=(proximal - batch.behaviour).abs(),
        entropy=now.entropy.detach(),
        clamped_entropy=now.clamped_entropy.detach(),
        clamped_mass=now.clamped_mass.detach(),
        kl=kl.detach(),
        clipped=is_clipped(now.logprob, proximal, batch.advantage, low, high),
        capped=proximal - batch.behaviour > torch.tensor(settings.importance_cap).log().item(),
    )


def _prompts(policy: Policy, block: Block) -> SharedPrompts | None:
    return policy.prompts(block.prompts) if block.prompts else None


def _anchor(reference: Policy, prompts: SharedPrompts | None, batch: MicroBatch, objective: Objective) -> Tensor:
    with torch.no_grad():
        return _evaluate(reference, prompts, batch, objective).logprob


def _evaluate(policy: Policy, prompts: SharedPrompts | None, batch: MicroBatch, objective: Objective) -> HeadOutput:
    if prompts is None:
        hidden = policy.hidden(batch.tokens)
    else:
        hidden = policy.hidden_after(prompts, batch.prompt, batch.tokens)
    return head(
        hidden.flatten(0, 1).index_select(0, batch.positions),
        policy.head_weight,
        batch.targets,
        temperature=objective.temperature,
        estimator=objective.estimator,
        chunk_tokens=objective.learner.head_chunk_tokens,
    )


def _finite(totals: list[float], where: str) -> Terms:
    terms = Terms(policy=totals[0], bonus=totals[1], kl=totals[2])
    for field in fields(terms):
        value = getattr(terms, field.name)
        if not abs(value) < float("inf"):
            raise NumericsError(
                f"{where}: the {field.name} term of the objective is {value}; expected a finite number. The weights "
                "are unchanged; lower learner.lr, and look at the samples of the steps before"
            )
    return terms


def _joined(pieces: list[PerToken]) -> PerToken:
    columns = {f.name: torch.cat([getattr(piece, f.name) for piece in pieces]).cpu() for f in fields(PerToken)}
    return PerToken(**columns)


def _number(dtype: torch.dtype) -> torch.dtype:
    """What per-token numbers are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
