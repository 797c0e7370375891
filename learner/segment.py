"""One file in shared memory that holds policy versions, one after another.

The kernel makes a new file's pages one by one, at the first write to each, which takes several times as long as the
copy itself: a file that nobody reads any more is therefore written again, under a new name, and stays mapped. Readers
hold a shared lock on it (`flock`, which ends with its holder) and the writer takes the exclusive one: what is being
read is never written.
"""

import contextlib
import fcntl
import mmap
import os
import shutil
from pathlib import Path

import numpy as np

from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import ResourceError

POPULATE_WRITE = 23  # madvise: make all pages now, in one call (Linux 5.14)


class Segment:
    """A mapped file of `size` bytes; the lock is the writer's from the start, until `offer`.

    Raises:
        ResourceError: there is not so much room, or the file can't be made or mapped. All of the room is taken now: a
            full tmpfs would end the process later, by a signal.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ResourceError(
                f"a policy version of {size:,} bytes can't be written to {path} ({error.strerror}): expected a "
                "directory of this run in shared memory, open files to spare (ulimit -n), and nobody who clears it"
            ) from error
        try:
            os.posix_fallocate(self._descriptor, 0, size)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            memory = mmap.mmap(self._descriptor, size)
        except OSError as error:
            self.free()
            free = shutil.disk_usage(path.parent).free
            raise ResourceError(
                f"a policy version needs {size:,} bytes of shared memory and {path.parent.parent} has {free:,} free "
                f"({error.strerror}): two versions must fit, and one for each that an actor still reads. Enlarge it "
                "(docker run --shm-size, or an emptyDir with medium: Memory on Kubernetes), or remove files no run "
                "uses; with room enough there, the process has no address space left (ulimit -v)"
            ) from error
        with contextlib.suppress(OSError):  # an older kernel: the first writes do it
            memory.madvise(POPULATE_WRITE)
        self.buffer: UInt8 = np.frombuffer(memory, np.uint8)  # [size], writable

    def take_over(self, path: Path) -> bool:
        """Takes it for a version that is to lie at `path`; whether it could: not while somebody reads it."""
        if not self._claim():
            return False
        # First the name: who opens the old one from now on finds nothing, and who has opened it sees that it changed.
        self.path = self.path.rename(path)
        return True

    def offer(self) -> None:
        """What it holds is complete, and may be read."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def free(self) -> None:
        """Gives its memory back, as far as no reader has it mapped."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def free_if_unread(self) -> bool:
        """Gives its memory back unless somebody reads it; whether it did."""
        if not self._claim():
            return False
        self.free()
        return True

    def _claim(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
