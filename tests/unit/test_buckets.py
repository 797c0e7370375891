"""Buckets: what is done to a flat buffer piece by piece is done to all of it."""

from itertools import pairwise

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.protocol import buckets


@pytest.fixture(autouse=True)
def short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 64)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, [(0, 0)]), (64, [(0, 64)]), (65, [(0, 64), (64, 65)]), (130, [(0, 64), (64, 128), (128, 130)])],
)
def test_no_piece_is_longer_than_a_bucket_and_together_they_are_the_tensor(
    size: int, expected: list[tuple[int, int]]
) -> None:
    assert buckets.pieces(size) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 64)))
def test_buckets_hold_all_in_order_and_no_more_than_fits(sizes: list[int]) -> None:
    found = buckets.buckets(list(enumerate(sizes)), lambda item: item[1])
    assert [item for bucket in found for item in bucket] == list(enumerate(sizes))
    assert all(sum(size for _, size in bucket) <= 64 for bucket in found)
    # Two neighbours never fit into one.
    for before, after in pairwise(found):
        assert sum(size for _, size in before) + after[0][1] > 64


@pytest.mark.parametrize("threads", [1, 3])
def test_each_piece_has_the_checksum_of_its_bytes_whoever_computes_it(threads: int) -> None:
    data = np.random.default_rng(0).integers(0, 255, 1000, dtype=np.uint8)
    wanted = [(first, end) for first, end in buckets.pieces(1000)]
    expected = [xxhash.xxh3_64_intdigest(data[first:end].tobytes()) for first, end in wanted]
    assert buckets.checksums(data, wanted, threads) == expected


def test_a_failure_in_a_thread_is_the_caller_s() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise OverflowError("three")
        return item

    with pytest.raises(OverflowError, match="three"):
        buckets.each(work, range(5), 2)
