"""A pass over an order before its first update, and what is settled by it for each of the order's tokens.

Only some settings need one (objective.py). Without a survey the same facts are those of the gradient pass itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from entrostat.learner.batching import Denominators, Sample
from entrostat.learner.forward import PerToken, anchor, evaluate, joined, number, observed, plan, prompts_of
from entrostat.learner.losses import is_clipped, with_entropy
from entrostat.learner.microbatch import Responses, collate
from entrostat.learner.objective import Objective
from entrostat.learner.policy import Policy
from entrostat.learner.rows import HeadOutput
from entrostat.learner.selection import Mask, count_of, covariances, drawn, largest
from entrostat.protocol.entropy_settings import TopEntropyTokens
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import ClipCov, KlCov


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What no update of the order changes any more, `[T]`."""

    logprob: Tensor  # nats, of the policy before the first update; in the first step the gradient pass's own
    entropy: Tensor  # H of it, nats
    policy: Tensor  # bool: in the policy term
    bonus: Tensor  # bool: in the entropy term
    singled_out: Tensor  # bool: by Clip-Cov or KL-Cov


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A whole order before its first update; tensors are `[N]` on the CPU, its samples one after another."""

    samples: tuple[Sample, ...]  # rejected ones don't count
    measured: PerToken
    settled: Settled
    starts: tuple[int, ...]  # where each sample's tokens begin

    def settled_of(self, samples: Sequence[Sample], device: torch.device) -> Settled:
        """What is settled for the tokens of some of the samples, one after another."""
        starts = [self.starts[sample.index] for sample in samples]
        spans = [np.arange(start, start + s.response_length) for start, s in zip(starts, samples, strict=True)]
        places = torch.from_numpy(np.concatenate(spans))
        return Settled(**{f.name: getattr(self.settled, f.name)[places].to(device) for f in fields(Settled)})

    def denominators(self, samples: Sequence[Sample]) -> Denominators:
        """N_A counts the chosen tokens alone, as in the authors' program of 80/20 (arXiv 2506.01939)."""
        chosen = self.settled.policy.numpy()
        kept = [s for s in samples if s.counts and s.in_policy]
        counts = [int(chosen[self.starts[s.index] :][: s.response_length].sum()) for s in kept]
        return Denominators(
            policy_tokens=sum(counts),
            policy_samples=sum(count > 0 for count in counts),
            response_tokens=sum(sample.response_length for sample in samples),
        )


def settled_by(now: HeadOutput, responses: Responses) -> Settled:
    """What the gradient pass itself settles where there is one step and nothing is chosen from the whole order."""
    return Settled(
        logprob=now.logprob.detach(),
        entropy=now.entropy.detach(),
        policy=responses.policy,
        bonus=responses.counts,
        singled_out=torch.zeros_like(responses.counts),
    )


def survey(
    policy: Policy, reference: Policy | None, samples: Sequence[Sample], objective: Objective, seed: int, where: str
) -> Survey:
    """Measures all samples of an order, `samples[i].index == i`, and settles what its steps go by.

    Raises:
        NumericsError: a measurement is not finite, or there is no response token.
    """
    measured = _measured(policy, reference, samples, objective, where)
    kept = rejected(samples, measured, objective.learner.sequence_mask)
    starts = np.concatenate([[0], np.cumsum([sample.response_length for sample in kept])])
    settled = _settled(kept, measured, objective, seed)
    return Survey(samples=kept, measured=measured, settled=settled, starts=tuple(map(int, starts[:-1])))


def rejected(samples: Sequence[Sample], measured: PerToken, limit: float) -> tuple[Sample, ...]:
    """The samples, of which those whose mean |log π − log μ| exceeds `limit` nats no longer count; 0 rejects none."""
    if not limit:
        return tuple(samples)
    lengths = torch.bincount(measured.sample, minlength=len(samples)).clamp(min=1)
    drift = torch.zeros(len(samples), dtype=torch.float64).index_add_(0, measured.sample, measured.drift.double())
    far = (drift / lengths > limit).tolist()
    return tuple(replace(one, counts=one.counts and not off) for one, off in zip(samples, far, strict=True))


