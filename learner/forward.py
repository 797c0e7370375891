"""What a policy says of micro-batches: the one way through the model, with a gradient or without."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from entrostat.learner.batching import Block, MicroBatch, Sample, blocks
from entrostat.learner.head import fused_head
from entrostat.learner.objective import Objective
from entrostat.learner.policy import Policy
from entrostat.learner.rows import HeadOutput
from entrostat.learner.shared_prompt import SharedPrompts


@dataclass(frozen=True, kw_only=True)
class PerToken:
    """What was measured before the first update, `[T]` on the CPU."""

    sample: Tensor  # int64, Sample.index
    logprob: Tensor  # log π of the drawn token, nats
    reference: Tensor  # log π_ref of it; log π itself without a reference
    drift: Tensor  # |log π − log μ|, nats
    entropy: Tensor  # H, nats
    clamped_entropy: Tensor  # H̃, nats
    clamped_mass: Tensor


def plan(policy: Policy, reference: Policy | None, samples: Sequence[Sample], objective: Objective) -> list[Block]:
    """The blocks that the samples are computed in, by the policy and by the reference alike."""
    shared = policy.shares_prompts and (reference is None or reference.shares_prompts)
    return blocks(samples, objective.learner.microbatch_tokens, shared=shared)


def prompts_of(policy: Policy, block: Block) -> SharedPrompts | None:
    """The block's prompts, computed; None where its rows are whole."""
    return policy.prompts(block.prompts) if block.prompts else None


def evaluate(policy: Policy, prompts: SharedPrompts | None, batch: MicroBatch, objective: Objective) -> HeadOutput:
    """Log-probs and entropies of the micro-batch's response tokens."""
    if prompts is None:
        hidden = policy.hidden(batch.tokens)
    else:
        hidden = policy.hidden_after(prompts, batch.prompt, batch.tokens)
    return fused_head(
        hidden.flatten(0, 1).index_select(0, batch.positions),
        policy.head_weight,
        batch.targets,
        temperature=objective.temperature,
        estimator=objective.estimator,
        chunk_tokens=objective.learner.head_chunk_tokens,
    )


def anchor(reference: Policy, prompts: SharedPrompts | None, batch: MicroBatch, objective: Objective) -> Tensor:
    """What the reference says of the drawn tokens: log π_ref, `[T]`, without gradient."""
    with torch.no_grad():
        return evaluate(reference, prompts, batch, objective).logprob


def observed(now: HeadOutput, reference: Tensor | None, batch: MicroBatch) -> PerToken:
    """The micro-batch's measurements; `reference [T]` is log π_ref."""
    logprob = now.logprob.detach()
    return PerToken(
        sample=batch.sample,
        logprob=logprob,
        reference=logprob if reference is None else reference,
        drift=(logprob - batch.behaviour).abs(),
        entropy=now.entropy.detach(),
        clamped_entropy=now.clamped_entropy.detach(),
        clamped_mass=now.clamped_mass.detach(),
    )


def joined(pieces: Sequence[PerToken]) -> PerToken:
    """The micro-batches one after another."""
    columns = {f.name: torch.cat([getattr(piece, f.name) for piece in pieces]).cpu() for f in fields(PerToken)}
    return PerToken(**columns)


def number(dtype: torch.dtype) -> torch.dtype:
    """What per-token numbers of a policy in `dtype` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
