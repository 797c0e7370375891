"""From per-token measurements to the step's report and to what people read about single samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entrostat.learner.forward import PerToken
from entrostat.learner.losses import kl_to_reference
from entrostat.learner.steps import Step, Taken
from entrostat.protocol.messages import (
    BalanceReport,
    FreshDrift,
    Group,
    LevelEntropy,
    PhaseSeconds,
    PolicyVersion,
    StepReport,
    TrainOrder,
)


@dataclass(frozen=True, kw_only=True)
class PerSample:
    """Means over the response tokens of each sample of the order, `[samples]`; NaN where it has none."""

    entropy: NDArray[np.float64]  # H, nats
    drift: NDArray[np.float64]  # |log π − log μ|, nats


def step_report(
    taken: Taken,
    order: TrainOrder,
    groups: Sequence[Group],
    *,
    measured: PolicyVersion,
    after: PolicyVersion,
    learning_rate: float,
    phases: PhaseSeconds,
) -> StepReport:
    """An order's training in numbers.

    Entropies and drift are means over all response tokens before the first update, the KL over those of the samples in
    the policy term. Of several optimizer steps losses, norms and padding are means, shares are over all their tokens,
    and `policy_tokens` counts each token once.
    """
    tokens, steps = taken.tokens, taken.steps
    in_policy = _per_token(tokens, [sample.counts and sample.in_policy for sample in taken.samples])
    cut = [step.measured.cuts for step in steps]
    counted = max(sum(cuts.tokens for cuts in cut), 1)
    return StepReport(
        measured=measured,
        version=after,
        entropy=_mean(tokens.entropy),
        clamped_entropy=_mean(tokens.clamped_entropy),
        sampled_entropy=-_mean(tokens.logprob),
        clamped_mass=_mean(tokens.clamped_mass),
        levels=_levels(taken, order),
        ages=_ages(taken, order, groups),
        response_tokens=len(tokens.entropy),
        policy_tokens=_policy_tokens(taken),
        loss=_over(steps, lambda step: -step.measured.terms.objective),
        policy_loss=_over(steps, lambda step: -step.measured.terms.policy),
        entropy_bonus=_over(steps, lambda step: step.measured.terms.bonus),
        kl_nats=_mean(kl_to_reference(tokens.logprob, tokens.reference)[in_policy]),
        gradient_norm=_over(steps, lambda step: step.gradient_norm),
        learning_rate=learning_rate,
        clip_share=sum(cuts.clipped for cuts in cut) / counted,
        truncated_weight_share=sum(cuts.capped for cuts in cut) / counted,
        masked_share=fmean(not sample.counts for sample in taken.samples),
        optimizer_steps=len(steps),
        balance=_balance(steps),
        drift_mean=_mean(tokens.drift),
        drift_max=float(tokens.drift.max()),
        drift_kl=_mean(tokens.drift_kl),
        fresh=_fresh(taken, order, groups),
        padding_share=_over(steps, lambda step: step.measured.padding_share),
        phases=phases,
    )


def per_sample(tokens: PerToken, samples: int) -> PerSample:
    """Token means of each of the order's `samples` samples."""
    lengths = torch.bincount(tokens.sample, minlength=samples).double()

    def mean(values: Tensor) -> NDArray[np.float64]:
        sums = torch.zeros(samples, dtype=torch.float64).index_add_(0, tokens.sample, values.double())
        means: NDArray[np.float64] = (sums / lengths).numpy()
        return means

    return PerSample(entropy=mean(tokens.entropy), drift=mean(tokens.drift))


def _levels(taken: Taken, order: TrainOrder) -> tuple[LevelEntropy, ...]:
    """Every level with response tokens, in alphabetical order."""
    tokens, of_sample = taken.tokens, [order.groups[sample.group].level for sample in taken.samples]
    found = []
    for level in sorted(set(of_sample)):
        here = _per_token(tokens, [one == level for one in of_sample])
        if bool(here.any()):
            found.append(
                LevelEntropy(
                    level=level,
                    tokens=int(here.sum()),
                    entropy=_mean(tokens.entropy[here]),
                    clamped_entropy=_mean(tokens.clamped_entropy[here]),
                    sampled_entropy=-_mean(tokens.logprob[here]),
                )
            )
    return tuple(found)


def _ages(taken: Taken, order: TrainOrder, groups: Sequence[Group]) -> tuple[float, ...]:
    """H̃ by age of the states in versions, from 0 to the oldest; NaN for an age without response tokens."""
    ages = [max(order.version.step - group.rollout.started.step, 0) for group in groups]
    of_token = torch.tensor([ages[sample.group] for sample in taken.samples])[taken.tokens.sample]
    entropies = (taken.tokens.clamped_entropy[of_token == age] for age in range(max(ages) + 1))
    return tuple(_mean(values) if values.numel() else nan for values in entropies)


def _fresh(taken: Taken, order: TrainOrder, groups: Sequence[Group]) -> FreshDrift | None:
    """Drift where there can be none but the engine's: of samples that the order's own version drew alone."""
    here = _per_token(taken.tokens, [own for group in groups for own in _drawn_by(order.version, group)])
    if not bool(here.any()):
        return None
    drift = taken.tokens.drift[here]
    return FreshDrift(
        tokens=len(drift), mean=_mean(drift), max=float(drift.max()), kl=_mean(taken.tokens.drift_kl[here])
    )


def _drawn_by(version: PolicyVersion, group: Group) -> list[bool]:
    """Of each sample: whether every span of it is that version's."""
    own = [True] * len(group.rollout.samples.lengths)
    for sample, _, branch, step in group.rollout.samples.spans.tolist():
        own[sample] = own[sample] and (branch, step) == (version.branch, version.step)
    return own


def _policy_tokens(taken: Taken) -> int:
    """Each token once, however often the order was gone through."""
    steps = taken.steps
    seen = sum(step.measured.denominators.response_tokens for step in steps)
    chosen = sum(step.measured.denominators.policy_tokens for step in steps)
    return chosen // (seen // len(taken.tokens.entropy))


def _balance(steps: Sequence[Step]) -> BalanceReport | None:
    """The means over the steps that have one: of several orders' the ratio of sums is what calibration takes."""
    found = [step.balance for step in steps if step.balance is not None]
    if not found:
        return None
    return BalanceReport(
        policy_push=fmean(one.policy_push for one in found), bonus_push=fmean(one.bonus_push for one in found)
    )


def _per_token(tokens: PerToken, of_sample: Sequence[bool]) -> Tensor:
    return torch.tensor(of_sample)[tokens.sample]


def _over(steps: Sequence[Step], value: Callable[[Step], float]) -> float:
    return fmean(map(value, steps))


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else 0.0
