"""Policy losses: per-token tensors in, per-token values out. The caller reduces, so that the denominator is visible."""

import torch
from torch import Tensor


def importance_weight(proximal: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """`ω = stopgrad(min(π_prox / μ, cap))` from log-probs `[T]`: truncated importance sampling, without gradient.

    μ is the probability the token was drawn with, as recorded; it is never computed again.
    """
    return (proximal.detach() - behaviour).exp().clamp(max=cap)


def ppo_clip(logprob: Tensor, proximal: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """`min(r A, clip(r, 1 − low, 1 + high) A)` with `r = π_θ / π_prox`, `[T]`: the objective, to be maximised.

    Source: PPO (arXiv 1707.06347), with separate bounds as in DAPO (arXiv 2503.14476). With one optimizer step per
    order π_prox is π_θ itself: r is 1, the gradient is `A ∇ log π`, and neither bound ever acts.
    """
    ratio = (logprob - proximal.detach()).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage)


def is_clipped(logprob: Tensor, proximal: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Where the bound took the gradient away, `[T] bool`."""
    ratio = (logprob - proximal).detach().exp()
    return ((ratio > 1.0 + high) & (advantage > 0)) | ((ratio < 1.0 - low) & (advantage < 0))


def kl_to_reference(logprob: Tensor, reference: Tensor) -> Tensor:
    """k3: `π_ref/π − log(π_ref/π) − 1` on the drawn tokens, `[T]` nats, never negative.

    Source: http://joschu.net/blog/kl-approx.html, as used by GRPO (arXiv 2402.03300). Unbiased for KL(π ‖ π_ref) on
    tokens drawn from π; its gradient is the one GRPO uses, not that of the KL.
    """
    gap = reference.detach() - logprob
    return gap.expm1() - gap
