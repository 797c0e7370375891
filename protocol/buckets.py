"""Buckets of a version's flat buffer: what is copied, checked or sent at once, so that no tensor is too long a piece.

Both sides cut a tensor alike, at every `BUCKET_BYTES` from its start; each piece has a checksum of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import xxhash

from entrostat.protocol.arrays import UInt8

# Copies of fewer than about 8 MiB take the way through the caches, which costs twice the time of one that goes past.
BUCKET_BYTES = 1 << 24

Piece = tuple[int, int]  # first byte and the one after the last
T = TypeVar("T")
R = TypeVar("R")


def pieces(size: int) -> list[Piece]:
    """A tensor of `size` bytes in pieces, seen from its start; an empty one is one empty piece."""
    return [(start, min(start + BUCKET_BYTES, size)) for start in range(0, max(size, 1), BUCKET_BYTES)]


def buckets(items: Iterable[T], size: Callable[[T], int]) -> list[list[T]]:
    """The items in order, filled into buckets of at most `BUCKET_BYTES`; a larger item has one of its own."""
    made: list[list[T]] = []
    room = 0
    for item in items:
        if size(item) > room or not made:
            made.append([])
            room = BUCKET_BYTES
        made[-1].append(item)
        room -= size(item)
    return made


def each(work: Callable[[T], R], items: Sequence[T], threads: int) -> list[R]:
    """`work` of every item, in order, by so many threads; it must be of the kind that lets go of Python's lock."""
    if threads <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), "buckets") as pool:
        return list(pool.map(work, items))


def checksums(buffer: UInt8, wanted: Sequence[Piece], threads: int) -> list[int]:
    """xxh3-64 of each piece `[first, end)` of `buffer [bytes]`."""
    view = buffer.data

    def of(bucket: list[Piece]) -> list[int]:
        return [xxhash.xxh3_64_intdigest(view[first:end]) for first, end in bucket]

    found = each(of, buckets(wanted, lambda piece: piece[1] - piece[0]), threads)
    return [one for bucket in found for one in bucket]
