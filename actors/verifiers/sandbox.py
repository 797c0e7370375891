"""Runs untrusted Python programs, one at a time, each in a confined process of its own."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

import entrostat
from entrostat.actors.verifiers import landlock
from entrostat.actors.verifiers.nursery import CANT_CONFINE, LENGTHS
from entrostat.protocol.errors import TaskError

START_SECONDS = 20.0
SLACK_SECONDS = 5.0  # beyond a program's own deadline: then the nursery itself hangs
PROBE_SECONDS = 5.0
THREADS = 64
MIB = 1 << 20
# The folder that this package lies in is the last on the path only until the nursery's own modules are imported.
START = (
    "import sys; sys.path.append({0!r}); from entrostat.actors.verifiers.nursery import main; sys.path.pop(); "
    "main({1!r})"
)
SHARED_LIBRARIES = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A program's run as the nursery saw it."""

    output: bytes
    replies: bytes
    secret: str  # what the program was told after its own top level
    killed: str  # the limit it was killed for, or ""
    code: int | None  # its exit code, negative for a signal; None if it was killed
    complaint: str  # the last it wrote to standard error
    seconds: float


class Confinable(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine can confine a program by."""

    failure: str  # why a program's system calls can't be filtered; "" if they can
    landlock_abi: int


class SandboxLost(Exception):
    """The nursery ended or hangs."""


class Sandbox:
    """One nursery and the folder its programs work in; started at the first program, and again when it was lost."""

    def __init__(
        self,
        scratch: Path | None,
        *,
        memory_mib: int,
        file_mib: int,
        cpu_seconds: int,
        packages: bool,
        unconfined: bool,
    ) -> None:
        self._scratch = scratch
        self._settings: dict[str, Any] = {
            "limits": {
                "memory_bytes": memory_mib * MIB,
                "file_bytes": file_mib * MIB,
                "cpu_seconds": cpu_seconds,
                "threads": THREADS,
            },
            "packages": _packages() if packages else [],
            "preload": ["numpy"] if packages else [],
            "readable": [*_libraries(), *(_packages() if packages else [])],
            "landlock_abi": landlock.abi(),
            "unconfined": unconfined,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._work: Path | None = None

    def run(
        self, program: bytes, given: bytes = b"", *, test_seconds: float, total_seconds: float, replies: int = 0
    ) -> Run:
        """Runs one program; `program` is the harness's payload, `given` stands on its input.

        Raises:
            SandboxLost: it could not be run; says why.
        """
        header = {"test_seconds": test_seconds, "total_seconds": total_seconds, "replies": replies}
        said = json.dumps(header).encode()
        job = LENGTHS.pack(len(said), len(program), len(given)) + said + program + given
        process = self._ready()
        try:
            head, output, answers = self._exchange(process, job, total_seconds + SLACK_SECONDS)
        except SandboxLost:
            self.close()
            raise
        if not head.pop("emptied"):
            self.close()
        if head["code"] == CANT_CONFINE and not answers:
            raise SandboxLost(f"a program can't be confined: {head['complaint']}")
        return Run(output=output, replies=answers, **head)

    def close(self) -> None:
        """Ends the nursery and whatever runs, and removes the folder."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        work, self._work = self._work, None
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)

    def _ready(self) -> subprocess.Popen[bytes]:
        """A living nursery."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._work = Path(tempfile.mkdtemp(prefix="programs-", dir=self._scratch))
        settings = json.dumps({**self._settings, "work": str(self._work), "parent": os.getpid()})
        root = str(Path(entrostat.__file__).parent.parent)
        # Fixed hashes: the same program has the same output every time. No environment, no site-packages.
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-S", "-B", "-c", START.format(root, settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._work,
            env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
            bufsize=0,
        )
        try:
            head, _, _ = self._exchange(self._process, b"", START_SECONDS)
            if head["failure"]:
                raise SandboxLost(head["failure"])
        except SandboxLost:
            self.close()
            raise
        return self._process

    def _exchange(
        self, process: subprocess.Popen[bytes], job: bytes, seconds: float
    ) -> tuple[dict[str, Any], bytes, bytes]:
        assert process.stdin is not None
        assert process.stdout is not None
        source, sink, end = process.stdout.fileno(), process.stdin.fileno(), time.monotonic() + seconds
        os.set_blocking(sink, False)
        view = memoryview(job)
        try:
            while view:
                _await(sink, select.POLLOUT, end)
                view = view[os.write(sink, view) :]
        except BrokenPipeError as error:
            raise SandboxLost("the process that starts programs ended") from error
        lengths = LENGTHS.unpack(_read(source, LENGTHS.size, end))
        head, first, second = (_read(source, length, end) for length in lengths)
        return json.loads(head), first, second


@lru_cache(maxsize=1)
def confinable() -> Confinable:
    """Tries it once: a process that confines itself and does nothing else."""
    failure = "Linux is needed" if sys.platform != "linux" else ""
    if not failure:
        with tempfile.TemporaryDirectory(prefix="entrostat-probe-") as folder:
            sandbox = Sandbox(Path(folder), memory_mib=512, file_mib=1, cpu_seconds=5, packages=False, unconfined=False)
            payload = msgspec.json.encode({"program": "", "bare": False, "calls": None, "asserts": None})
            try:
                sandbox.run(payload, test_seconds=PROBE_SECONDS, total_seconds=PROBE_SECONDS)
            except (SandboxLost, OSError) as error:
                failure = str(error)
            finally:
                sandbox.close()
    return Confinable(failure=failure, landlock_abi=landlock.abi() if sys.platform == "linux" else 0)


def require_confinement() -> None:
    """Refuses where programs can't be confined.

    Raises:
        TaskError: says what is missing.
    """
    found = confinable()
    if found.failure:
        raise TaskError(
            f"the code verifier can't confine programs here: {found.failure}; it needs Linux on x86_64 or aarch64 and "
            "seccomp filters (in a container: a seccomp profile that allows prctl(PR_SET_SECCOMP)); to run what a "
            "model wrote without them, set unconfined = true in [tasks.verifier]"
        )


def _read(source: int, size: int, end: float) -> bytes:
    found = bytearray()
    while len(found) < size:
        _await(source, select.POLLIN, end)
        piece = os.read(source, min(size - len(found), 1 << 20))
        if not piece:
            raise SandboxLost("the process that starts programs ended")
        found += piece
    return bytes(found)


def _await(descriptor: int, event: int, end: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise SandboxLost("the process that starts programs does not answer")


def _packages() -> list[str]:
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def _libraries() -> list[str]:
    """Python's own folders besides its path, and those of shared libraries."""
    own = [str(Path(base) / name) for base in (sys.base_prefix, sys.base_exec_prefix) for name in ("lib", "lib64")]
    return sorted({*own, *SHARED_LIBRARIES})
