"""Dropout stays off in a policy that is trained: a step's log-probs must be those of the policy that is published.

Evaluation mode switches it off, whatever a family calls it and wherever it keeps it: in modules, in plain numbers, in
its configuration. transformers checkpoints gradients only in training mode, though. So the layers that are checkpointed
say that they train until they are computed, and everything inside them is evaluated. What a model of another make does
is not known: it has to prove itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from entrostat.learner.proof import STATES_TOLERANCE

REPEATS = 2  # in the mode that is trained in: what is drawn at random differs from itself too


def checkpointed(model: Any) -> None:
    """Switches gradient checkpointing on in a model in evaluation mode.

    Raises:
        ValueError: the model does not support it.
    """
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True  # asked when it is called …
        # … and no more when it is computed, again for the backward pass too, which may end in torch's own exception.
        layer.register_forward_pre_hook(_evaluated)
        layer.register_forward_hook(_called, always_call=True)
    if not layers:  # a model that brings its own code asks somewhere else
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


def randomness(states: Callable[[Tensor], Tensor], expected: Tensor, tokens: Tensor) -> float | None:
    """How far `states(tokens)` is from `expected`, those in evaluation mode, relative to their norm.

    None where they are the same but for rounding.
    """
    norm = expected.double().norm()
    with torch.no_grad():
        found = [states(tokens).double() for _ in range(REPEATS)]
    gap = max(float((one - expected.double()).norm() / norm) for one in found)
    return None if gap <= STATES_TOLERANCE[expected.dtype] else gap


def _evaluated(layer: Any, *_: object) -> None:
    layer.training = False


def _called(layer: Any, *_: object) -> None:
    layer.training = True
