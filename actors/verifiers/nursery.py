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
import signal
import struct
import sys
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
from entrostat.actors.verifiers.watch import Watch

LENGTHS = struct.Struct("<III")
CANT_CONFINE = 70  # exit code of a program's process that refused to run it
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
        watch = Watch(pid, [pipes[0][0], pipes[1][0], pipes[2][0]], pipes[3][1], header)
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
