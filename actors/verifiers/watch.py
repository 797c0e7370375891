"""Watches one program: reads what it says, and ends it where it goes beyond a limit. Standard library only."""

import contextlib
import os
import secrets
import select
import signal
import time
from pathlib import Path
from typing import Any

from entrostat.actors.verifiers import harness
from entrostat.actors.verifiers.confined import Limits

LOOK_SECONDS = 0.05  # between two looks at its threads and files
END_SECONDS = 0.0005
OUTPUT_BYTES = 1 << 20
COMPLAINT_BYTES = 2000
FILES_IN_FULL = 4  # times the largest file may be, all together
FILES = 100  # in its folder


class Watch:
    """Reads what a program says and ends it where it goes beyond a limit."""

    def __init__(self, pid: int, pipes: list[int], secret: int, header: dict[str, Any]) -> None:
        self.said = [bytearray(), bytearray(), bytearray()]  # output, complaints, replies
        self._pid, self._open, self._pipes = pid, set(pipes), pipes
        self._secret_pipe, self._secret = secret, secrets.token_hex(harness.SECRET_BYTES // 2)
        self._seconds, self._replies = header["test_seconds"], header["replies"]
        self._start = self._heard = time.monotonic()
        self._last = self._start + header["total_seconds"]
        self._lines = 0

    def until_it_ends(self, work: Path, limits: Limits) -> dict[str, Any]:
        """How it ended: by itself (`code`, negative for a signal), or for what it was killed."""
        killed, code = "", None
        for end in self._open:
            os.set_blocking(end, False)
        while not killed and code is None:
            self._listen()
            code = _ended(self._pid)
            if code is None:
                killed = self._beyond(work, limits)
        if code is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        while self._listen(0.0) and len(self.said[0]) <= OUTPUT_BYTES and len(self.said[2]) <= OUTPUT_BYTES:
            pass
        return {
            "killed": killed,
            "code": code,
            "secret": self._secret,
            "complaint": self.said[1][-COMPLAINT_BYTES:].decode(errors="replace"),
            "seconds": time.monotonic() - self._start,
        }

    def _listen(self, seconds: float = LOOK_SECONDS) -> bool:
        """Reads what there is; waits a while for something; False if nothing came."""
        if not self._open:
            time.sleep(min(seconds, END_SECONDS))  # it is about to end, or closed everything and lives on
            return False
        ready, _, _ = select.select(self._open, [], [], seconds)
        for end in ready:
            piece = os.read(end, 1 << 16)
            if not piece:
                self._open.discard(end)
            self.said[self._pipes.index(end)] += piece
        del self.said[1][: -4 * COMPLAINT_BYTES]
        lines = self.said[2].count(b"\n")
        if lines > self._lines:
            if self._lines == 0 and self.said[2].startswith(b"ready\n"):
                with contextlib.suppress(OSError):  # it closed its end
                    os.write(self._secret_pipe, self._secret.encode())
            if self._lines <= self._replies:
                self._heard = time.monotonic()
            self._lines = lines
        return bool(ready)

    def _beyond(self, work: Path, limits: Limits) -> str:
        now = time.monotonic()
        if now - self._heard > self._seconds:
            return "test_seconds"
        if now > self._last:
            return "total_seconds"
        if len(self.said[0]) > OUTPUT_BYTES or len(self.said[2]) > OUTPUT_BYTES:
            return "output"
        if _threads(self._pid) > limits.threads:
            return "threads"
        return _too_much_in(work, limits.file_bytes)


def _too_much_in(work: Path, file_bytes: int) -> str:
    count, total = 0, 0
    with os.scandir(work) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
            count += 1
            if count > FILES or total > FILES_IN_FULL * file_bytes:
                return "files"
    return ""


def _threads(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("\nThreads:")[2].split(maxsplit=1)[0])
    except (OSError, IndexError, ValueError):
        return 1  # it just ended, or there is no /proc


def _ended(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None
