"""Where a set of tokens ends in each row of logits on a GPU: Triton kernels that select without sorting.

What the clamp drops is selected exactly: a sample of the row brackets the cut, one pass counts what lies below the
bracket and writes down what lies in it, a few thousand tokens, and bisection over their keys ends at the cut. A key is
the logit's bits as an integer of the same order. Where the bracket misses, or the row has too many equals, the
bisection goes over the whole row instead: slower, and as exact. A nucleus, a matter of mass, always does that.
"""

# A kernel is compiled from its source: its types are not those that a checker of Python sees.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits at a time
SAMPLE = 4096  # logits that bracket a cut
SPREAD = 4.5  # standard deviations of a sampled rank that the bracket leaves on either side
# Candidates that are written down, one of so many logits: a bracket in the middle of a row holds one of 14, and varies.
ROOM_SHARE = 10
LOWEST, HIGHEST = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)  # keys
KEY_BITS = tl.constexpr(32)


def select(logits: Tensor, dropped: int) -> tuple[Tensor, Tensor]:
    """The smallest logit that is kept when the `dropped` smallest are not, and the last id kept among its equals.

    `[T, V] float32 → [T] float32, [T] int64`; among equals the lowest ids are kept. NaN ranks above everything.
    """
    rows, vocabulary = logits.shape
    cut, last = logits.new_empty(rows), logits.new_empty(rows, dtype=torch.int64)
    stride = vocabulary // SAMPLE
    low, high = (0, 0) if stride < 2 else bracket(dropped / vocabulary)
    candidates = logits.new_empty(rows, room(vocabulary), dtype=torch.int32)
    if rows:
        _select[rows,](
            *(logits, cut, last, candidates, vocabulary, dropped, candidates.shape[1], stride, low, high),
            *(SAMPLE, BLOCK),
        )
    return cut, last


