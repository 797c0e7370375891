"""Policy losses: per-token tensors in, per-token values out. The caller reduces, so that the denominator is visible.

Every loss is an objective, to be maximised. π_prox is what the ratio `r = π_θ / π_prox` is taken against: the policy
before the order's first update, or with `proximal = "behaviour"` the one that drew the tokens. Where π_prox is π_θ
itself r is 1, no bound acts, and the gradient of each of them is `A ∇ log π`.
"""

import torch
from torch import Tensor

from entrostat.protocol.entropy_settings import SmoothedTokens
from entrostat.protocol.learner_settings import Cispo, ClipCov, Gspo, KlCov, PolicyLoss, PpoClip


def surrogate(
    settings: PolicyLoss, logprob: Tensor, proximal: Tensor, advantage: Tensor, row: Tensor, singled_out: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of the settings, `[T]`, and where a bound of its ratio acts, `[T] bool`.

    Args:
        settings: which loss.
        logprob: log π_θ, `[T]`, with a gradient.
        proximal: log π_prox, `[T]`.
        advantage: A, `[T]`.
        row: which sample a token belongs to, `[T] int64` from 0 on; every sample is there whole.
        singled_out: tokens chosen for their covariance, `[T] bool`; for the two losses that choose.
    """
    if isinstance(settings, Gspo):
        # The sequence's ratio stands in the place of each token's own.
        logprob, proximal = sequence_log_ratio(logprob, proximal, row), torch.zeros_like(proximal)
    if isinstance(settings, KlCov):
        return kl_cov(logprob, proximal, advantage, singled_out, settings.strength), torch.zeros_like(singled_out)
    low, high = settings.clip_low, settings.clip_high
    if isinstance(settings, Cispo):
        return cispo(logprob, proximal, advantage, low, high), is_outside(logprob, proximal, low, high)
    dual = settings.dual_clip if isinstance(settings, PpoClip) else 0.0
    clipped = is_clipped(logprob, proximal, advantage, low, high, dual)
    if isinstance(settings, ClipCov):
        return clip_cov(logprob, proximal, advantage, singled_out, low, high), clipped | singled_out
    return ppo_clip(logprob, proximal, advantage, low, high, dual), clipped


def importance_weight(proximal: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """`ω = stopgrad(min(π_prox / μ, cap))` from log-probs `[T]`: truncated importance sampling, without gradient.

    μ is the probability the token was drawn with, as recorded; it is never computed again. A cap of 0 leaves the
    weight out: 1 everywhere.
    """
    if not cap:
        return torch.ones_like(behaviour)
    return (proximal.detach() - behaviour).exp().clamp(max=cap)


def ppo_clip(
    logprob: Tensor, proximal: Tensor, advantage: Tensor, low: float, high: float, dual: float = 0.0
) -> Tensor:
    """`min(r A, clip(r, 1 − low, 1 + high) A)` with `r = π_θ / π_prox`, `[T]`: the objective, to be maximised.

    With a `dual` clip c it is `max(that, c A)` where A < 0: a token that the policy has come to like, and should not,
    pushes with a ratio of c at most. 0 switches it off.

    Source: PPO (arXiv 1707.06347), with separate bounds as in DAPO (arXiv 2503.14476); dual clip: arXiv 1912.09729.
    With one optimizer step per order π_prox is π_θ itself: r is 1, the gradient is `A ∇ log π`, and neither bound
    ever acts.
    """
    ratio = (logprob - proximal.detach()).exp()
    value = torch.minimum(ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage)
    return torch.where(advantage < 0, torch.maximum(value, dual * advantage), value) if dual else value


def is_clipped(
    logprob: Tensor, proximal: Tensor, advantage: Tensor, low: float, high: float, dual: float = 0.0
) -> Tensor:
    """Where a bound of `ppo_clip` took the gradient away, `[T] bool`."""
    ratio = (logprob - proximal).detach().exp()
    clipped = ((ratio > 1.0 + high) & (advantage > 0)) | ((ratio < 1.0 - low) & (advantage < 0))
    return clipped | ((ratio > dual) & (advantage < 0)) if dual else clipped


def sequence_log_ratio(logprob: Tensor, proximal: Tensor, row: Tensor) -> Tensor:
    """`log s_it = stopgrad(log s_i) + log π_θ − stopgrad(log π_θ)`, `s_i = (π_θ(y_i) / π_prox(y_i))^(1/|y_i|)`, `[T]`.

    The value is the sequence's ratio, the geometric mean of its tokens' ratios, at each of its tokens; the gradient is
    the token's own. Source: the token form of GSPO (arXiv 2507.18071, GSPO-token), whose gradient, summed over a
    sequence whose tokens share one advantage, is |y_i| times that of the sequence form: the two are the same under
    the aggregation `sequence_mean`, which is the paper's. Deviation: the importance weight ω that stands beside it is
    each token's own π_prox/μ (`importance_weight`), not the sequence's; the paper, whose π_prox drew the samples, has
    none. An `importance_cap` of 0, or `proximal = "behaviour"`, leaves ω out.
    """
    own = logprob.detach()
    gap = own - proximal.detach()
    rows = int(row.max()) + 1 if row.numel() else 0
    lengths = torch.bincount(row, minlength=rows)
    mean = gap.new_zeros(rows).index_add_(0, row, gap) / lengths
    return mean[row] + (logprob - own)


def cispo(logprob: Tensor, proximal: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """`stopgrad(clip(r, 1 − low, 1 + high)) · A · log π_θ`, `[T]`: the ratio is clipped as a weight.

    No token loses its gradient. Source: CISPO (arXiv 2506.13585), which leaves the lower bound out (low = 1).
    """
    ratio = (logprob.detach() - proximal.detach()).exp()
    return ratio.clamp(1.0 - low, 1.0 + high) * advantage * logprob


def is_outside(logprob: Tensor, proximal: Tensor, low: float, high: float) -> Tensor:
    """Where `cispo` cut its weight, `[T] bool`."""
    ratio = (logprob - proximal).detach().exp()
    return (ratio > 1.0 + high) | (ratio < 1.0 - low)


def clip_cov(
    logprob: Tensor, proximal: Tensor, advantage: Tensor, singled_out: Tensor, low: float, high: float
) -> Tensor:
    """`ppo_clip`, and 0 without gradient at the tokens `singled_out`, `[T]`.

    Source: Clip-Cov (arXiv 2505.22617); selection.py says which tokens those are.
    """
    value = ppo_clip(logprob, proximal, advantage, low, high)
    return torch.where(singled_out, torch.zeros_like(value), value)


def kl_cov(logprob: Tensor, proximal: Tensor, advantage: Tensor, singled_out: Tensor, strength: float) -> Tensor:
    """`r A − β |log π_θ − log π_prox|`, `[T]`, with β = `strength` at the tokens `singled_out` and 0 elsewhere.

    Source: KL-Cov (arXiv 2505.22617). Where π_prox is π_θ the penalty is 0 and its gradient is taken as 0: with one
    step per order the loss is the plain ratio.
    """
    gap = logprob - proximal.detach()
    value = gap.exp() * advantage
    return torch.where(singled_out, value - strength * gap.abs(), value)


def with_entropy(advantage: Tensor, entropy: Tensor, strength: float, bound: float) -> Tensor:
    """`A + min(α · stopgrad(H), |A| / κ)`, `[T]`, with α = `strength` and κ = `bound`; an advantage of 0 stays 0.

    Source: arXiv 2506.14758. With κ > 1 no advantage changes its sign. H is that of the policy before the order's first
    update, and so the same at each of the order's steps.
    """
    return advantage + torch.minimum(strength * entropy.detach(), advantage.abs() / bound)


def smoothed_entropy(entropy: Tensor, usual: float, settings: SmoothedTokens) -> Tensor:
    """`H_t − penalty · 1[H_t outside [low, high] · usual]`, `[T]` nats; without a usual entropy (NaN) plainly H_t.

    Source: EPO (arXiv 2509.22576). The indicator has no gradient, in the paper's formula and in its authors' program:
    the penalty lowers the reported bonus and does not move the policy. Deviations: the usual entropy is the mean of all
    earlier orders, not one per turn of a dialogue, and the penalty's weight does not change over the run.
    """
    if usual != usual:
        return entropy
    now = entropy.detach()
    outside = (now < settings.low * usual) | (now > settings.high * usual)
    return torch.where(outside, entropy - settings.penalty, entropy)


def kl_to_reference(logprob: Tensor, reference: Tensor) -> Tensor:
    """k3: `π_ref/π − log(π_ref/π) − 1` on the drawn tokens, `[T]` nats, never negative.

    Source: http://joschu.net/blog/kl-approx.html, as used by GRPO (arXiv 2402.03300). Unbiased for KL(π ‖ π_ref) on
    tokens drawn from π; its gradient is the one GRPO uses, not that of the KL.
    """
    gap = reference.detach() - logprob
    return gap.expm1() - gap
