"""A policy version as one flat buffer: every tensor under its Hugging Face name at a multiple of 64 bytes, checksummed.

A tied head is listed under its own name as well, at the offset of the embedding it shares: an engine that is not told
about it keeps its old head without an error.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from entrostat.protocol.arrays import UInt8, aligned
from entrostat.protocol.messages import CudaMemory, PolicyVersion, Probe, SharedFile, TensorSpec, WeightsManifest


class Publisher(Protocol):
    """Where published versions lie."""

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor], probe: Probe) -> WeightsManifest:
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
    tensor: Tensor
    offset: int
    shared: bool  # an earlier place holds the same memory


def layout(tensors: Mapping[str, Tensor]) -> tuple[list[Place], int]:
    """A place for every tensor, in order, and the buffer's size in bytes. Tensors that share memory share a place."""
    places: list[Place] = []
    offsets: dict[tuple[int, torch.Size, tuple[int, ...]], int] = {}
    end = 0
    for name, tensor in tensors.items():
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
        shared = memory in offsets
        if not shared:
            offsets[memory] = end
            end = aligned(end + tensor.nbytes)
        places.append(Place(name=name, tensor=tensor, offset=offsets[memory], shared=shared))
    return places, end


def fill(buffer: Tensor, places: list[Place]) -> None:
    """Copies every tensor to its place in `buffer [bytes] uint8`, once."""
    for place in places:
        if not place.shared:
            tensor = place.tensor
            piece = buffer[place.offset : place.offset + tensor.nbytes]
            piece.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def specs(buffer: UInt8, places: list[Place]) -> tuple[TensorSpec, ...]:
    """What the buffer holds, with the checksums of the bytes as they lie there."""
    checksums: dict[int, int] = {}
    found = []
    for place in places:
        tensor = place.tensor
        if place.offset not in checksums:
            checksums[place.offset] = xxhash.xxh3_64_intdigest(buffer[place.offset : place.offset + tensor.nbytes].data)
        found.append(
            TensorSpec(
                name=place.name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                offset=place.offset,
                bytes=tensor.nbytes,
                checksum=checksums[place.offset],
            )
        )
    return tuple(found)


def manifest(
    version: PolicyVersion, found: tuple[TensorSpec, ...], size: int, location: SharedFile | CudaMemory, probe: Probe
) -> WeightsManifest:
    """The manifest of a filled buffer; its checksum is made of the tensors', as little-endian 64-bit numbers."""
    digest = xxhash.xxh3_64_intdigest(struct.pack(f"<{len(found)}Q", *(spec.checksum for spec in found)))
    return WeightsManifest(version=version, tensors=found, bytes=size, checksum=digest, location=location, probe=probe)


def as_tensor(buffer: UInt8) -> Tensor:
    """The same writable memory as a torch tensor."""
    return torch.from_numpy(np.asarray(buffer))
