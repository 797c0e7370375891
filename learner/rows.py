"""What a chunk of logits says, and its gradient: the one seam between the head and where it is computed.

`rows_torch.py` does it in plain torch, `rows_cuda.py` with Triton kernels; both see a chunk `[C, V]` at a time, read it
as little as they can, and leave its gradient in its place.
"""

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from entrostat.protocol.entropy_settings import (
    ClampedEntropy,
    EstimatorSettings,
    FullEntropy,
    NucleusEntropy,
    TopKEntropy,
)
from entrostat.protocol.errors import ConfigError

# What is measured of a row: the estimator's entropy and all that belongs to it, or with None the drawn token alone.
Estimator = EstimatorSettings | None


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadOutput:
    """Per response token, `[T]`, at the temperature asked for.

    `clamped_entropy` is the entropy the bonus acts on, whatever the estimator, and carries a gradient; with `full` it
    is H itself and the clamped mass is 0. `entropy` and `clamped_mass` are measurements, without gradient. Without an
    estimator the three are NaN.
    """

    logprob: Tensor  # nats, of the targets
    entropy: Tensor  # H, nats
    clamped_entropy: Tensor  # H̃, nats
    clamped_mass: Tensor  # probability of the tokens outside the estimator's set


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """All that the gradient of a chunk needs besides its logits; `[C]` each.

    A set of kept tokens is always the head of a ranking, the largest logits first and among equals the lowest ids: it
    is told by its smallest logit, and by the last id that is kept among those equal to it.
    """

    log_total: Tensor  # ln Σ exp z
    log_kept: Tensor  # the same over the kept tokens
    kept_entropy: Tensor  # H̃, nats
    cut: Tensor  # the smallest kept logit; −inf: all are kept
    last: Tensor  # int64: of the tokens whose logit is the cut, the last that is kept


class Kernels(Protocol):
    """How a chunk's rows are measured, and how their gradient is made; logits are float32 or float64."""

    def measure(self, logits: Tensor, targets: Tensor, estimator: Estimator) -> tuple[HeadOutput, Rows]:
        """`[C, V]` logits, at their temperature, which stay as they are; `targets [C] int64`."""
        ...

    def gradient_(self, logits: Tensor, targets: Tensor, rows: Rows, logprob: Tensor, entropy: Tensor) -> None:
        """Puts `∂/∂z` of `Σ logprob · log π_target + Σ entropy · H̃` in the logits' place; the weights are `[C]`.

        `∂/∂z_a = g (1[a = target] − π_a) − h 1[a ∈ A] π̃_a (log π̃_a + H̃)`, with g and h the weights: a dropped token
        has exactly nothing from the entropy. A weight h of 0 in all rows costs nothing along the vocabulary.
        """
        ...


def dropped_tokens(estimator: Estimator, vocabulary: int) -> int:
    """How many of the smallest logits are outside the set, where it is known beforehand: not for a nucleus.

    Raises:
        ConfigError: a setting is out of range.
    """
    match estimator:
        case ClampedEntropy(drop_fraction=fraction):
            if not 0 <= fraction < 1:
                raise ConfigError(f"drop_fraction is {fraction}; expected at least 0 and less than 1")
            return min(int(fraction * vocabulary), vocabulary - 1)
        case TopKEntropy(k=k):
            if k < 1:
                raise ConfigError(f"k is {k}; expected a whole number, at least 1")
            return max(vocabulary - k, 0)
        case NucleusEntropy(mass=mass):
            if not 0 < mass <= 1:
                raise ConfigError(f"mass is {mass}; expected more than 0 and at most 1")
            return 0
        case FullEntropy() | None:
            return 0


def joined(outputs: list[HeadOutput]) -> HeadOutput:
    """The chunks one after another."""
    return HeadOutput(**{f.name: torch.cat([getattr(one, f.name) for one in outputs]) for f in fields(HeadOutput)})
