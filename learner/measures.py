"""From per-token measurements to the step's report and to what people read about single samples."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entrostat.learner.update import Measured, PerToken
from entrostat.protocol.messages import PhaseSeconds, PolicyVersion, StepReport


@dataclass(frozen=True, kw_only=True)
class PerSample:
    """Means over the response tokens of each sample of the order, `[samples]`; NaN where it has none."""

    entropy: NDArray[np.float64]  # H, nats
    drift: NDArray[np.float64]  # |log π − log μ|, nats


def step_report(
    measured: Measured,
    *,
    before: PolicyVersion,
    after: PolicyVersion,
    gradient_norm: float,
    learning_rate: float,
    phases: PhaseSeconds,
) -> StepReport:
    """One optimizer step in numbers; entropies and drift over all response tokens, clipping over those that count."""
    tokens, terms, counts = measured.tokens, measured.terms, measured.tokens.counts
    return StepReport(
        measured=before,
        version=after,
        entropy=_mean(tokens.entropy),
        clamped_entropy=_mean(tokens.clamped_entropy),
        sampled_entropy=0.0,
        clamped_mass=_mean(tokens.clamped_mass),
        levels=(),
        ages=(),
        response_tokens=measured.denominators.response_tokens,
        policy_tokens=measured.denominators.policy_tokens,
        loss=-terms.objective,
        policy_loss=-terms.policy,
        entropy_bonus=terms.bonus,
        kl_nats=_mean(tokens.kl[counts]),
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        clip_share=_mean(tokens.clipped[counts]),
        truncated_weight_share=_mean(tokens.capped[counts]),
        masked_share=0.0,
        optimizer_steps=1,
        balance=None,
        drift_mean=_mean(tokens.drift),
        drift_max=float(tokens.drift.max()),
        padding_share=measured.padding_share,
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


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else 0.0
