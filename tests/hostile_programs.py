"""Programs that attack what runs them. Each prints 42, which is what its test expects, only if its attack succeeds."""

from typing import NamedTuple

FOREVER = "\nwhile True: pass"


class Hostile(NamedTuple):
    name: str
    code: str
    said: str = ""  # a part of the verdict's detail
    status: str = "wrong"


def _raw(number: str, *arguments: object) -> str:
    """A system call past every library; prints 42 if it succeeds."""
    given = ", ".join(str(argument) for argument in arguments)
    return f"""
import ctypes, platform
x86, arm = {number}
libc = ctypes.CDLL(None, use_errno=True)
result = libc.syscall(x86 if platform.machine() == "x86_64" else arm, {given or "0"})
if result >= 0: print(42)
raise OSError(ctypes.get_errno(), "refused")
"""


DENIED = "PermissionError"

PROGRAMS: tuple[Hostile, ...] = (
    # processes
    Hostile("fork bomb", "import os\nwhile True: os.fork(); print(42)", DENIED),
    Hostile("fork", "import os\nos.fork()\nprint(42)", DENIED),
    Hostile("vfork", _raw("(58, 220)"), DENIED),
    Hostile("clone3", _raw("(435, 435)", "None", "0"), "[Errno 38]"),
    Hostile("subprocess", "import subprocess\nsubprocess.run(['true'])\nprint(42)", DENIED),
    Hostile("execve", "import os\nos.execv('/bin/true', ['true'])", DENIED),
    Hostile("multiprocessing", "import multiprocessing as m\nm.Process(target=print).start()\nprint(42)", DENIED),
    Hostile("new session", "import os\nos.setsid()\nprint(42)", DENIED),
    Hostile("new group", "import os\nos.setpgid(0, 0)\nprint(42)", DENIED),
    Hostile(
        "threads without end",
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "thread",
    ),
    # signals
    Hostile("kills its parent", "import os\nos.kill(os.getppid(), 9)\nprint(42)", DENIED),
    Hostile("kills process 1", "import os\nos.kill(1, 15)\nprint(42)", DENIED),
    Hostile("kills its group", "import os\nos.killpg(0, 9)\nprint(42)", DENIED),
    Hostile("kills everything", "import os\nos.kill(-1, 9)\nprint(42)", DENIED),
    Hostile("kills through a pidfd", "import os\nfd = os.pidfd_open(os.getppid())\nprint(42)", DENIED),
    Hostile("tkill", "import os\n" + _raw("(200, 130)", "os.getppid()", "9"), DENIED),
    Hostile("tgkill", "import os\n" + _raw("(234, 131)", "os.getppid()", "os.getppid()", "9"), DENIED),
    Hostile("queues a signal", "import os\n" + _raw("(129, 138)", "os.getppid()", "9", "None"), DENIED),
    Hostile(
        "signals through a file's owner",
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())\nprint(42)",
        DENIED,
    ),
    Hostile(
        "ignores signals and stays",
        "import signal\nfor n in (15, 24, 2, 1, 14): signal.signal(n, signal.SIG_IGN)" + FOREVER,
        "test_seconds",
        "timeout",
    ),
    Hostile("outlives its parent's death", _raw("(157, 167)", "1", "0", "0", "0", "0"), DENIED),
    Hostile("kills itself", "import os\nos.kill(os.getpid(), 9)", "SIGKILL"),
    Hostile("crashes", "import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    # time and memory
    Hostile("spins", "while True: pass", "test_seconds", "timeout"),
    Hostile("sleeps", "import time\ntime.sleep(3600)\nprint(42)", "test_seconds", "timeout"),
    Hostile("waits for ever at its end", "import atexit, time\natexit.register(time.sleep, 99)", "seconds", "timeout"),
    Hostile("a number without end", "print(9**9**9)", "test_seconds", "timeout"),
    Hostile("allocates without end", "held = []\nwhile True: held.append(bytearray(1 << 24))", "MemoryError"),
    Hostile("allocates at once", "x = 'a' * (1 << 40)\nprint(42)", "MemoryError"),
    Hostile("maps memory", "import mmap\nheld = [mmap.mmap(-1, 1 << 30) for _ in range(9)]\nprint(42)", "OSError"),
    Hostile("raises its limits", "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))\nprint(42)", "ValueError"),
    Hostile("shared memory", _raw("(29, 194)", "0", "1 << 20", "0o1600"), DENIED),
    Hostile("a file in memory", "import os\nos.memfd_create('x')\nprint(42)", DENIED),
    Hostile("recursion", "def f(): return f()\nf()\nprint(42)", "RecursionError"),
    Hostile(
        "recursion without a limit",
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n def __repr__(self): return repr(self)\n"
        "repr(A())\nprint(42)",
    ),
    Hostile("another priority", "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\nprint(42)", DENIED),
    Hostile("another processor", "import os\nos.sched_setaffinity(os.getppid(), {0})\nprint(42)", DENIED),
    Hostile("another's limits", "import resource as r, os\nr.prlimit(os.getppid(), r.RLIMIT_CPU)\nprint(42)", DENIED),
    # files
    Hostile("writes to the temporary folder", "open('/tmp/hostile-left', 'w').write('x')\nprint(42)", DENIED),
    Hostile("writes beside its folder", "open('../hostile-left', 'w').write('x')\nprint(42)", DENIED),
    Hostile("writes to shared memory", "open('/dev/shm/hostile-left', 'w').write('x')\nprint(42)", DENIED),
    Hostile("writes into Python", "import os\nopen(os.__file__, 'a').write('#')\nprint(42)", DENIED),
    Hostile("a large file", "f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", "File too large"),
    Hostile(
        "many files", "for n in range(10**6): open(f'f{n}', 'w').close()\nimport time; time.sleep(60)", "too much files"
    ),
    Hostile(
        "many large files",
        "for n in range(90):\n with open(f'f{n}', 'wb') as f: f.truncate(1 << 20)\nimport time; time.sleep(60)",
        "too much files",
    ),
    Hostile("reads passwords", "open('/etc/passwd').read()\nprint(42)", DENIED),
    Hostile("reads an environment", "open('/proc/1/environ').read()\nprint(42)", DENIED),
    Hostile("reads its parent's", "import os\nopen(f'/proc/{os.getppid()}/environ').read()\nprint(42)", DENIED),
    Hostile("its parent's memory", "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')\nprint(42)", DENIED),
    Hostile("writes its parent's memory", "import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b')\nprint(42)", DENIED),
    Hostile("its parent's pipes", "import os\nopen(f'/proc/{os.getppid()}/fd/1', 'wb')\nprint(42)", DENIED),
    Hostile("lists folders", "import os\nos.listdir('/')\nprint(42)", DENIED),
    Hostile("a link to elsewhere", "import os\nos.symlink('/etc/passwd', 'x')\nopen('x').read()\nprint(42)", DENIED),
    Hostile("a hard link", "import os\nos.link('/etc/passwd', 'x')\nprint(42)", DENIED),
    Hostile("folders in folders", "import os\nwhile True: os.mkdir('d'); os.chdir('d')", DENIED),
    Hostile("a named pipe", "import os\nos.mkfifo('x')\nprint(42)", DENIED),
    Hostile("deletes its folder", "import os\nos.rmdir(os.getcwd())\nprint(42)", DENIED),
    Hostile("moves its folder", "import os\nos.rename(os.getcwd(), os.getcwd() + '-')\nprint(42)", DENIED),
    Hostile("changes permissions", "import os\nos.chmod('.', 0)\nprint(42)", DENIED),
    Hostile("changes owners", "import os\nos.chown('.', 1, 1)\nprint(42)", DENIED),
    Hostile("changes times", "import os\nos.utime('/tmp')\nprint(42)", DENIED),
    Hostile("cuts a file", "import os\nos.truncate(os.__file__, 0)\nprint(42)", DENIED),
    Hostile("leaves files", "open('left', 'w').write('x' * 1000)", "another output"),
    Hostile("changes the root", "import os\nos.chroot('.')\nprint(42)", DENIED),
    Hostile("its own input", "import os\nos.write(os.open('/dev/fd/0', os.O_RDWR), b'x')\nprint(42)", "Error"),
    # network
    Hostile("TCP", "import socket\nsocket.create_connection(('127.0.0.1', 22))\nprint(42)", DENIED),
    Hostile("TCP socket", "import socket\nsocket.socket()\nprint(42)", DENIED),
    Hostile("UDP socket", "import socket\nsocket.socket(type=socket.SOCK_DGRAM)\nprint(42)", DENIED),
    Hostile("Unix socket", "import socket\nsocket.socket(socket.AF_UNIX)\nprint(42)", DENIED),
    Hostile("netlink socket", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\nprint(42)", DENIED),
    Hostile("raw socket", "import socket\nsocket.socket(type=socket.SOCK_RAW)\nprint(42)", DENIED),
    Hostile("datagram pair", "import socket\nsocket.socketpair(type=socket.SOCK_DGRAM)\nprint(42)", DENIED),
    Hostile("a name", "import socket\nsocket.gethostbyname('localhost')\nprint(42)", "not known"),
    Hostile("io_uring", _raw("(425, 425)", "8", "ctypes.create_string_buffer(120)"), DENIED),
    # the kernel
    Hostile("ptrace", "import os\n" + _raw("(101, 117)", "16", "os.getppid()", "0", "0"), DENIED),
    Hostile("another's memory", "import os\n" + _raw("(310, 270)", "os.getppid()", "0", "0", "0", "0", "0"), DENIED),
    Hostile("user namespace", _raw("(272, 97)", "0x10000000"), DENIED),
    Hostile("network namespace", _raw("(272, 97)", "0x40000000"), DENIED),
    Hostile("namespace by clone", _raw("(56, 220)", "0x10000000 | 0x10000", "0", "0", "0", "0"), DENIED),
    Hostile("enters a namespace", _raw("(308, 268)", "0", "0"), DENIED),
    Hostile("mounts", _raw("(165, 40)", "b'none'", "b'/tmp'", "b'tmpfs'", "0", "None"), DENIED),
    Hostile("bpf", _raw("(321, 280)", "0", "None", "0"), DENIED),
    Hostile("perf", _raw("(298, 241)", "None", "0", "-1", "-1", "0"), DENIED),
    Hostile("userfaultfd", _raw("(323, 282)", "1"), DENIED),
    Hostile("keys", _raw("(250, 219)", "0", "-3", "0"), DENIED),
    Hostile("another user", "import os\nos.setuid(65534)\nprint(42)", DENIED),
    Hostile("a personality", _raw("(135, 92)", "0x40000"), DENIED),
    Hostile("x32", _raw("(0x40000027, 0x40000027)"), "[Errno 38]"),
    # its own verdict
    Hostile("leaves at once", "import os\nos._exit(0)", "another output"),
    Hostile("a word of success", "print('correct'); print('PASSED'); print('ok'); exit(0)", "another output"),
    Hostile("forged replies", 'import os\nos.write(3, b\'ready\\n{"test": 0, "value": 42}\\n\')', "another output"),
    Hostile("right and wrong exit code", "print(42)\nexit(3)", "ended with code 3"),
    Hostile("output without end", "while True: print('x' * 10000)", "too much output"),
    Hostile("complaints without end", "import os\nwhile True: os.write(2, b'x' * 9999)", "test_seconds", "timeout"),
    Hostile("replies without end", "import os\nwhile True: os.write(3, b'\\n' * 999)", "too much output"),
    Hostile("closes its files", "import os, time\nos.closerange(0, 99)\ntime.sleep(60)", "test_seconds", "timeout"),
    Hostile("reads the secret's pipe", "import os\nprint(42) if os.read(4, 99) else 0", "test_seconds", "timeout"),
    # what can't be compiled
    Hostile("parentheses", "(" * 100_000, "does not compile"),
    Hostile("signs", "-" * 1_000_000 + "1"),
    Hostile("a null byte", "print(42)\0", "does not compile"),
    Hostile("half a surrogate pair", "print('\ud800', 42)", "does not compile"),
    Hostile("megabytes of digits", "x = " + "9" * 900_000, "does not compile"),
    Hostile("another encoding", "# coding: klingon\nprint(41)", "another output"),
)
