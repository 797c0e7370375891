"""A verifier process: `python -m entrostat.actors.verifiers.worker`, started by the pool and killed by it.

It reads what a language model wrote: it runs with limits, without its parent's environment, and may die at any moment.
"""

import ctypes
import os
import resource
import signal
import sys
from typing import BinaryIO, TypeVar

import msgspec

from entrostat.actors.verifiers.frames import LENGTH, Batch, Hello, Ready, pack
from entrostat.actors.verifiers.judge import Judge
from entrostat.protocol.errors import EntrostatError

OPEN_FILES = 64  # sympy imports parts of itself while it works
PR_SET_PDEATHSIG = 1

T = TypeVar("T")


def main() -> int:
    """Answers batches until the pipe ends."""
    _die_with_parent()
    source, sink = sys.stdin.buffer, os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not write into the replies
    hello = _read(source, msgspec.msgpack.Decoder(Hello))
    if hello is None:
        return 0
    try:
        judge = Judge(hello.tasks)
    except (EntrostatError, ImportError) as error:
        os.write(sink, pack(Ready(failure=str(error))))
        return 1
    _limit(hello)
    os.write(sink, pack(Ready()))
    _serve(judge, source, sink, hello.cpu_seconds)
    return 0


def _serve(judge: Judge, source: BinaryIO, sink: int, cpu_seconds: int) -> None:
    decoder = msgspec.msgpack.Decoder(Batch)
    while (batch := _read(source, decoder)) is not None:
        for item in batch:
            _allow_cpu(cpu_seconds)
            os.write(sink, pack(judge.verify(item.prompt, item.text)))


def _read(source: BinaryIO, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    """The next frame; None at the end of the pipe."""
    header = source.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(header)
    return decoder.decode(source.read(length))


def _die_with_parent() -> None:
    """Asks Linux for SIGKILL when the thread that started this process ends: a hung verifier outlives nobody."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit(hello: Hello) -> None:
    """Bounds memory and open files; forbids writing to files and core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (hello.memory_bytes, hello.memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_cpu(seconds: int) -> None:
    """Lets the process use so much more processor time, then SIGXCPU: the deadline's second line of defence."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    sys.exit(main())
