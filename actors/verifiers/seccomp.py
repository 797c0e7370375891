"""The seccomp filter of a confined program: system calls it may make; every other one fails with EPERM.

A list of what is allowed: a call that is new, or that nobody thought of, is denied. What reads and writes open files,
asks for memory, time or a thread is there; network, other processes, namespaces and privileges are not.
Numbers are those of Linux' `asm/unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64).
"""

import ctypes
import errno
import os
import platform
import struct

# name, number on x86_64, number on aarch64
ALWAYS = """
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
    close 3 57, close_range 436 436, lseek 8 62, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59,
    sendfile 40 71, copy_file_range 326 285, fsync 74 82, fdatasync 75 83, ftruncate 77 46, fallocate 285 47,
    fadvise64 221 223, stat 4 -, lstat 6 -, fstat 5 80, newfstatat 262 79, statx 332 291, statfs 137 43,
    fstatfs 138 44, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78,
    getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, umask 95 166, poll 7 -,
    ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
    epoll_wait 232 -, epoll_pwait 281 22, eventfd 284 -, eventfd2 290 19, timerfd_create 283 85,
    timerfd_settime 286 86, timerfd_gettime 287 87, signalfd 282 -, signalfd4 289 74, mmap 9 222, mprotect 10 226,
    munmap 11 215, mremap 25 216, brk 12 214, madvise 28 233, mincore 27 232, msync 26 227, membarrier 324 283,
    rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136,
    rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128, pause 34 -,
    alarm 37 -, getitimer 36 102, setitimer 38 103, timer_create 222 107, timer_settime 223 110,
    timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111, nanosleep 35 101,
    clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -,
    times 100 153, getpid 39 172, gettid 186 178, getppid 110 173, getpgrp 111 -, getpgid 121 155, getsid 124 156,
    getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158, getresuid 118 148,
    getresgid 120 150, capget 125 90, uname 63 160, sysinfo 99 179, getrusage 98 165, getrlimit 97 163,
    setrlimit 160 164, getpriority 140 141, getcpu 309 168, getrandom 318 278, sched_yield 24 124,
    sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125,
    sched_get_priority_min 147 126, futex 202 98, futex_waitv 449 449, set_robust_list 273 99,
    get_robust_list 274 100, set_tid_address 218 96, rseq 334 293, exit 60 93, exit_group 231 94, wait4 61 260,
    waitid 247 95, recvfrom 45 207, shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209
"""
# Landlock says where: without it, only opening for reading is allowed
FILES = """
    open 2 -, openat 257 56, creat 85 -, rename 82 -, renameat 264 38, renameat2 316 276, unlink 87 -,
    unlinkat 263 35, truncate 76 45
"""
# by their arguments
CONDITIONAL = """
    kill 62 129, tkill 200 130, tgkill 234 131, clone 56 220, clone3 435 435, prctl 157 167, prlimit64 302 261,
    fcntl 72 25, ioctl 16 29, socketpair 53 199, sendto 44 206
"""

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
X32 = 0x40000000  # numbers from here on are the x32 calls of x86_64
NEWEST = 462  # numbers above are unknown here: they fail with ENOSYS, so that a library does without

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
DENY, UNKNOWN = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS

# BPF: the code's class, size and source in one number
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; each argument has 8 bytes, low ones first

CLONE_THREAD = 0x00010000
CLONE_NEW_ANYTHING = 0x7E020080  # namespaces: mount, cgroup, uts, ipc, user, pid, net, time
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | (getattr(os, "O_TMPFILE", 0) & ~0o240000)
PRCTL = (15, 16, 3, 21, 23, 30, 39)  # PR_SET_NAME, PR_GET_NAME and others that only ask
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032, 1034)  # no F_SETOWN: it sends signals to others
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal, bytes to read, blocking, close on exec
AF_UNIX, SOCK_STREAM, SOCK_FLAGS = 1, 1, os.O_NONBLOCK | os.O_CLOEXEC
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2

