"""Entropy of a categorical distribution over the vocabulary, whole and clamped (AEnt, arXiv 2509.03493).

All functions take logits `[T, V]` that are already divided by the temperature and return nats `[T]`, in float32 for
logits of half precision and in the logits' own precision otherwise. A logit of −inf is a token that can't be drawn.
"""

from typing import Any

import torch
from torch import Tensor


def full_entropy(logits: Tensor) -> Tensor:
    """`H = −Σ π log π` with `π = softmax(z)`: `[T, V] → [T]` nats, gradient `∂H/∂z_a = −π_a (log π_a + H)`."""
    return _Entropy.apply(_precise(logits))


def clamped_entropy(logits: Tensor, drop_fraction: float) -> Tensor:
    """`H̃ = logsumexp_A(z) − Σ_A π̃ z`: the entropy of π renormalised over the kept tokens A, `[T, V] → [T]` nats.

    The gradient is `−π̃_a (log π̃_a + H̃)` for kept tokens and exactly 0 for dropped ones; A itself has none.
    """
    return entropy_within(logits, kept_tokens(logits, drop_fraction))


def clamped_mass(logits: Tensor, drop_fraction: float) -> Tensor:
    """`Σ π` over the dropped tokens, `[T, V] → [T]` in 0–1, without gradient; a tiny mass is not rounded away."""
    return mass_outside(logits, kept_tokens(logits, drop_fraction))


def kept_tokens(logits: Tensor, drop_fraction: float) -> Tensor | None:
    """The set A as `[T, V] bool`, or None where nothing is dropped.

    The `k = floor(p · V)` smallest logits are dropped (at least one token is kept), ranked in float32; among equals at
    the cut those with the highest ids go, so that exactly V − k are kept.
    """
    vocabulary = logits.shape[-1]
    dropped = min(int(drop_fraction * vocabulary), vocabulary - 1)
    if not dropped:
        return None
    ranked = logits.detach().float()
    kept = vocabulary - dropped
    cut = ranked.kthvalue(dropped + 1, dim=-1, keepdim=True).values
    keep = ~(ranked < cut)  # NaN is kept: it must show in the result
    crowded = (keep.sum(-1) > kept).nonzero().squeeze(-1)
    if crowded.numel():
        # Only rows with several equal logits at the cut pay for the count along the vocabulary.
        keep[crowded] = _without_surplus(ranked[crowded], cut[crowded], kept)
    return keep


def entropy_within(logits: Tensor, keep: Tensor | None) -> Tensor:
    """`clamped_entropy` for a set A that is already known."""
    logits = _precise(logits)
    return _Entropy.apply(logits if keep is None else torch.where(keep, logits, -torch.inf))


def mass_outside(logits: Tensor, keep: Tensor | None) -> Tensor:
    """`clamped_mass` for a set A that is already known."""
    logits = _precise(logits.detach())
    if keep is None:
        return logits.new_zeros(logits.shape[:-1])
    return torch.where(keep, 0.0, logits.softmax(-1)).sum(-1)


def _without_surplus(ranked: Tensor, cut: Tensor, kept: int) -> Tensor:
    """All above the cut, and of those equal to it the lowest ids until `kept` tokens are there: `[R, V] bool`."""
    above, equal = ~(ranked <= cut), ranked == cut
    room = kept - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


class _Entropy(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed
    """`[T, V] → [T]` with the closed form of its gradient: two passes over the logits instead of a dozen."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * _finite(logprobs)).sum(-1)
        ctx.save_for_backward(logprobs, entropy)
        return entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        logprobs, entropy = ctx.saved_tensors
        return logprobs.exp() * (_finite(logprobs) + entropy[:, None]) * -gradient[:, None]


def _finite(logprobs: Tensor) -> Tensor:
    """A token without probability enters with a finite factor: 0 · (−inf) is NaN."""
    return logprobs.clamp(min=torch.finfo(logprobs.dtype).min)


def _precise(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
