"""A confined program: what its process does to itself before it reads the program, and how it runs it.

Standard library only: neither this project's code nor any other library is within the program's reach.
"""

import contextlib
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
    threads: int  # with those of the user's other processes; root is exempt, so the nursery counts too


def give_up_powers() -> None:
    """What the nursery does for itself and all programs: no capabilities, none to be had, and first to be killed.

    Raises:
        OSError: one of it was refused.
    """
    with contextlib.suppress(OSError):  # some sandboxes have no such file
        Path("/proc/self/oom_score_adj").write_text("1000")  # where the machine's memory ends
    libc = ctypes.CDLL(None, use_errno=True)
    _drop_capabilities(libc)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS was refused")


def confine(limits: Limits, calls: seccomp.Filter | None, rules: int, parent: int) -> None:
    """Binds this process for ever; everything untrusted comes after.

    Args:
        limits: as far as the kernel counts them.
        calls: the filter of system calls; None where the kernel has none and programs may run all the same.
        rules: Landlock's, as a file descriptor, which is closed; or NO_RULES.
        parent: it dies with this process.

    Raises:
        OSError: something was refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    _limit(limits)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if rules != NO_RULES:
        landlock.restrict(rules)
        os.close(rules)
    if calls is not None:
        calls.load(os.getpid())


def threads_now() -> int:
    """All threads of the machine, of which the limit counts this user's."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])
    except (OSError, IndexError, ValueError):
        return 1 << 15


def _limit(limits: Limits) -> None:
    for what, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, limits.threads),
    ):
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Gives up what root may do besides owning files."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITIES_VERSION, 0))
    if libc.capset(header, bytes(24)) != 0 and ctypes.get_errno() != errno.ENOSYS:
        raise OSError(ctypes.get_errno(), "capabilities can't be given up")
