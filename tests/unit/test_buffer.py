"""The sample buffer: all of an order or none of it, within a bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.buffer import SampleBuffer
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import ResourceError


def frame(value: int, size: int = 10) -> UInt8:
    return np.full(size, value, np.uint8)


def test_frames_come_back_in_the_orders_sequence_and_are_then_forgotten() -> None:
    buffer = SampleBuffer(100)
    for lease_id in (1, 2, 3):
        buffer.put(lease_id, frame(lease_id))
    taken = buffer.take([3, 1])
    assert [int(one[0]) for one in taken.frames] == [3, 1]
    assert taken.missing == ()
    assert (len(buffer), buffer.bytes) == (1, 10)
    assert buffer.take([1]).missing == (1,)


def test_an_order_with_a_missing_group_takes_nothing() -> None:
    buffer = SampleBuffer(100)
    buffer.put(1, frame(1))
    taken = buffer.take([1, 7, 9])
    assert taken.frames == ()
    assert taken.missing == (7, 9)
    assert len(buffer.take([1]).frames) == 1


def test_what_the_caller_does_to_its_array_afterwards_does_not_matter() -> None:
    buffer, own = SampleBuffer(100), frame(1)
    buffer.put(1, own)
    own[:] = 9
    assert buffer.take([1]).frames[0].tolist() == [1] * 10


def test_a_full_buffer_refuses_with_numbers_and_keeps_what_it_has() -> None:
    buffer = SampleBuffer(25)
    buffer.put(1, frame(1))
    buffer.put(2, frame(2))
    with pytest.raises(ResourceError, match=r"holds 2 groups, 20 bytes, .* no room for 10 more, its limit is 25"):
        buffer.put(3, frame(3))
    buffer.discard([1, 99])
    buffer.put(3, frame(3))
    assert len(buffer.take([2, 3]).frames) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20), st.booleans()), max_size=40))
@settings(max_examples=60)
def test_the_bytes_it_counts_are_the_bytes_it_holds(actions: list[tuple[int, int, bool]]) -> None:
    buffer, held = SampleBuffer(10**6), dict[int, int]()
    for lease_id, size, put in actions:
        if put:
            buffer.put(lease_id, frame(lease_id, size))
            held[lease_id] = size
        else:
            buffer.discard([lease_id])
            held.pop(lease_id, None)
        assert (len(buffer), buffer.bytes) == (len(held), sum(held.values()))
