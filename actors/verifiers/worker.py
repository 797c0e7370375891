"""A verifier process, forked by the fork server: it answers batches until its socket ends.

It reads what a language model wrote: it runs with limits, without its parent's environment, and may die at any moment.
"""

import contextlib
import os
import resource
import socket
from pathlib import Path
from typing import BinaryIO

import msgspec

from entrostat.actors.verifiers.frames import LENGTH, Batch, Hello, Ready, Spent, pack
from entrostat.actors.verifiers.judge import Judge, failed
from entrostat.protocol.messages import Verdict

OPEN_FILES = 64  # sympy imports parts of itself while it works
LARGEST_BYTES = 1 << 30  # a worker that was once so large goes after its verdict: Python seldom gives memory back
LONGEST_TEXT = 4096  # characters of a verdict's `answer`, and of its `detail`
NICE = 5  # what feeds it, and draws the samples, goes first
OUT_OF_MEMORY_SCORE = 800  # of 1,000: where the machine's memory ends, Linux takes a worker before an engine


def run(judge: Judge, hello: Hello, end: socket.socket, scratch: Path) -> None:
    """Answers batches until the socket ends."""
    _limit(hello)
    try:
        here = judge.within(scratch)
    except Exception as error:  # noqa: BLE001 — a user's function may raise anything: it becomes the reason in the log
        end.sendall(pack(Ready(failure=f"{type(error).__name__}: {error}"[:1000])))
        return
    end.sendall(pack(Ready()))
    with end.makefile("rb") as source:
        _serve(here, source, end, hello.cpu_seconds)


def _serve(judge: Judge, source: BinaryIO, end: socket.socket, cpu_seconds: int) -> None:
    decoder, me = msgspec.msgpack.Decoder(Batch), os.getpid()
    while (batch := _read(source, decoder)) is not None:
        for item in batch:
            _allow_cpu(cpu_seconds)
            verdict = judge.verify(item.prompt, item.text)
            if os.getpid() != me:
                os._exit(0)  # a child that a user's function made: a second verdict would be taken for the next item's
            end.sendall(_packed(verdict))
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > LARGEST_BYTES:
                end.sendall(pack(Spent()))
                return


def _packed(verdict: Verdict) -> bytes:
    try:
        return pack(
            msgspec.structs.replace(verdict, answer=verdict.answer[:LONGEST_TEXT], detail=verdict.detail[:LONGEST_TEXT])
        )
    except UnicodeEncodeError:
        return pack(failed("the verifier's verdict holds half a surrogate pair, which can't be sent"))


def _read(source: BinaryIO, decoder: msgspec.msgpack.Decoder[Batch]) -> Batch | None:
    """The next batch; None at the end of the socket."""
    header = source.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(header)
    body = source.read(length)
    return decoder.decode(body) if len(body) == length else None


def _limit(hello: Hello) -> None:
    """Bounds memory and open files; forbids writing to files and core dumps.

    Where a verifier has children, those may raise the soft limits on files to their own.
    """
    with contextlib.suppress(OSError):  # some sandboxes have no such file
        Path("/proc/self/oom_score_adj").write_text(str(OUT_OF_MEMORY_SCORE))
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _bound(resource.RLIMIT_AS, hello.memory_bytes, hard=not hello.loose)
    _bound(resource.RLIMIT_NOFILE, OPEN_FILES, hard=not hello.loose)
    _bound(resource.RLIMIT_FSIZE, 0, hard=not hello.loose)


def _bound(what: int, limit: int, *, hard: bool) -> None:
    most = resource.getrlimit(what)[1]
    soft = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(what, (soft, soft if hard else most))


def _allow_cpu(seconds: int) -> None:
    """Lets the process use so much more processor time, then SIGXCPU: the deadline's second line of defence."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + seconds + 1
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