def _measured(
    policy: Policy, reference: Policy | None, samples: Sequence[Sample], objective: Objective, where: str
) -> PerToken:
    pieces = []
    with torch.no_grad():
        for block in plan(policy, reference, samples, objective)[policy.ranks.number]:
            ours, theirs = prompts_of(policy, block), None if reference is None else prompts_of(reference, block)
            for chosen, counts in block.rounds():
                batch = collate(chosen, block, device=policy.device, dtype=number(policy.dtype))
                pulled = None if reference is None else anchor(reference, theirs, batch, objective)
                now = evaluate(policy, ours, batch, objective)
                pieces.append(observed(now, pulled, batch.responses, counts=counts))
    if not pieces:
        raise NumericsError(f"{where}: the order holds no response token, so there is nothing to learn from")
    found = joined(pieces, policy.ranks)
    order = found.sample.argsort(stable=True)  # micro-batches go by length
    columns = {f.name: getattr(found, f.name)[order] for f in fields(PerToken)}
    for name, values in columns.items():
        if not bool(values.isfinite().all()):
            raise NumericsError(
                f"{where}: of {len(values)} tokens {int((~values.isfinite()).sum())} have a {name} that is not finite, "
                "measured before the update. The weights are unchanged; look at the samples of the steps before"
            )
    return PerToken(**columns)


def _settled(samples: Sequence[Sample], measured: PerToken, objective: Objective, seed: int) -> Settled:
    settings, entropy = objective.learner, measured.entropy.double().numpy()
    lengths = [sample.response_length for sample in samples]
    counts = np.repeat([sample.counts for sample in samples], lengths)
    policy = np.repeat([sample.counts and sample.in_policy for sample in samples], lengths)
    if settings.policy_tokens < 1.0:
        policy = largest(entropy, policy, settings.policy_tokens)
    bonus = counts
    if isinstance(objective.tokens, TopEntropyTokens):
        bonus = counts & largest(entropy, np.ones_like(counts), objective.tokens.share)
    return Settled(
        logprob=measured.logprob,
        entropy=measured.entropy,
        policy=torch.from_numpy(policy),
        bonus=torch.from_numpy(bonus),
        singled_out=torch.from_numpy(_singled_out(samples, measured, objective, policy, seed)),
    )


def _singled_out(samples: Sequence[Sample], measured: PerToken, objective: Objective, policy: Mask, seed: int) -> Mask:
    """The tokens of Clip-Cov or KL-Cov, among those in the policy term and for the whole order at once.

    Deviation from the authors' program, which chooses anew in each of its mini-batches: the covariances are those of
    the policy before the first update, and the share is rounded up.
    """
    settings, loss = objective.learner, objective.learner.loss
    if not isinstance(loss, ClipCov | KlCov):
        return np.zeros_like(policy)
    lengths = torch.tensor([sample.response_length for sample in samples])
    advantage = torch.tensor([sample.advantage for sample in samples], dtype=torch.float64).repeat_interleave(lengths)
    if settings.entropy_advantage:
        advantage = with_entropy(
            advantage, measured.entropy, settings.entropy_advantage, settings.entropy_advantage_bound
        )
    covariance = covariances(advantage.numpy(), measured.logprob.double().numpy(), policy)
    if isinstance(loss, KlCov):
        return largest(covariance, policy, loss.share)
    within = policy & (covariance > loss.covariance_low) & (covariance < loss.covariance_high)
    if settings.proximal == "behaviour":
        behaviour = torch.from_numpy(np.concatenate([sample.behaviour for sample in samples]))
        within &= ~is_clipped(measured.logprob, behaviour, advantage, loss.clip_low, loss.clip_high).numpy()
    return drawn(within, count_of(loss.share, int(policy.sum())), seed)
