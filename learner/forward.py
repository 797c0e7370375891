"""What a policy says of micro-batches: the one way through the model, with a gradient or without."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from entrostat.learner.batching import Block, MicroBatch, Responses, Sample, blocks
from entrostat.learner.head import RowLoss, fused_head, fused_head_loss
from entrostat.learner.losses import kl_to_reference
from entrostat.learner.objective import Objective, chunk_tokens
from entrostat.learner.policy import Policy
from entrostat.learner.ranks import Ranks
from entrostat.learner.rows import HeadOutput
from entrostat.learner.shared_prompt import SharedPrompts
from entrostat.learner.shares import in_step, shares
from entrostat.protocol.learner_settings import Gspo


@dataclass(frozen=True, kw_only=True)
class PerToken:
    """What was measured before the first update, `[T]` on the CPU."""

    sample: Tensor  # int64, Sample.index
    logprob: Tensor  # log π of the drawn token, nats
    reference: Tensor  # log π_ref of it; log π itself without a reference
    drift: Tensor  # |log π − log μ|, nats
    drift_kl: Tensor  # k3 of KL(μ ‖ π), nats, float64
    entropy: Tensor  # H, nats
    clamped_entropy: Tensor  # H̃, nats
    clamped_mass: Tensor


def plan(
    policy: Policy, reference: Policy | None, samples: Sequence[Sample], objective: Objective
) -> list[list[Block]]:
    """The blocks that each rank computes the samples in, by the policy and by the reference alike."""
    shared = policy.shares_prompts and (reference is None or reference.shares_prompts)
    parts = [samples] if policy.ranks.alone else shares(samples, policy.ranks.count, shared=shared)
    return in_step([blocks(part, objective.learner.microbatch_tokens, shared=shared) for part in parts])


def prompts_of(policy: Policy, block: Block) -> SharedPrompts | None:
    """The block's prompts, computed; None where its rows are whole."""
    return policy.prompts(block.prompts) if block.prompts else None


def evaluate(policy: Policy, prompts: SharedPrompts | None, batch: MicroBatch, objective: Objective) -> HeadOutput:
    """Log-probs and entropies of the micro-batch's response tokens."""
    return fused_head(
        _states(policy, prompts, batch),
        policy.head_weight,
        batch.targets,
        temperature=objective.temperature,
        estimator=objective.estimator,
        chunk_tokens=_chunk(policy, objective),
    )


def learn(
    policy: Policy, prompts: SharedPrompts | None, batch: MicroBatch, objective: Objective, loss: RowLoss
) -> HeadOutput:
    """`evaluate`, and the backward pass of a loss that is summed over the response tokens.

    The loss is taken inside the head's chunks, unless a token's may depend on others of its sample.
    """
    if isinstance(objective.learner.loss, Gspo):
        now = evaluate(policy, prompts, batch, objective)
        loss(now, slice(None)).backward()
        return now
    value, now = fused_head_loss(
        _states(policy, prompts, batch),
        policy.head_weight,
        batch.targets,
        loss,
        temperature=objective.temperature,
        estimator=objective.estimator,
        chunk_tokens=_chunk(policy, objective),
    )
    value.backward()
    return now


def anchor(reference: Policy, prompts: SharedPrompts | None, batch: MicroBatch, objective: Objective) -> Tensor:
    """What the reference says of the drawn tokens: log π_ref, `[T]`, without gradient."""
    with torch.no_grad():
        said = fused_head(
            _states(reference, prompts, batch),
            reference.head_weight,
            batch.targets,
            temperature=objective.temperature,
            estimator=None,
            chunk_tokens=_chunk(reference, objective),
        )
    return said.logprob


def _chunk(policy: Policy, objective: Objective) -> int:
    return chunk_tokens(objective.learner, policy.head_weight.shape[0], on_gpu=policy.device.type == "cuda")


def _states(policy: Policy, prompts: SharedPrompts | None, batch: MicroBatch) -> Tensor:
    """`[T, D]`, those before the response tokens."""
    if prompts is None:
        hidden = policy.hidden(batch.tokens)
    else:
        hidden = policy.hidden_after(prompts, batch.prompt, batch.tokens)
    return hidden.flatten(0, 1).index_select(0, batch.positions)


def observed(now: HeadOutput, reference: Tensor | None, responses: Responses, *, counts: bool = True) -> PerToken:
    """The micro-batch's measurements, or none if nothing of it counts; `reference [T]` is log π_ref."""
    logprob = now.logprob.detach()
    found = PerToken(
        sample=responses.sample,
        logprob=logprob,
        reference=logprob if reference is None else reference,
        drift=(logprob - responses.behaviour).abs(),
        # In float64: a single token that μ found very unlikely must not overflow.
        drift_kl=kl_to_reference(responses.behaviour.double(), logprob.double()),
        entropy=now.entropy.detach(),
        clamped_entropy=now.clamped_entropy.detach(),
        clamped_mass=now.clamped_mass.detach(),
    )
    return found if counts else PerToken(**{f.name: getattr(found, f.name)[:0] for f in fields(PerToken)})


def joined(pieces: Sequence[PerToken], ranks: Ranks) -> PerToken:
    """The micro-batches one after another, those of all ranks."""
    columns = {f.name: torch.cat([getattr(piece, f.name) for piece in pieces]) for f in fields(PerToken)}
    return PerToken(**{name: ranks.joined(values).cpu() for name, values in columns.items()})


def number(dtype: torch.dtype) -> torch.dtype:
    """What per-token numbers of a policy in `dtype` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
