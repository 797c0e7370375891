"""A weight and the adapter beside it as the one weight they are together, made where it is written to."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Merged:
    """`W + (α/r)·B·A`; what it is made of is never altered, so that no version inherits another's rounding."""

    base: Tensor  # W [out, in]
    down: Tensor  # A [r, in]
    up: Tensor  # B [out, r]
    scale: float  # α/r

    def made(self) -> Tensor:
        """`[out, in]` in the weight's dtype; half precision is added up in float32 and rounded once."""
        wide = torch.promote_types(self.base.dtype, torch.float32)
        with torch.no_grad():
            if wide == self.base.dtype:
                return torch.addmm(self.base, self.up, self.down, alpha=self.scale)
            product = self.up.to(wide) @ self.down.to(wide)
            return product.mul_(self.scale).add_(self.base).to(self.base.dtype)


Weight: TypeAlias = Tensor | Merged  # what a version is made of


def held(weight: Weight) -> Tensor:
    """The tensor whose shape, dtype and memory stand for it."""
    return weight.base if isinstance(weight, Merged) else weight


def made(weight: Weight) -> Tensor:
    """The tensor it is."""
    return weight.made() if isinstance(weight, Merged) else weight