PLACE_OF_PID = 0xFEEDF00D  # no number, flag or command of the filter's own
INSTRUCTION = struct.Struct("=HBBI")
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def numbers(table: str, machine: str) -> dict[str, int]:
    """The calls of a table that this architecture has."""
    column = ARCHITECTURES[machine][0]
    rows = (row.split() for row in table.replace("\n", " ").split(","))
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def program(machine: str, pid: int, writing: bool) -> list[Instruction]:
    """The filter of the process `pid`; `writing`: Landlock says which files it may write."""
    always, files, special = (numbers(table, machine) for table in (ALWAYS, FILES, CONDITIONAL))
    found: list[Instruction] = [
        _load(ARCHITECTURE),
        (EQUAL, 1, 0, ARCHITECTURES[machine][1]),
        _end(KILL),
        _load(NUMBER),
        (AT_LEAST, 0, 1, NEWEST + 1),  # x32 too
        _end(UNKNOWN),
    ]
    rules = {number: [_end(ALLOW)] for number in always.values()}
    for name, number in files.items():
        rules[number] = [_end(ALLOW)] if writing else _reading(name)
    by_argument = _by_argument(pid)
    for name, number in special.items():
        rules[number] = by_argument[name]
    for number, rule in rules.items():
        found += [(EQUAL, 0, len(rule), number), *rule]
    return [*found, _end(DENY)]


class Filter:
    """A filter made beforehand, into which a process has but to write its number: what a fork does should be little."""

    def __init__(self, writing: bool) -> None:
        """Makes it for this architecture.

        Raises:
            OSError: none is known for it.
        """
        machine = platform.machine()
        if machine not in ARCHITECTURES:
            raise OSError(errno.ENOSYS, f"no list of system calls for {machine}; expected x86_64 or aarch64")
        instructions = program(machine, PLACE_OF_PID, writing)
        self._places = [number for number, each in enumerate(instructions) if each[3] == PLACE_OF_PID]
        self._code = ctypes.create_string_buffer(b"".join(INSTRUCTION.pack(*each) for each in instructions))
        fields = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(self._code))
        self._header = ctypes.create_string_buffer(fields)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def load(self, pid: int) -> None:
        """Puts this thread, and those it starts, under it for ever; `PR_SET_NO_NEW_PRIVS` must be set.

        Raises:
            OSError: this kernel has no such filters, or something forbids them.
        """
        for place in self._places:
            struct.pack_into("=I", self._code, place * INSTRUCTION.size + INSTRUCTION.size - 4, pid)
        header = ctypes.c_void_p(ctypes.addressof(self._header))
        if self._libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def _load(offset: int) -> Instruction:
    return (LOAD, 0, 0, offset)


def _end(action: int) -> Instruction:
    return (RETURN, 0, 0, action)


def _argument(index: int, high: bool = False) -> Instruction:
    return _load(ARGUMENTS + 8 * index + (4 if high else 0))


def _one_of(index: int, values: tuple[int, ...]) -> list[Instruction]:
    tests = [each for value in values for each in ((EQUAL, 0, 1, value), _end(ALLOW))]
    return [_argument(index), *tests, _end(DENY)]


def _reading(name: str) -> list[Instruction]:
    """Opening for reading only."""
    flags = {"open": 1, "openat": 2}
    if name not in flags:
        return [_end(DENY)]
    return [_argument(flags[name]), (ANY_BIT, 0, 1, WRITES), _end(DENY), _end(ALLOW)]


def _by_argument(pid: int) -> dict[str, list[Instruction]]:
    return {
        "kill": _one_of(0, (pid,)),
        "tkill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        "clone": [
            _argument(0),
            (ANY_BIT, 0, 1, CLONE_NEW_ANYTHING),
            _end(DENY),
            (ANY_BIT, 0, 1, CLONE_THREAD),
            _end(ALLOW),
            _end(DENY),
        ],
        "clone3": [_end(UNKNOWN)],  # its flags lie in memory; libraries use clone instead
        "prctl": _one_of(0, PRCTL),
        "prlimit64": _one_of(0, (0, pid)),
        "fcntl": _one_of(1, FCNTL),
        "ioctl": _one_of(1, IOCTL),
        # Both ends stay here, and a stream can't be sent elsewhere: what asyncio wakes itself with.
        "socketpair": [
            _argument(0),
            (EQUAL, 1, 0, AF_UNIX),
            _end(DENY),
            *_one_of(1, tuple(SOCK_STREAM | flags for flags in (0, os.O_NONBLOCK, os.O_CLOEXEC, SOCK_FLAGS))),
        ],
        "sendto": [
            _argument(4),
            (EQUAL, 1, 0, 0),
            _end(DENY),
            _argument(4, high=True),
            (EQUAL, 1, 0, 0),
            _end(DENY),
            _end(ALLOW),
        ],
    }
