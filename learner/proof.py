"""What a model has to prove before it is gone through in an unusual way: states and a gradient as of whole rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Largest difference to whole rows, relative to their norm: of hidden states, and of a gradient.
STATES_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 5e-2}
GRADIENT_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.25}
# What a model says that takes no cache, no positions or no mask from outside.
REFUSALS = (TypeError, ValueError, AttributeError, LookupError, RuntimeError)
UNPROVEN = "it has no norms or biases whose gradients could be compared"

Proof = tuple[Tensor, Tensor]  # states, and the gradient of a weighted sum of them


def compared_weights(decoder: Any) -> list[Tensor]:
    """Norms and biases of all layers: few numbers, and all of them depend on what flows back through the layers."""
    return [weight for weight in decoder.parameters() if weight.requires_grad and weight.ndim == 1]


def proof_of(states: Tensor, weights: Sequence[Tensor]) -> Proof:
    """The states, and the gradient of a weighted sum of them."""
    return states, flat(torch.autograd.grad(weighted(states), weights, materialize_grads=True))


def difference(found: Proof, expected: Proof) -> str | None:
    """What is too far from whole rows; None where nothing is."""
    gap, turn = (_gap(*pair) for pair in zip(found, expected, strict=True))
    if not gap <= STATES_TOLERANCE[found[0].dtype]:
        return f"its states differ by {gap:.2g} of their norm from those of whole rows"
    if not turn <= GRADIENT_TOLERANCE[found[0].dtype]:
        return f"its gradient differs by {turn:.2g} of its norm from that of whole rows"
    return None


def weighted(states: Tensor) -> Tensor:
    """A sum in which every state has another weight; no random state is touched."""
    weights = torch.arange(states.numel(), device=states.device).sin()
    return (states.flatten().to(weights.dtype) * weights).sum()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors one after another, `[n]`."""
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def _gap(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())
