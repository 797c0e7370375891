"""Streaming mean and variance as an immutable value, so that actors, shards and tests share one path.

Chan, Golub, LeVeque: *Updating formulae and a pairwise algorithm for computing sample variances* (1979).
"""

import math
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray


class Moments(msgspec.Struct, frozen=True, kw_only=True):
    """Count, mean and sum of squared deviations of a stream of numbers (in the stream's own unit)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of (x - mean)²

    @property
    def variance(self) -> float:
        """The population variance; NaN of nothing."""
        return self.squares / self.count if self.count else math.nan

    def observe(self, values: NDArray[Any]) -> Self:
        """These moments and those of `values` (any shape) together."""
        if values.size == 0:
            return self
        mean = float(np.mean(values, dtype=np.float64))
        squares = float(np.sum((values.astype(np.float64) - mean) ** 2))
        return self.merge(type(self)(count=int(values.size), mean=mean, squares=squares))

    def merge(self, other: Self) -> Self:
        """The moments of both streams together; independent of order but for rounding."""
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        return type(self)(
            count=count,
            mean=self.mean + gap * other.count / count,
            squares=self.squares + other.squares + gap * gap * self.count * other.count / count,
        )
