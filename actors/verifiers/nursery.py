"""The process that programs are forked from: it reads no program, and starts, watches and ends one at a time.

verifier → nursery   a header in JSON, the payload for the program's process, what stands on its input
nursery → verifier   a header in JSON, the program's output, its replies

A fork of this small interpreter takes about a millisecond, a new one twenty; the modules below are there already.
Standard library only: `python -c` with nothing but this package's folder, see `sandbox.py`.
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import resource
import secrets
import select
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

from entrostat.actors.verifiers import harness, landlock, seccomp
from entrostat.actors.verifiers.confined import (
    NO_RULES,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    Limits,
    confine,
    give_up_powers,
    threads_now,
)

LENGTHS = struct.Struct("<III")
CANT_CONFINE = 70  # exit code of a program's process that refused to run it
LOOK_SECONDS = 0.05  # between two looks at its threads and files
END_SECONDS = 0.0005
OUTPUT_BYTES = 1 << 20
COMPLAINT_BYTES = 2000
FILES = 100  # in its folder
FILES_IN_FULL = 4  # times the largest file may be, all together
PR_SET_CHILD_SUBREAPER = 36
PRELOADED = """
abc, array, ast, base64, bisect, calendar, cmath, collections, copy, csv, dataclasses, datetime,
decimal, enum, fractions, functools, hashlib, heapq, io, itertools, json, math, numbers, operator,
os, pathlib, pprint, queue, random, re, statistics, string, struct, textwrap, threading, time,
traceback, types, typing, unicodedata, uuid, zlib
"""
DEVICES = [Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom")]


def main(settings: str) -> None:
    """Serves until its input ends."""
    given = json.loads(settings)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != given["parent"]:
        return
    try:
        nursery = Nursery(given)
    except OSError as error:
        _write(1, _frame({"failure": str(error)}, b"", b""))
        return
    _write(1, _frame({"failure": ""}, b"", b""))
    while (job := _read_job()) is not None:
        header, payload, given_input = job
        _write(1, nursery.run(header, payload, given_input))


def make_quiet() -> None:
    """Only what a program may see stays importable and in the environment."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "entrostat"]:
        del sys.modules[name]
    os.environ.clear()


class Nursery:
    """Starts programs in `work`, which is empty before each."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Loads what programs commonly import, and makes the rules they all live under."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # where programs may fork, nothing survives
        for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
            hard = resource.getrlimit(what)[1]
            resource.setrlimit(what, (hard, hard))
        self._work = Path(given["work"])
        self._limits = Limits(**given["limits"])
        landlock_abi = given["landlock_abi"]
        self._calls = self._filter(landlock_abi, required=not given["unconfined"])
        sys.path = [*sys.path, *given["packages"]]
        for name in [*PRELOADED.split(","), *given["preload"]]:
            with contextlib.suppress(ImportError):
                importlib.import_module(name.strip())
        gc.freeze()  # a program's collector leaves alone, and does not copy, what was there before it
        self._rules = NO_RULES
        if landlock_abi:
            readable = [Path(path) for path in (*sys.path, *given["readable"])]
            self._rules = landlock.make(landlock_abi, readable, DEVICES, self._work)
        make_quiet()
        give_up_powers()

    @staticmethod
    def _filter(landlock_abi: int, *, required: bool) -> seccomp.Filter | None:
        """What programs' system calls go through; None where there is none, and none is required."""
        try:
            made = seccomp.Filter(writing=landlock_abi >= landlock.WRITES_FROM or not required)
        except OSError:
            if required:
                raise
            return None
        return made if required or _is_accepted(made) else None

    def run(self, header: dict[str, Any], payload: bytes, given: bytes) -> bytes:
        """One program from its start to its end, as a reply."""
        stdin = _sealed(given)
        pipes = [os.pipe() for _ in range(4)]  # output, complaints, replies, secret
        me = os.getpid()
        limits = self._limits._replace(threads=self._limits.threads + threads_now())
        pid = os.fork()
        if pid == 0:
            self._become(payload, stdin, pipes, limits, me)
        os.close(stdin)
        for end in (pipes[0][1], pipes[1][1], pipes[2][1], pipes[3][0]):
            os.close(end)
        watch = _Watch(pid, [pipes[0][0], pipes[1][0], pipes[2][0]], pipes[3][1], header)
        try:
            ended = watch.until_it_ends(self._work, self._limits)
        finally:
            _end_all_children()
            for end in (pipes[0][0], pipes[1][0], pipes[2][0], pipes[3][1]):
                os.close(end)
        return _frame({**ended, "emptied": _empty(self._work)}, bytes(watch.said[0]), bytes(watch.said[2]))

    def _become(self, payload: bytes, stdin: int, pipes: list[tuple[int, int]], limits: Limits, parent: int) -> None:
        """In the new process: only the program's own descriptors, then the limits, then the program."""
        try:
            sources = [stdin, pipes[0][1], pipes[1][1], pipes[2][1], pipes[3][0]]
            high = [fcntl.fcntl(source, fcntl.F_DUPFD, 64) for source in sources]
            rules = self._rules if self._rules == NO_RULES else fcntl.fcntl(self._rules, fcntl.F_DUPFD, 64)
            for target, source in enumerate(high):
                os.dup2(source, target)
            if rules != NO_RULES:
                os.dup2(rules, rules := len(high))
            os.closerange(len(high) + (rules != NO_RULES), 1 << 10)
            os.chdir(self._work)
            confine(limits, self._calls, rules, parent)
        except BaseException as error:  # noqa: BLE001 — said to the verifier, then over: nothing of the parent runs on
            os.write(2, f"{type(error).__name__}: {error}".encode())
            os._exit(CANT_CONFINE)
        harness.run(payload)


class _Watch:
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


def _is_accepted(calls: seccomp.Filter) -> bool:
    """Whether this kernel takes the filter: tried by a process that does nothing else."""
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            calls.load(os.getpid())
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


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


def _end_all_children() -> None:
    """A program that may fork leaves children behind; they have become this process's own."""
    with contextlib.suppress(OSError, ChildProcessError):
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while left := [int(child) for child in children.read_text().split()]:
            for child in left:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _empty(work: Path) -> bool:
    """Removes what a program left; False where something stays."""
    with os.scandir(work) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)  # noqa: PTH108 — of an entry just read
    return next(os.scandir(work), None) is None


def _sealed(given: bytes) -> int:
    """A program's input as a file in memory that it can't write."""
    made = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    _write(made, given)
    os.lseek(made, 0, os.SEEK_SET)
    fcntl.fcntl(
        made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    )
    return made


def _frame(header: dict[str, Any], first: bytes, second: bytes) -> bytes:
    said = json.dumps(header).encode()
    return LENGTHS.pack(len(said), len(first), len(second)) + said + first + second


def _read_job() -> tuple[dict[str, Any], bytes, bytes] | None:
    lengths = _read(LENGTHS.size)
    if lengths is None:
        return None
    parts = [_read(length) for length in LENGTHS.unpack(lengths)]
    if parts[0] is None or parts[1] is None or parts[2] is None:
        return None
    return json.loads(parts[0]), parts[1], parts[2]


def _read(size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        piece = os.read(0, size - len(found))
        if not piece:
            return None
        found += piece
    return bytes(found)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
