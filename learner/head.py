"""From hidden states to what the losses need, in chunks of rows, so that `T × V` logits are never held at once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from entrostat.learner.entropy import entropy_within, mass_outside
from entrostat.learner.token_sets import TokenSet, kept_tokens, nucleus_tokens, top_k_tokens
from entrostat.protocol.entropy_settings import (
    ClampedEntropy,
    EstimatorSettings,
    FullEntropy,
    NucleusEntropy,
    TopKEntropy,
)

# Up to so many logits (64 MiB in float32) the forward pass keeps them: computing them twice costs more than it saves.
KEPT_LOGITS = 2**24


@dataclass(frozen=True, kw_only=True)
class HeadOutput:
    """Per response token, `[T]`, at the temperature asked for.

    `clamped_entropy` is the entropy the bonus acts on, whatever the estimator, and carries a gradient; with `full` it
    is H itself and the clamped mass is 0. `entropy` and `clamped_mass` are measurements, without gradient.
    """

    logprob: Tensor  # nats, of the targets
    entropy: Tensor  # H, nats
    clamped_entropy: Tensor  # H̃, nats
    clamped_mass: Tensor  # probability of the tokens outside the estimator's set


def head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    estimator: EstimatorSettings,
    chunk_tokens: int,
) -> HeadOutput:
    """`hidden [T, D]`, `weight [V, D]`, `targets [T] int64` → what `softmax(hidden · weightᵀ / temperature)` is like.

    At most `chunk_tokens` rows of logits live at a time; the backward pass computes each chunk's logits again.
    """
    rows = hidden.shape[0]
    if rows <= chunk_tokens or rows * weight.shape[0] <= KEPT_LOGITS:
        return HeadOutput(**_rows(hidden, weight, targets, temperature, estimator))
    chunks = [
        checkpoint(_rows, some, weight, wanted, temperature, estimator, use_reentrant=False, preserve_rng_state=False)
        for some, wanted in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    ]
    return HeadOutput(**{name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]})


def _rows(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, estimator: EstimatorSettings
) -> dict[str, Tensor]:
    logits = linear(hidden, weight)
    # Half precision is too coarse for sums over a vocabulary.
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    logprob = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
    kept = _kept(logits, estimator)
    clamped = entropy_within(logits, kept)
    return {
        "logprob": logprob,
        "entropy": clamped.detach() if kept is None else entropy_within(logits.detach(), None),
        "clamped_entropy": clamped,
        "clamped_mass": mass_outside(logits, kept),
    }


def _kept(logits: Tensor, estimator: EstimatorSettings) -> TokenSet:
    """The tokens the bonus' entropy is taken over."""
    match estimator:
        case FullEntropy():
            return None
        case ClampedEntropy(drop_fraction=drop_fraction):
            return kept_tokens(logits, drop_fraction)
        case TopKEntropy(k=k):
            return top_k_tokens(logits, k)
        case NucleusEntropy(mass=mass):
            return nucleus_tokens(logits, mass)
