"""A policy version as one flat buffer: every tensor under its Hugging Face name at a multiple of 64 bytes, checksummed.

A tied head is listed under its own name as well, at the offset of the embedding it shares: an engine that is not told
about it keeps its old head without an error.

Tensors are written to their place once, cast on the way where they are to be served in another dtype. Only a weight
with an adapter beside it is made first, by itself. They are copied and checked in buckets (`protocol/buckets.py`), by
several threads.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from entrostat.learner.merged import Merged, Weight, held
from entrostat.protocol.arrays import UInt8, aligned
from entrostat.protocol.buckets import Piece, buckets, checksums, each, pieces
from entrostat.protocol.messages import (
    CudaMemory,
    NcclGroup,
    PolicyVersion,
    Probe,
    SharedFile,
    TensorSpec,
    WeightsManifest,
)


class Publisher(Protocol):
    """Where published versions lie."""

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Weight], probe: Probe) -> WeightsManifest:
        """Copies the tensors into a new flat buffer, and drops the versions nobody needs any more.

        Raises:
            ResourceError: there is no room for it.
        """
        ...

    def close(self) -> None:
        """Frees every version."""
        ...


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one tensor goes in the flat buffer."""

    name: str
    weight: Weight
    dtype: torch.dtype  # in the buffer
    offset: int
    bytes: int  # in the buffer
    shared: bool  # an earlier place holds the same memory

    @property
    def tensor(self) -> Tensor:
        """What has its shape."""
        return held(self.weight)

    @property
    def spans(self) -> list[Piece]:
        """Its pieces, in the buffer."""
        return [(self.offset + first, self.offset + end) for first, end in pieces(self.bytes)]


def layout(tensors: Mapping[str, Weight], dtypes: Mapping[str, torch.dtype] | None = None) -> tuple[list[Place], int]:
    """A place for every tensor, in order, and the buffer's size in bytes. Tensors that share memory share a place.

    `dtypes` names those that are served in another dtype than the learner holds them in.
    """
    places: list[Place] = []
    offsets: dict[tuple[int, torch.Size, tuple[int, ...], torch.dtype], int] = {}
    end = 0
    for name, weight in tensors.items():
        tensor = held(weight)
        dtype = (dtypes or {}).get(name, tensor.dtype)
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), dtype)
        size = tensor.numel() * dtype.itemsize
        shared = memory in offsets
        if not shared:
            offsets[memory] = end
            end = aligned(end + size)
        places.append(Place(name=name, weight=weight, dtype=dtype, offset=offsets[memory], bytes=size, shared=shared))
    return places, end


def fill(buffer: Tensor, places: Sequence[Place], threads: int = 1) -> None:
    """Writes every tensor to its place in `buffer [bytes] uint8`, once.

    What lies in the host's memory as it is to be served is copied as plain bytes, by so many threads; torch does the
    rest (casts, other layouts, devices) with its own.
    """
    copies: list[tuple[UInt8, UInt8]] = []
    for place in places:
        if place.shared:
            continue
        target = buffer[place.offset : place.offset + place.bytes]
        if isinstance(place.weight, Merged):  # made one at a time: the next one takes its memory
            target.view(place.dtype).view(place.tensor.shape).copy_(place.weight.made())
            continue
        tensor = place.tensor.detach()
        on_host = buffer.device.type == tensor.device.type == "cpu"
        if on_host and tensor.is_contiguous() and tensor.dtype == place.dtype:
            to, source = target.numpy(), tensor.reshape(-1).view(torch.uint8).numpy()
            copies += [(to[first:end], source[first:end]) for first, end in pieces(place.bytes)]
        else:
            target.view(place.dtype).view(tensor.shape).copy_(tensor)
    each(_copy, buckets(copies, lambda copy: copy[0].nbytes), threads)


def specs(buffer: UInt8, places: Sequence[Place], threads: int = 1) -> tuple[TensorSpec, ...]:
    """What the buffer holds, with the checksums of the bytes as they lie there."""
    own = [place for place in places if not place.shared]
    found = iter(checksums(buffer, [span for place in own for span in place.spans], threads))
    of_place = {(place.offset, place.bytes): tuple(next(found) for _ in place.spans) for place in own}
    return tuple(
        TensorSpec(
            name=place.name,
            dtype=str(place.dtype).removeprefix("torch."),
            shape=tuple(place.tensor.shape),
            offset=place.offset,
            bytes=place.bytes,
            checksums=of_place[place.offset, place.bytes],
        )
        for place in places
    )


def manifest(
    version: PolicyVersion,
    found: tuple[TensorSpec, ...],
    size: int,
    location: SharedFile | CudaMemory | NcclGroup,
    probe: Probe,
) -> WeightsManifest:
    """The manifest of a filled buffer; its checksum is made of the tensors', as little-endian 64-bit numbers."""
    joined = [checksum for spec in found for checksum in spec.checksums]
    digest = xxhash.xxh3_64_intdigest(struct.pack(f"<{len(joined)}Q", *joined))
    return WeightsManifest(version=version, tensors=found, bytes=size, checksum=digest, location=location, probe=probe)


def as_tensor(buffer: UInt8) -> Tensor:
    """The same writable memory as a torch tensor."""
    return torch.from_numpy(np.asarray(buffer))


def _copy(bucket: Sequence[tuple[UInt8, UInt8]]) -> None:
    for to, source in bucket:
        np.copyto(to, source)