def reaching(logits: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """The same for the fewest tokens, the most likely first, whose probability together reaches `mass`."""
    rows, vocabulary = logits.shape
    cut, last = logits.new_empty(rows), logits.new_empty(rows, dtype=torch.int64)
    if rows:
        share = torch.tensor([mass], dtype=torch.float64, device=logits.device)
        _reach[rows,](logits, cut, last, vocabulary, share, BLOCK)
    return cut, last


def room(vocabulary: int) -> int:
    """Candidates of a row that can be written down; short rows have no bracket, and all of them are."""
    return vocabulary if vocabulary < 2 * SAMPLE else vocabulary // ROOM_SHARE


def bracket(share: float) -> tuple[int, int]:
    """The ranks in the sample that the row's cut lies between, but for one row in 100,000; −1 and SAMPLE: no bound."""
    middle, spread = share * SAMPLE, SPREAD * math.sqrt(max(share * (1.0 - share) * SAMPLE, 1.0))
    return max(math.floor(middle - spread) - 1, -1), min(math.ceil(middle + spread) + 1, SAMPLE)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _key(z: Any) -> Any:
    bits = (z + 0.0).to(tl.int32, bitcast=True)  # −0 is 0
    key = tl.where(bits < 0, bits ^ HIGHEST, bits)
    return tl.where(z != z, HIGHEST, key)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _logit(key: Any) -> Any:
    return tl.where(key < 0, key ^ HIGHEST, key).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _middle(low: Any, high: Any) -> Any:
    return (low & high) + ((low ^ high) >> 1)  # without overflow


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _of_sample(keys: Any, rank: Any) -> Any:
    """The key of this rank, from 0 on."""
    low, high = LOWEST, HIGHEST
    for _ in range(KEY_BITS):
        middle = _middle(low, high)
        enough = tl.sum((keys <= middle).to(tl.int32)) > rank
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _of_candidates(candidates: Any, count: Any, rank: Any, low: Any, high: Any, block: tl.constexpr) -> Any:
    """The key of this rank among those written down, which lie from `low` to `high`."""
    while low < high:
        middle = _middle(low, high)
        found = 0
        for start in range(0, count, block):
            at = start + tl.arange(0, block)
            keys = tl.load(candidates + at, mask=at < count, other=HIGHEST)
            found += tl.sum(((keys <= middle) & (at < count)).to(tl.int32))
        enough = found > rank
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _of_row(z: Any, vocabulary: Any, rank: Any, block: tl.constexpr) -> Any:
    """The key of this rank in the whole row."""
    low, high = LOWEST, HIGHEST
    for _ in range(KEY_BITS):
        middle = _middle(low, high)
        found = 0
        for start in range(0, vocabulary, block):
            at = start + tl.arange(0, block)
            keys = _key(tl.load(z + at, mask=at < vocabulary, other=0.0))
            found += tl.sum(((keys <= middle) & (at < vocabulary)).to(tl.int32))
        enough = found > rank
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _counted(z: Any, vocabulary: Any, cut: Any, block: tl.constexpr) -> Any:
    """How many of the row lie below the cut, and how many are equal to it."""
    smaller, equal = 0, 0
    for start in range(0, vocabulary, block):
        at = start + tl.arange(0, block)
        keys = _key(tl.load(z + at, mask=at < vocabulary, other=0.0))
        smaller += tl.sum(((at < vocabulary) & (keys < cut)).to(tl.int32))
        equal += tl.sum(((at < vocabulary) & (keys == cut)).to(tl.int32))
    return smaller, equal


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _last_of(z: Any, vocabulary: Any, cut: Any, kept: Any, equal: Any, block: tl.constexpr) -> Any:
    """The id of the `kept`-th of the `equal` tokens at the cut; the last id of all where all are kept."""
    last = vocabulary - 1
    if kept < equal:
        seen = 0
        for start in range(0, vocabulary, block):
            at = start + tl.arange(0, block)
            keys = _key(tl.load(z + at, mask=at < vocabulary, other=0.0))
            same = ((at < vocabulary) & (keys == cut)).to(tl.int32)
            place = seen + tl.cumsum(same)
            last = tl.minimum(last, tl.min(tl.where((same > 0) & (place == kept), at, vocabulary)))
            seen += tl.sum(same)
    return last


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _mass(z: Any, vocabulary: Any, peak: Any, least: Any, block: tl.constexpr) -> Any:
    """Σ exp(z − peak) over the tokens whose key is at least `least`, in float64."""
    found = tl.zeros([block], tl.float64)
    for start in range(0, vocabulary, block):
        at = start + tl.arange(0, block)
        some = tl.load(z + at, mask=at < vocabulary, other=-float("inf"))
        within = (at < vocabulary) & (_key(some) >= least)
        found += tl.where(within, tl.exp(some - peak), 0.0).to(tl.float64)
    return tl.sum(found)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _reach(logits: Any, cuts: Any, lasts: Any, vocabulary: Any, share: Any, block: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    z = logits + row * vocabulary
    highest = LOWEST
    for start in range(0, vocabulary, block):
        at = start + tl.arange(0, block)
        keys = _key(tl.load(z + at, mask=at < vocabulary, other=-float("inf")))
        highest = tl.maximum(highest, tl.max(keys))
    peak = _logit(highest)
    goal = tl.load(share) * _mass(z, vocabulary, peak, LOWEST, block)
    # The highest key that has the goal at or above it.
    low, high = LOWEST, highest
    for _ in range(KEY_BITS):
        middle = _middle(low, high)
        middle = tl.where(middle < high, middle + 1, middle)
        enough = _mass(z, vocabulary, peak, middle, block) >= goal
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, tl.maximum(middle - 1, low))
    above = tl.where(low == HIGHEST, 0.0, _mass(z, vocabulary, peak, low + 1, block))
    _, equal = _counted(z, vocabulary, low, block)
    each = tl.exp(_logit(low) - peak).to(tl.float64)
    needed = tl.ceil((goal - above) / each)
    kept = tl.where(needed < equal, tl.maximum(needed, 1.0), equal).to(tl.int32)
    tl.store(cuts + row, _logit(low))
    tl.store(lasts + row, _last_of(z, vocabulary, low, kept, equal, block).to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _select(
    logits: Any,
    cuts: Any,
    lasts: Any,
    candidates: Any,
    vocabulary: Any,
    dropped: Any,
    room: Any,
    stride: Any,
    low_rank: Any,
    high_rank: Any,
    sampled: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    z, candidates = logits + row * vocabulary, candidates + row * room
    low, high = LOWEST, HIGHEST
    if stride > 1:
        sample = _key(tl.load(z + tl.arange(0, sampled) * stride))
        if low_rank >= 0:
            low = _of_sample(sample, low_rank)
        if high_rank < sampled:
            high = _of_sample(sample, high_rank)
    below, count = 0, 0
    for start in range(0, vocabulary, block):
        at = start + tl.arange(0, block)
        there = at < vocabulary
        keys = _key(tl.load(z + at, mask=there, other=0.0))
        below += tl.sum((there & (keys < low)).to(tl.int32))
        inside = (there & (keys >= low) & (keys <= high)).to(tl.int32)
        place = count + tl.cumsum(inside) - 1
        tl.store(candidates + place, keys, mask=(inside > 0) & (place < room))
        count += tl.sum(inside)
    tl.debug_barrier()  # what other threads of the row wrote down is read next
    if (below <= dropped) & (dropped < below + count) & (count <= room):
        cut = _of_candidates(candidates, count, dropped - below, low, high, block)
    else:
        cut = _of_row(z, vocabulary, dropped, block)
    smaller, equal = _counted(z, vocabulary, cut, block)
    last = _last_of(z, vocabulary, cut, smaller + equal - dropped, equal, block)
    tl.store(cuts + row, _logit(cut))
    tl.store(lasts + row, last.to(tl.int64))
