"""A version's flat buffer in shared memory: mapped without a copy, and held against its checksums."""

import mmap
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.messages import CudaMemory, SharedFile, TensorSpec


def check_host(location: SharedFile | CudaMemory) -> None:
    """Memory of another machine can't be mapped.

    Raises:
        WeightsRefused: the buffer lies on another host.
    """
    here = socket.gethostname()
    if location.host != here:
        raise WeightsRefused(
            f"the weights lie in the memory of host {location.host}, this actor runs on {here}: "
            "rollout actors must run on the learner's machine"
        )


def map_file(location: SharedFile, expected_bytes: int) -> UInt8:
    """The buffer `[bytes] uint8`, shared with everyone who maps it; it outlives the file's name.

    The mapping is private and writable, because torch warns of memory it can't write to; nobody writes, so no page is
    ever copied, and a stray write could not reach the file.

    Raises:
        WeightsRefused: the file is on another host, gone, or shorter than the manifest says.
    """
    check_host(location)
    try:
        with Path(location.path).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise WeightsRefused(
            f"the weights at {location.path} on {location.host} can't be mapped ({error}): "
            "the learner may have published a newer version already"
        ) from error
    if len(mapped) < expected_bytes:
        raise WeightsRefused(
            f"the weights at {location.path} are {len(mapped)} bytes; the manifest says {expected_bytes}: "
            "the file was cut short"
        )
    return np.frombuffer(mapped, np.uint8)


def damaged(buffer: UInt8, tensors: Sequence[TensorSpec]) -> list[str]:
    """Names of the tensors whose bytes in `buffer` lie outside it or don't have their checksum (xxh3-64)."""
    view = buffer.data
    return [
        spec.name
        for spec in tensors
        if spec.offset + spec.bytes > len(view)
        or xxhash.xxh3_64_intdigest(view[spec.offset : spec.offset + spec.bytes]) != spec.checksum
    ]
