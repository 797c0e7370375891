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
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from entrostat.learner.weights import as_tensor, fill, layout, manifest, specs
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.messages import PolicyVersion, Probe, SharedFile, WeightsManifest

log = logging.getLogger(__name__)

ROOT = Path("/dev/shm")
PREFIX = "entrostat-"
LOCK = "lock"
KEPT_VERSIONS = 2  # the newest, and the one before, which an actor may still be reading
LONGEST_NAME = 64


class SharedMemoryPublisher:
    """Keeps the newest versions in `/dev/shm/entrostat-<run>-<pid>-…/<branch>.<step>`."""

    def __init__(self, run: str, root: Path = ROOT) -> None:
        remove_leftovers(root)
        self._directory, self._lock = _claimed_directory(run, root)
        self._versions: list[Path] = []

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor], probe: Probe) -> WeightsManifest:
        """See `Publisher`."""
        places, size = layout(tensors)
        while len(self._versions) >= KEPT_VERSIONS:
            self._versions.pop(0).unlink(missing_ok=True)
        path = self._directory / str(version)
        buffer = _mapped(path, size)
        fill(as_tensor(buffer), places)
        self._versions.append(path)
        location = SharedFile(host=socket.gethostname(), path=str(path))
        return manifest(version, specs(buffer, places), size, location, probe)

    def close(self) -> None:
        """Removes the directory; safe to call twice."""
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


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


def _mapped(path: Path, size: int) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
    """A new file of `size` bytes, mapped. Its room is taken now: a full tmpfs would end the process later, by a signal.

    Raises:
        ResourceError: there is not so much room.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        path.unlink()
        free = shutil.disk_usage(path.parent).free
        raise ResourceError(
            f"a policy version needs {size:,} bytes of shared memory and {path.parent.parent} has {free:,} free "
            f"({error.strerror}): {KEPT_VERSIONS} versions must fit, and one that an actor still reads. Enlarge it "
            "(docker run --shm-size, or an emptyDir with medium: Memory on Kubernetes), or remove files no run uses"
        ) from error
    finally:
        os.close(descriptor)
    return np.memmap(path, np.uint8, "r+")
