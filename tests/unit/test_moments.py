"""Streamed moments are those of the whole."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from entrostat.protocol.moments import Moments

numbers = st.lists(st.floats(-1e3, 1e3), max_size=30)


@given(numbers, numbers)
def test_merging_two_streams_gives_the_moments_of_both(first: list[float], second: list[float]) -> None:
    merged = Moments().observe(np.array(first)).merge(Moments().observe(np.array(second)))
    together = np.array(first + second)
    assert merged.count == together.size
    if together.size:
        assert math.isclose(merged.mean, float(together.mean()), abs_tol=1e-9)
        assert math.isclose(merged.variance, float(together.var()), rel_tol=1e-9, abs_tol=1e-6)


def test_nothing_has_no_variance() -> None:
    assert math.isnan(Moments().variance)
    assert Moments().observe(np.array([])) == Moments()
