"""A confined program: what its process does to itself before it reads the program, and how it runs it.

Standard library only: neither this project's code nor any other library is within the program's reach.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
from pathlib import Path
from typing import NamedTuple

from entrostat.actors.verifiers import landlock, seccomp

OPEN_FILES = 32
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITIES_VERSION = 0x20080522
NO_RULES = -1


class Limits(NamedTuple):
    """What a program may use."""

    memory_bytes: int
    file_bytes: int  # of one file
    cpu_seconds: int
    threads: int


class Confinement(NamedTuple):
    """What this kernel can confine a program by, and whether it must."""

    landlock_abi: int  # 0: none
    required: bool  # a program whose system calls can't be filtered is not run


def confine(limits: Limits, confinement: Confinement, rules: int, parent: int) -> None:
    """Binds this process for ever; everything untrusted comes after.

    Args:
        limits: as far as the kernel counts them.
        confinement: what is to be used.
        rules: Landlock's, as a file descriptor, which is closed; or NO_RULES.
        parent: it dies with this process.

    Raises:
        OSError: something is required and was refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    _expect_to_be_killed_first()
    _limit(limits)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _drop_capabilities(libc)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS was refused")
    if rules != NO_RULES:
        landlock.restrict(rules)
        os.close(rules)
    try:
        seccomp.load(os.getpid(), writing=confinement.landlock_abi >= landlock.WRITES_FROM or not confinement.required)
    except OSError:
        if confinement.required:
            raise


def _expect_to_be_killed_first() -> None:
    """Where the machine's memory ends, Linux takes this process before any other."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return  # some sandboxes have no such file


def _limit(limits: Limits) -> None:
    for what, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, _threads_now() + limits.threads),  # root is exempt: the nursery counts too
    ):
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))


def _threads_now() -> int:
    """All threads of the machine, which the limit counts this user's part of."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])
    except (OSError, IndexError, ValueError):
        return 1 << 15


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Gives up what root may do besides owning files."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITIES_VERSION, 0))
    if libc.capset(header, bytes(24)) != 0 and ctypes.get_errno() != errno.ENOSYS:
        raise OSError(ctypes.get_errno(), "capabilities can't be given up")
