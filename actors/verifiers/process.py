"""The fork server and its workers as the pool sees them. Nothing here waits, but the server's end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from entrostat.actors.verifiers.channel import Channel
from entrostat.actors.verifiers.frames import Fork, Hello, Kill, ServerReply, WorkerReply, pack
from entrostat.actors.verifiers.inbox import Job
from entrostat.actors.verifiers.judge import kinds_of
from entrostat.actors.verifiers.scratch import make_root, remove
from entrostat.protocol.task_settings import TaskSettings
from entrostat.protocol.verifier_settings import Code

MEMORY_BYTES = 2 << 30
CPU_SECONDS_PER_SECOND = 2  # a worker may use so much processor time of its deadline: numpy has threads
END_SECONDS = 4.0
SERVER = "entrostat.actors.verifiers.server"

_server_replies: "msgspec.msgpack.Decoder[ServerReply]" = msgspec.msgpack.Decoder(ServerReply)
_worker_replies: "msgspec.msgpack.Decoder[WorkerReply]" = msgspec.msgpack.Decoder(WorkerReply)


class Worker:
    """One forked process: its channel, and what it was handed and did not answer yet."""

    def __init__(self, number: int, end: socket.socket) -> None:
        self.number = number
        self.channel: Channel[WorkerReply] = Channel(end, _worker_replies)
        self.jobs: deque[Job | None] = deque()  # it judges the first; None: taken back, its verdict is not wanted
        self.ready = False
        self.since = time.monotonic()  # when it began its first job, or was asked for


class ServerProcess:
    """A process of its own, in a session of its own, without the parent's environment and secrets.

    It ends with the thread that made it, and its workers with it.

    Raises:
        OSError: no process, socket or folder can be had.
    """

    def __init__(self, tasks: Sequence[TaskSettings], deadline_seconds: float) -> None:
        self.root = make_root()
        self.pids: dict[int, int] = {}  # of living workers, by number
        self.ready = False
        self.since = time.monotonic()
        self._numbers = 0
        ours, theirs = socket.socketpair()
        # What it writes before it is ready is the reason why it did not start.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 — closed by end()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", SERVER, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
                env=_environment(),
                start_new_session=True,
            )
        except OSError:
            ours.close()
            self._complaints.close()
            remove(self.root)
            raise
        finally:
            theirs.close()
        self.channel: Channel[ServerReply] = Channel(ours, _server_replies)
        hello = Hello(
            tasks=tuple(tasks),
            root=str(self.root),
            memory_bytes=MEMORY_BYTES,
            cpu_seconds=int(deadline_seconds * CPU_SECONDS_PER_SECOND) + 1,
            loose=Code in kinds_of(tasks),
        )
        self.channel.send(pack(hello))

    def fork(self) -> Worker:
        """Asks for a worker; it is one when its first reply is `Ready`.

        Raises:
            OSError: no socket or folder can be had.
        """
        self._numbers += 1
        scratch = self.root / f"worker-{self._numbers}"
        scratch.mkdir(mode=0o700)
        ours, theirs = socket.socketpair()
        self.channel.send(pack(Fork(number=self._numbers, scratch=str(scratch))), theirs)
        return Worker(self._numbers, ours)

    def kill(self, number: int) -> None:
        """Asks for the end of a worker and of all that it started; `Ended` follows."""
        self.channel.send(pack(Kill(number=number)))

    def end(self) -> str:
        """Ends it and all below it, removes its folder; says how it had ended, if it had."""
        self.channel.close()
        self._process.terminate()
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code != 0:
            # It did not tidy up. Numbers are given in turn: those of a moment ago are nobody else's yet.
            for pid in self.pids.values():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        remove(self.root)
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        self._complaints.close()
        return f"{ending(code)}{f': {lines[-1]}' if lines else ''}"


def _environment() -> dict[str, str]:
    """What a verifier needs to import, and nothing else: no tokens, no proxies."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MPLCONFIGDIR": tempfile.gettempdir(),
    }


def ending(code: int) -> str:
    """How a process ended, in words; a negative code is a signal's number."""
    if code >= 0:
        return f"it ended with code {code}"
    reasons = {signal.SIGXCPU: "used too much processor time", signal.SIGKILL: "killed, perhaps for want of memory"}
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"it ended by signal {-code}"
    return f"it ended by {number.name} ({reasons.get(number, 'crashed')})"
