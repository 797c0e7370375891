"""Published versions as files in shared memory, one directory per learner process.

The directory holds a lock file that the process keeps locked for life: a directory whose lock is free belongs to a run
that died, and the next learner on the machine removes it. (A process id would say nothing across containers.)
"""

import fcntl
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from entrostat.learner.merged import Weight
from entrostat.learner.segment import Segment
from entrostat.learner.weights import as_tensor, fill, layout, manifest, specs
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.messages import PolicyVersion, Probe, SharedFile, WeightsManifest

log = logging.getLogger(__name__)

ROOT = Path("/dev/shm")
PREFIX = "entrostat-"
LOCK = "lock"
KEPT_VERSIONS = 2  # the newest, and the one before, which an actor may still ask for
LONGEST_NAME = 64


@dataclass(frozen=True, kw_only=True)
class PublishSeconds:
    """Where the last publication's time went."""

    room: float  # a file to write to
    copy: float
    checksums: float


class SharedMemoryPublisher:
    """Keeps the newest versions in `/dev/shm/entrostat-<run>-<pid>-…/<branch>.<step>`, for all actors of the machine.

    Memory: the newest two versions, in shared memory, and besides them each that an actor still reads (its lock says
    so). The learner itself needs nothing more: tensors are written to their place at once. A version is written over
    the oldest that nobody reads; what is left over after that is freed.

    Args:
        run: its name, for people who look into the directory.
        root: where shared memory is mounted.
        threads: to copy and check with.
    """

    def __init__(self, run: str, root: Path = ROOT, threads: int = 1) -> None:
        remove_leftovers(root)
        self._directory, self._lock = _claimed_directory(run, root)
        self._threads = threads
        self._segments: list[Segment] = []  # by age of their versions, the newest last
        self.seconds = PublishSeconds(room=0.0, copy=0.0, checksums=0.0)

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Weight], probe: Probe) -> WeightsManifest:
        """See `Publisher`."""
        began = time.perf_counter()
        places, size = layout(tensors)
        segment = self._room(self._directory / str(version), size)
        roomy = time.perf_counter()
        fill(as_tensor(segment.buffer), places, self._threads)
        filled = time.perf_counter()
        found = specs(segment.buffer, places, self._threads)
        segment.offer()
        self.seconds = PublishSeconds(room=roomy - began, copy=filled - roomy, checksums=time.perf_counter() - filled)
        for old in self._segments[:-KEPT_VERSIONS]:
            if old.free_if_unread():
                self._segments.remove(old)
        location = SharedFile(host=socket.gethostname(), path=str(segment.path))
        return manifest(version, found, size, location, probe)

    def close(self) -> None:
        """Removes the directory; safe to call twice."""
        while self._segments:
            self._segments.pop().free()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _room(self, path: Path, size: int) -> Segment:
        """The oldest version's segment, if nobody reads it, or a new one; the newest version is never touched."""
        for segment in self._segments[:-1]:
            if segment.size == size and segment.take_over(path):
                self._segments.remove(segment)
                break
        else:
            segment = Segment(path, size)
        self._segments.append(segment)
        return segment


def remove_leftovers(root: Path = ROOT) -> list[Path]:
    """Removes the directories of learners that are gone; returns them. Another user's are left alone."""
    removed = []
    for directory in sorted(root.glob(f"{PREFIX}*/")):
        try:
            lock = os.open(directory / LOCK, os.O_RDWR)
        except OSError:
            continue  # not a learner's, not ours, or gone meanwhile
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its learner lives
        else:
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(directory)
            log.info("removed %s: the run that made it is gone", directory)
        finally:
            os.close(lock)
    return removed


def _claimed_directory(run: str, root: Path) -> tuple[Path, int]:
    """A new directory and the descriptor of its lock, held. It gets its name only once the lock is held."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", run)[:LONGEST_NAME]
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}{name}-{os.getpid()}-", dir=root))
        lock = os.open(made / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ResourceError(
            f"shared memory at {root} can't be used ({error.strerror}): mount a tmpfs there that this user may write to"
        ) from error
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    directory = made.rename(root / made.name.removeprefix("."))
    return directory, lock
