"""A version's flat buffer in shared memory: mapped without a copy, locked while it is needed, and checked."""

import fcntl
import mmap
import os
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from entrostat.protocol.arrays import UInt8
from entrostat.protocol.buckets import checksums, pieces
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


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A file of the learner's."""

    descriptor: int
    buffer: UInt8


class SharedFiles:
    """The learner's files that this process has mapped.

    `hold` locks a file, and the learner leaves it alone; once it is let go a later version may be written into it. It
    stays mapped then, because the kernel takes a while to map it again, until the learner has removed it.

    The mapping is private and writable, because torch warns of memory it can't write to; nobody writes, so no page is
    ever copied, and a stray write could not reach the file.
    """

    def __init__(self) -> None:
        self._mapped: dict[tuple[int, int], Mapped] = {}  # by device and inode
        self._held: dict[str, Mapped] = {}  # by path

    def hold(self, location: SharedFile, expected_bytes: int) -> UInt8:
        """The buffer `[bytes] uint8`, shared with everyone who maps it, locked until it is let go.

        Raises:
            WeightsRefused: the file is on another host, gone, used for a later version, or shorter than the manifest
                says.
        """
        check_host(location)
        if location.path in self._held:
            return self._held[location.path].buffer
        try:
            mapped = self._open(location.path)
        except (OSError, ValueError) as error:
            raise WeightsRefused(
                f"the weights at {location.path} on {location.host} can't be mapped ({error}): "
                "the learner may have published a newer version already"
            ) from error
        if len(mapped.buffer) < expected_bytes:
            fcntl.flock(mapped.descriptor, fcntl.LOCK_UN)
            raise WeightsRefused(
                f"the weights at {location.path} are {len(mapped.buffer)} bytes; the manifest says {expected_bytes}: "
                "the file was cut short"
            )
        self._held[location.path] = mapped
        return mapped.buffer

    def keep(self, paths: Collection[str]) -> None:
        """Lets go of all others; their buffers must not be read any more."""
        for path in self._held.keys() - set(paths):
            fcntl.flock(self._held.pop(path).descriptor, fcntl.LOCK_UN)
        held = [mapped.descriptor for mapped in self._held.values()]
        for key, mapped in list(self._mapped.items()):
            if mapped.descriptor not in held and not os.fstat(mapped.descriptor).st_nlink:
                os.close(mapped.descriptor)
                del self._mapped[key]

    def _open(self, path: str) -> Mapped:
        """Maps the file unless it is mapped already, and locks it.

        Raises:
            OSError: it is not there, can't be mapped, or is written to now.
            ValueError: it is empty.
        """
        descriptor = os.open(path, os.O_RDONLY)
        found = os.fstat(descriptor)
        mapped = self._mapped.get((found.st_dev, found.st_ino))
        if mapped is None:
            try:
                memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError):
                os.close(descriptor)
                raise
            mapped = Mapped(descriptor=descriptor, buffer=np.frombuffer(memory, np.uint8))
            self._mapped[found.st_dev, found.st_ino] = mapped
        else:
            os.close(descriptor)
        self._lock(mapped.descriptor)
        # Between its opening and its lock the learner may have taken it for a later version, under another name.
        try:
            now = Path(path).stat()
        except OSError:
            fcntl.flock(mapped.descriptor, fcntl.LOCK_UN)
            raise
        if (now.st_dev, now.st_ino) != (found.st_dev, found.st_ino):
            fcntl.flock(mapped.descriptor, fcntl.LOCK_UN)
            raise FileNotFoundError(f"{path} is another file by now")
        return mapped

    def _lock(self, descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def damaged(buffer: UInt8, tensors: Sequence[TensorSpec], threads: int = 1) -> list[str]:
    """Names of the tensors whose bytes in `buffer` lie outside it or don't have their checksums (xxh3-64)."""
    # Tied tensors share their bytes: these are read once.
    inside = {(spec.offset, spec.bytes) for spec in tensors if spec.offset + spec.bytes <= len(buffer)}
    spans = {place: [(place[0] + first, place[0] + end) for first, end in pieces(place[1])] for place in inside}
    found = iter(checksums(buffer, [span for place in inside for span in spans[place]], threads))
    right = {place: tuple(next(found) for _ in spans[place]) for place in inside}
    return [spec.name for spec in tensors if right.get((spec.offset, spec.bytes)) != spec.checksums]
