"""One worker process as its pool sees it: started, fed, read from with a deadline, killed."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from entrostat.actors.verifiers.frames import Batch, Hello, Ready, pack, take
from entrostat.protocol.messages import Verdict
from entrostat.protocol.task_settings import TaskSettings

START_SECONDS = 60.0
WRITE_SECONDS = 10.0
MEMORY_BYTES = 2 << 30
CPU_SECONDS_PER_SECOND = 2  # a worker may use so much processor time of its deadline: numpy has threads

T = TypeVar("T")

_verdicts = msgspec.msgpack.Decoder(Verdict)
_ready = msgspec.msgpack.Decoder(Ready)


class WorkerLost(Exception):
    """The process ended, or wrote what no worker of ours writes."""


class WorkerProcess:
    """A process of its own, in a process group of its own, without the parent's environment and secrets."""

    def __init__(self, tasks: Sequence[TaskSettings], deadline_seconds: float) -> None:
        """Starts it; `wait_until_ready` must follow."""
        # What it writes before its limits are set is the reason why it did not start.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 — closed by kill()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "entrostat.actors.verifiers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=_environment(),
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._input.fileno(), False)
        os.set_blocking(self._output.fileno(), False)
        self._received = bytearray()
        self._ending = threading.Lock()
        self._hello = Hello(
            tasks=tuple(tasks),
            memory_bytes=MEMORY_BYTES,
            cpu_seconds=int(deadline_seconds * CPU_SECONDS_PER_SECOND) + 1,
        )

    def wait_until_ready(self) -> None:
        """Returns once it has imported its libraries and set its limits.

        Raises:
            TimeoutError: it took longer than a minute.
            WorkerLost: it ended, or said why it can't work.
        """
        self._write(pack(self._hello))
        ready = self._read(_ready, START_SECONDS)
        if ready.failure:
            raise WorkerLost(ready.failure)

    def send(self, batch: Batch) -> None:
        """Hands over items, all of whose predecessors were answered.

        Raises:
            TimeoutError: it does not read.
            WorkerLost: it ended.
        """
        self._write(pack(batch))

    def verdict(self, deadline_seconds: float) -> Verdict:
        """The verdict on the first item not yet answered, which it began when it answered the one before.

        Raises:
            TimeoutError: none came in time.
            WorkerLost: it ended, or sent something else.
        """
        return self._read(_verdicts, deadline_seconds)

    def interrupt(self) -> None:
        """Ends it and all it started, from any thread; whoever reads from it learns that it is lost."""
        with self._ending:
            # Until it is waited for nobody else can have its number.
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> str:
        """Ends it, all it started and its pipes; says how it had ended, if it had. May be called twice."""
        self.interrupt()
        with self._ending:
            code = self._process.wait()
        complaint = ""
        if not self._complaints.closed:
            self._complaints.seek(0)
            lines = self._complaints.read().decode(errors="replace").strip().splitlines()
            complaint = f": {lines[-1]}" if lines else ""
            self._complaints.close()
        self._input.close()
        self._output.close()
        return f"{_ending(code)}{complaint}"

    def _write(self, data: bytes) -> None:
        view, end = memoryview(data), time.monotonic() + WRITE_SECONDS
        while view:
            try:
                view = view[os.write(self._input.fileno(), view) :]
            except BlockingIOError:
                self._await(self._input.fileno(), select.POLLOUT, end)
            except BrokenPipeError as error:
                raise WorkerLost("it ended before it was given an item") from error

    def _read(self, decoder: msgspec.msgpack.Decoder[T], seconds: float) -> T:
        end = time.monotonic() + seconds
        try:
            while (value := take(self._received, decoder)) is None:
                self._await(self._output.fileno(), select.POLLIN, end)
                piece = os.read(self._output.fileno(), 1 << 16)
                if not piece:
                    raise WorkerLost("it ended")
                self._received += piece
        except msgspec.DecodeError as error:
            raise WorkerLost(f"it sent what is no verdict ({error})") from error
        return value

    @staticmethod
    def _await(descriptor: int, event: int, end: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TimeoutError


def _environment() -> dict[str, str]:
    """What a worker needs to import, and nothing else: no tokens, no proxies."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MPLCONFIGDIR": tempfile.gettempdir(),
    }


def _ending(code: int) -> str:
    if code >= 0:
        return f"it ended with code {code}"
    reasons = {signal.SIGXCPU: "used too much processor time", signal.SIGKILL: "killed, perhaps for want of memory"}
    number = signal.Signals(-code)
    return f"it ended by {number.name} ({reasons.get(number, 'crashed')})"
