"""The filter as a program: a small interpreter runs it on calls as the kernel would."""

import os
import struct

import pytest

from entrostat.actors.verifiers import seccomp

PID = 4242
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
# From asm/unistd_64.h and asm-generic/unistd.h, by hand.
NUMBERS = {
    "read": (0, 63),
    "write": (1, 64),
    "openat": (257, 56),
    "unlinkat": (263, 35),
    "mmap": (9, 222),
    "futex": (202, 98),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
    "wait4": (61, 260),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "socketpair": (53, 199),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setresuid": (117, 147),
    "setgroups": (116, 159),
    "capset": (126, 91),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_setup": (206, 0),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "reboot": (169, 142),
    "fchmodat": (268, 53),
    "fchmod": (91, 52),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "fsetxattr": (190, 7),
    "utimensat": (280, 88),
    "mkdirat": (258, 34),
    "symlinkat": (266, 36),
    "linkat": (265, 37),
    "mknodat": (259, 33),
    "personality": (135, 92),
    "prlimit64": (302, 261),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "seccomp": (317, 277),
    "openat2": (437, 437),
    "open_by_handle_at": (304, 265),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "sethostname": (170, 161),
    "clock_settime": (227, 112),
    "vhangup": (153, 58),
    "truncate": (76, 45),
}
ONLY_X86 = {"fork": 57, "vfork": 58, "chmod": 90, "chown": 92, "iopl": 172, "ioperm": 173, "uselib": 134, "link": 86}
ALWAYS = ("read", "write", "mmap", "futex", "exit_group", "getrandom", "wait4")
BY_ARGUMENT = (
    "kill",
    "tkill",
    "tgkill",
    "clone",
    "clone3",
    "sendto",
    "socketpair",
    "prlimit64",
    "prctl",
    "fcntl",
    "ioctl",
)
FILES = ("openat", "unlinkat", "truncate")
NEVER = tuple(name for name in NUMBERS if name not in (*ALWAYS, *BY_ARGUMENT, *FILES))
BOTH = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def outcome(machine: str, number: int, *arguments: int, writing: bool = True, architecture: int | None = None) -> int:
    """What the kernel would do with a call; the interpreter knows the instructions the filter uses."""
    given = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack(
        "<IIQ6Q", number, architecture or ARCHITECTURE[machine], 0, *(value & (2**64 - 1) for value in given)
    )
    instructions = seccomp.program(machine, PID, writing)
    assert len(instructions) <= 4096
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, constant = instructions[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            loaded = struct.unpack_from("<I", data, constant)[0]
        elif code == 0x06:  # BPF_RET | BPF_K
            return constant
        else:  # BPF_JMP | BPF_K, and BPF_JEQ, BPF_JGE or BPF_JSET
            holds = {0x15: loaded == constant, 0x35: loaded >= constant, 0x45: bool(loaded & constant)}[code]
            at += if_true if holds else if_false


def number(machine: str, name: str) -> int:
    return NUMBERS[name][0 if machine == "x86_64" else 1]


def called(machine: str, name: str, *arguments: int, writing: bool = True) -> int:
    return outcome(machine, number(machine, name), *arguments, writing=writing)


@BOTH
def test_what_every_program_needs_is_allowed(machine: str) -> None:
    assert {name: called(machine, name) for name in (*ALWAYS, *FILES)} == dict.fromkeys((*ALWAYS, *FILES), ALLOW)


@BOTH
def test_what_reaches_beyond_the_process_is_denied(machine: str) -> None:
    assert {name: called(machine, name) for name in NEVER} == dict.fromkeys(NEVER, EPERM)


def test_old_calls_of_x86_are_denied_too() -> None:
    assert {name: outcome("x86_64", number) for name, number in ONLY_X86.items()} == dict.fromkeys(ONLY_X86, EPERM)


@BOTH
def test_no_number_is_allowed_that_no_table_names(machine: str) -> None:
    named = {
        number
        for table in (seccomp.ALWAYS, seccomp.FILES, seccomp.CONDITIONAL)
        for number in seccomp.numbers(table, machine).values()
    }
    assert {outcome(machine, number) for number in range(seccomp.NEWEST + 1) if number not in named} == {EPERM}


@BOTH
def test_another_architecture_is_death(machine: str) -> None:
    i386, arm = 0x40000003, 0x40000028
    for architecture in (i386, arm, ARCHITECTURE["aarch64" if machine == "x86_64" else "x86_64"]):
        assert outcome(machine, 0, architecture=architecture) == KILL


@BOTH
def test_numbers_from_later_kernels_and_of_x32_do_not_exist(machine: str) -> None:
    assert {outcome(machine, number) for number in (463, 1000, 0x40000000, 0x40000001, 2**32 - 1)} == {ENOSYS}


@BOTH
@pytest.mark.parametrize("name", ["kill", "tkill", "tgkill"])
def test_signals_go_to_oneself_alone(machine: str, name: str) -> None:
    assert called(machine, name, PID, 9) == ALLOW
    assert {called(machine, name, pid, 9) for pid in (0, 1, -1, -PID, PID + 1)} == {EPERM}


@BOTH
def test_threads_are_allowed_and_processes_and_namespaces_are_not(machine: str) -> None:
    thread = 0x3D0F00  # what the C library's pthread_create passes
    assert called(machine, "clone", thread) == ALLOW
    namespaces = (0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
    assert {called(machine, "clone", thread | namespace) for namespace in namespaces} == {EPERM}
    assert {called(machine, "clone", flags) for flags in (17, 0x01200011, 0x4111)} == {
        EPERM
    }  # fork, C library's, vfork
    assert called(machine, "clone3", 0) == ENOSYS


@BOTH
def test_without_landlock_files_are_only_read(machine: str) -> None:
    def opened(flags: int) -> int:
        return called(machine, "openat", -100, 0, flags, writing=False)

    assert {opened(flags) for flags in (os.O_RDONLY, os.O_CLOEXEC, os.O_DIRECTORY, os.O_PATH)} == {ALLOW}
    writes = (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE)
    assert {opened(flags | os.O_CLOEXEC) for flags in writes} == {EPERM}
    assert {called(machine, name, writing=False) for name in ("unlinkat", "truncate")} == {EPERM}


@BOTH
def test_only_pairs_of_streams_are_sockets_and_they_have_no_address(machine: str) -> None:
    unix, inet = 1, 2
    assert called(machine, "socketpair", unix, 1) == ALLOW
    assert called(machine, "socketpair", unix, 1 | os.O_CLOEXEC | os.O_NONBLOCK) == ALLOW
    assert {called(machine, "socketpair", *kind) for kind in ((unix, 2), (unix, 5), (inet, 1))} == {EPERM}
    assert called(machine, "sendto", 5, 0, 1, 0, 0, 0) == ALLOW
    assert {called(machine, "sendto", 5, 0, 1, 0, address, 16) for address in (4096, 1 << 32)} == {EPERM}


@BOTH
def test_arguments_that_reach_others_are_denied(machine: str) -> None:
    assert {called(machine, "prlimit64", pid) for pid in (0, PID)} == {ALLOW}
    assert {called(machine, "prlimit64", pid) for pid in (1, PID - 1)} == {EPERM}
    set_pdeathsig, set_dumpable, set_ptracer, set_name = 1, 4, 0x59616D61, 15
    assert {called(machine, "prctl", what) for what in (set_pdeathsig, set_dumpable, set_ptracer, 22, 24)} == {EPERM}
    assert called(machine, "prctl", set_name) == ALLOW
    set_owner, set_signal, set_owner_ex, set_lease, add_seals = 8, 10, 15, 1024, 1033
    denied = (set_owner, set_signal, set_owner_ex, set_lease, add_seals)
    assert {called(machine, "fcntl", 0, what) for what in denied} == {EPERM}
    push_input, set_pgrp = 0x5412, 0x8902
    assert {called(machine, "ioctl", 0, what) for what in (push_input, set_pgrp, 0x8901)} == {EPERM}
