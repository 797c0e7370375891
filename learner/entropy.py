"""Entropy of a categorical distribution over the vocabulary: over all of it, or renormalised over a set of tokens.

All functions take logits `[T, V]` that are already divided by the temperature and return nats `[T]`, in float32 for
logits of half precision and in the logits' own precision otherwise. A logit of −inf is a token that can't be drawn.
A row that holds NaN or +inf, or no token that can be drawn, gives NaN. Over 150,000 tokens in float32 an entropy or a
mass is right to 1e-4 of itself. Logits of another shape are a `BadInput`, a setting out of range is a `ConfigError`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entrostat.learner.token_sets import FewTokens, TokenSet, kept_tokens, nucleus_tokens, top_k_tokens
from entrostat.protocol.errors import BadInput


def full_entropy(logits: Tensor) -> Tensor:
    """`H = −Σ π log π` with `π = softmax(z)`: `[T, V] → [T]` nats, gradient `∂H/∂z_a = −π_a (log π_a + H)`."""
    return entropy_within(_checked(logits), None)


def clamped_entropy(logits: Tensor, drop_fraction: float) -> Tensor:
    """`H̃ = logsumexp_A(z) − Σ_A π̃ z`: the entropy of π renormalised over the kept tokens A, `[T, V] → [T]` nats.

    A is what is left when the `drop_fraction` of the vocabulary with the smallest logits is dropped (AEnt, arXiv
    2509.03493). The gradient is `−π̃_a (log π̃_a + H̃)` for kept tokens and exactly 0 for dropped ones; A itself has none.
    """
    return entropy_within(logits, kept_tokens(_checked(logits), drop_fraction))


def top_k_entropy(logits: Tensor, k: int) -> Tensor:
    """`clamped_entropy` with the `k` most likely tokens for A."""
    return entropy_within(logits, top_k_tokens(_checked(logits), k))


def nucleus_entropy(logits: Tensor, mass: float) -> Tensor:
    """`clamped_entropy` with the fewest tokens that together have the probability `mass` for A (SIREN).

    How exactly `mass` is met stands at `nucleus_tokens`.
    """
    return entropy_within(logits, nucleus_tokens(_checked(logits), mass))


def clamped_mass(logits: Tensor, drop_fraction: float) -> Tensor:
    """`Σ π` over the tokens the clamp drops, as `mass_outside` has it."""
    return mass_outside(logits, kept_tokens(_checked(logits), drop_fraction))


def top_k_mass(logits: Tensor, k: int) -> Tensor:
    """`Σ π` over all but the `k` most likely tokens, as `mass_outside` has it."""
    return mass_outside(logits, top_k_tokens(_checked(logits), k))


def nucleus_mass(logits: Tensor, mass: float) -> Tensor:
    """`Σ π` outside the nucleus, as `mass_outside` has it: 1 − `mass` or less."""
    return mass_outside(logits, nucleus_tokens(_checked(logits), mass))


def entropy_within(logits: Tensor, kept: TokenSet) -> Tensor:
    """The entropy of π renormalised over a set that is already known: `[T, V] → [T]` nats."""
    logits = _precise(logits)
    match kept:
        case None:
            return _Entropy.apply(logits)
        case FewTokens(ids=ids, within=within):
            return _Entropy.apply(torch.where(within, logits.gather(-1, ids), -torch.inf))
        case _:
            return _Entropy.apply(torch.where(kept, logits, -torch.inf))


def mass_outside(logits: Tensor, kept: TokenSet) -> Tensor:
    """`Σ π` over what is not in the set, `[T, V] → [T]` in 0–1, without gradient; a tiny mass is not rounded away."""
    logits = _precise(logits.detach())
    match kept:
        case None:
            peak = logits.amax(-1)
            return peak - peak  # 0, or NaN where there is no distribution
        case FewTokens(ids=ids):
            return logits.softmax(-1).scatter_(-1, ids, 0.0).sum(-1)
        case _:
            return (logits.softmax(-1) * ~kept).sum(-1)  # 0 · NaN is NaN


class _Entropy(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed
    """`[T, V] → [T]` with the closed form of its gradient: two passes over the logits instead of a dozen."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * _finite(logprobs)).sum(-1)
        ctx.save_for_backward(logprobs, entropy)
        return entropy

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # torch is not typed
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        logprobs, entropy = ctx.saved_tensors
        return logprobs.exp() * (_finite(logprobs) + entropy[:, None]) * -gradient[:, None]


def _finite(logprobs: Tensor) -> Tensor:
    """A token without probability enters with a finite factor: 0 · (−inf) is NaN."""
    return logprobs.clamp(min=torch.finfo(logprobs.dtype).min)


def _precise(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _checked(logits: Tensor) -> Tensor:
    if logits.ndim != 2 or not logits.numel() or not logits.is_floating_point():
        raise BadInput(
            f"the logits are {logits.dtype} of shape {list(logits.shape)}; expected floating point, [T, V] with at "
            "least one row and one token"
        )
    return logits
