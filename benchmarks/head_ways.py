"""Ways to get log-probs, entropies and their gradients out of a language model's head: ours, and what others do."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from entrostat.learner.head import fused_head, fused_head_loss
from entrostat.learner.rows import Estimator, HeadOutput
from entrostat.protocol.entropy_settings import ClampedEntropy

DROP_FRACTION = 0.25
CHUNK_TOKENS = 128
CLAMPED = ClampedEntropy(drop_fraction=DROP_FRACTION)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # hidden [T, D], weight [V, D], targets [T], weights of tokens [T]
Way = Callable[[Tensor, Tensor, Tensor, Tensor], Any]


def inputs(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> Inputs:
    """As a model's: logits of about two nats around their mean."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=random).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=random) * (2.0 / width**0.5)).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=random)
    return hidden, weight, targets, torch.randn(tokens, generator=random)


def _inside(estimator: Estimator, chunk: int) -> Way:
    def way(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> None:
        def loss(now: HeadOutput, rows: slice) -> Tensor:
            value = weights[rows] * now.logprob
            return value if estimator is None else value + 0.1 * now.clamped_entropy

        total, _ = fused_head_loss(
            hidden, weight, targets, loss, temperature=1.0, estimator=estimator, chunk_tokens=chunk
        )
        total.backward()

    return way


def _plain(estimator: Estimator, chunk: int) -> Way:
    def way(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> None:
        now = fused_head(hidden, weight, targets, temperature=1.0, estimator=estimator, chunk_tokens=chunk)
        value = weights * now.logprob
        (value if estimator is None else value + 0.1 * now.clamped_entropy).sum().backward()

    return way


def unfused(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> None:
    """All logits at once, the kept tokens by `topk`, autograd."""
    logits = linear(hidden, weight).float()
    logprob = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    kept = logits.topk(logits.shape[-1] - int(DROP_FRACTION * logits.shape[-1]), -1, sorted=False).values
    within = kept.log_softmax(-1)
    (weights * logprob - 0.1 * (within.exp() * within).sum(-1)).sum().backward()


def _products(chunk: int) -> Way:
    """The floor: the three products alone, one forward and two backward, in the same chunks."""

    def way(hidden: Tensor, weight: Tensor, _targets: Tensor, _weights: Tensor) -> None:
        with torch.no_grad():
            hidden.grad, weight.grad = torch.empty_like(hidden), torch.zeros_like(weight)
            for start in range(0, len(hidden), chunk):
                some = hidden[start : start + chunk]
                logits = some @ weight.t()
                torch.mm(logits, weight, out=hidden.grad[start : start + chunk])
                weight.grad.addmm_(logits.t(), some)

    return way


def ways(chunk: int) -> dict[str, Way]:
    """All of them, in chunks of so many tokens."""
    return {
        "inside, clamped": _inside(CLAMPED, chunk),
        "inside, log-prob only": _inside(None, chunk),
        "plain, clamped": _plain(CLAMPED, chunk),
        "plain, log-prob only": _plain(None, chunk),
        "unfused": unfused,
        "three products": _products(chunk),
    }


WAYS = ways(CHUNK_TOKENS)
