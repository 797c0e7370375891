"""The lives of a run directory: which one it is in, and who may write there.

Each resume begins a new life, whose number is the branch of all its policy versions: `RUN/branch` holds it. Processes
outlive a killed driver, by seconds or for as long as they hang. Those that write into the directory hold `RUN/writers`
shared for as long as they live, and a new life begins only where nobody does. Where the file system has no locks, the
number alone keeps the old ones out.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from entrostat.protocol.errors import RunDirectoryError, StationLost

log = logging.getLogger(__name__)

BRANCH, WRITERS = "branch", "writers"
WAIT_SECONDS = 30.0  # for the processes of the life before
POLL_SECONDS = 0.1
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Writer:
    """A process's right to write into the run directory; held until the process ends, or `close`.

    Args:
        directory: the run's, absolute.
        branch: the life that the process belongs to.
        who: what errors call it.
        seconds: to wait at most where another process is just beginning a life.

    Raises:
        StationLost: a newer life has begun, or the directory is gone.
    """

    def __init__(self, directory: str | Path, branch: int, who: str, *, seconds: float = WAIT_SECONDS) -> None:
        self._directory, self._branch = Path(directory), branch
        path = self._directory / WRITERS
        try:
            # A bare descriptor: nothing but the process's end, or `close`, gives it back.
            self._held = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise StationLost(
                f"{who} can't hold the run directory {directory} ({error.strerror}): every station that writes there "
                "needs it, on a disk that all their machines share"
            ) from error
        try:
            if not _taken_within(self._held, path, fcntl.LOCK_SH, seconds):
                raise StationLost(f"{who} did not get to hold {directory} within {seconds:.0f} s: a new life begins")
            self.check()
            os.write(self._held, f"{os.getpid()} {socket.gethostname()} {who}\n".encode())
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Sees that what this process writes still belongs into the directory; called right before it counts.

        Raises:
            StationLost: a newer life has begun, or the directory is gone.
        """
        check(self._directory, self._branch, self._directory / WRITERS, self._held)

    def close(self) -> None:
        """Gives the right back."""
        os.close(self._held)


def check(directory: Path, branch: int, path: Path, held: int) -> None:
    """Sees that `directory` is in the life `branch`, and that its file `path` is the one open as descriptor `held`.

    Raises:
        StationLost: it is not.
    """
    try:
        same = os.path.samestat(path.stat(), os.fstat(held))
    except FileNotFoundError:
        same = False
    now = read_branch(directory) if same else None
    if now is None:
        raise StationLost(
            f"the run directory {directory} was moved, removed or made anew under a process of the run, which writes "
            "there no more: let a run end before its folder is touched"
        )
    if now != branch:
        raise StationLost(
            f"a newer life of this run has begun in {directory} (branch {now}): this process is of branch {branch} and "
            "writes there no more"
        )


def read_branch(directory: Path) -> int | None:
    """The number of the directory's present life; None where none was ever written.

    Raises:
        RunDirectoryError: what is written is no number.
    """
    path = directory / BRANCH
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    if not text.strip().isdecimal():
        raise RunDirectoryError(
            f"{path} holds {text[:40]!r}, expected a number: write one there that is above every branch in "
            "metrics.jsonl and in the checkpoints' manifests"
        )
    return int(text)


def outlive(directory: Path, say: Callable[[str], None], seconds: float = WAIT_SECONDS) -> IO[bytes]:
    """Waits until no process of the life before may write there.

    Returns:
        What keeps others from beginning to, until it is closed.

    Raises:
        RunDirectoryError: one still does after `seconds`; names it.
    """
    path = directory / WRITERS
    file = path.open("ab+")
    try:
        if not taken(file.fileno(), path, fcntl.LOCK_EX):
            say(f"waiting for the processes of the run before to end: {_named(directory)}")
            if not _taken_within(file.fileno(), path, fcntl.LOCK_EX, seconds):
                raise RunDirectoryError(
                    f"{directory} is still held by processes of the run before, {seconds:.0f} s later: "
                    f"{_named(directory)}; end them (kill -9), or wait until they have ended, and try again"
                )
    except BaseException:
        file.close()
        raise
    file.truncate(0)  # whoever is named there has ended
    return file


def taken(descriptor: int, path: Path, how: int) -> bool:
    """Whether the lock on an open file was there to be had; where there are no locks it is, and the log says so."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s can't be locked (%s): only the branch keeps an older run's processes out", path, error)
    return True


def _taken_within(descriptor: int, path: Path, how: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not taken(descriptor, path, how):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _named(directory: Path) -> str:
    """Who holds it, as far as they can be told: those on this machine that still live, and those elsewhere."""
    named: list[str] = []
    for line in (directory / WRITERS).read_text(encoding="utf-8", errors="replace").splitlines():
        process, _, rest = line.partition(" ")
        host, _, who = rest.partition(" ")
        if host != socket.gethostname():
            named.append(f"{who} (process {process} on {host})")
        elif Path("/proc", process).exists():
            named.append(f"{who} (process {process})")
    return ", ".join(named) or "processes that left no name"
