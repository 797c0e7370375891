"""Entropy of a categorical distribution over the vocabulary, whole and clamped (AEnt, arXiv 2509.03493).

All functions take logits `[T, V]` that are already divided by the temperature and return nats `[T]`, in float32 for
logits of half precision and in the logits' own precision otherwise. A logit of −inf is a token that can't be drawn.
"""

import torch
from torch import Tensor


def full_entropy(logits: Tensor) -> Tensor:
    """`H = −Σ π log π` with `π = softmax(z)`: `[T, V] → [T]` nats."""
    return _entropy(_precise(logits))


def clamped_entropy(logits: Tensor, drop_fraction: float) -> Tensor:
    """`H̃ = logsumexp_A(z) − Σ_A π̃ z`: the entropy of π renormalised over the kept tokens A, `[T, V] → [T]` nats.

    The gradient is `−π̃_a (log π̃_a + H̃)` for kept tokens and exactly 0 for dropped ones; A itself has none.
    """
    return _entropy(clamp(logits, drop_fraction))


def clamp(logits: Tensor, drop_fraction: float) -> Tensor:
    """The logits with −inf in place of the dropped ones, `[T, V] → [T, V]`."""
    logits = _precise(logits)
    dropped = dropped_count(logits.shape[-1], drop_fraction)
    return logits.masked_fill(~kept_tokens(logits, dropped), -torch.inf) if dropped else logits


def clamped_mass(logits: Tensor, drop_fraction: float) -> Tensor:
    """`Σ π` over the dropped tokens, `[T, V] → [T]` in 0–1, without gradient; a tiny mass is not rounded away."""
    logits = _precise(logits).detach()
    dropped = dropped_count(logits.shape[-1], drop_fraction)
    if not dropped:
        return logits.new_zeros(logits.shape[:-1])
    outside = logits.masked_fill(kept_tokens(logits, dropped), -torch.inf)
    return (outside.logsumexp(-1) - logits.logsumexp(-1)).exp()


def dropped_count(vocabulary: int, drop_fraction: float) -> int:
    """`k = floor(p · V)`, at least one token being kept."""
    return min(int(drop_fraction * vocabulary), vocabulary - 1)


def kept_tokens(logits: Tensor, dropped: int) -> Tensor:
    """The set A: True for exactly `V − dropped` tokens of each row, `[T, V] → [T, V] bool`.

    The smallest logits are dropped, ranked in float32; among equals at the cut those with the highest ids go.
    """
    ranked = logits.detach().float()
    if not dropped:
        return torch.ones_like(ranked, dtype=torch.bool)
    kept = ranked.shape[-1] - dropped
    cut = ranked.kthvalue(dropped + 1, dim=-1, keepdim=True).values
    keep = ranked >= cut
    crowded = (keep.sum(-1) > kept).nonzero().squeeze(-1)
    if crowded.numel():
        # Only rows with several equal logits at the cut pay for the count along the vocabulary.
        keep[crowded] = _without_surplus(ranked[crowded], cut[crowded], kept)
    return keep


def _without_surplus(ranked: Tensor, cut: Tensor, kept: int) -> Tensor:
    """All above the cut, and of those equal to it the lowest ids until `kept` tokens are there: `[R, V] bool`."""
    above, equal = ranked > cut, ranked == cut
    room = kept - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def _entropy(logits: Tensor) -> Tensor:
    """`−Σ π log π`, `[T, V] → [T]` nats; −inf logits contribute nothing, neither to the value nor to the gradient."""
    logprobs = logits - logits.logsumexp(-1, keepdim=True)
    # 0 · (−inf) is NaN: a token without probability enters with a finite factor instead.
    finite = logprobs.masked_fill(logits == -torch.inf, 0.0)
    return -(logprobs.exp() * finite).sum(-1)


def _precise(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
