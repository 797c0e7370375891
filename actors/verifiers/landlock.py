"""Landlock: which files a confined program may read and write, and that it opens no TCP connection.

A kernel speaks a version of it (its ABI); what a version does not know is left out. See `linux/landlock.h`.
"""

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, of the same number on every architecture
VERSION = 1
PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REGULAR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
READING = READ_FILE | READ_DIR
WORKING = READING | WRITE_FILE | TRUNCATE | REMOVE_FILE | MAKE_REGULAR  # no folders, links, devices or sockets
OF_FILES = WRITE_FILE | READ_FILE | TRUNCATE  # all that a rule may say of what is no folder
ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
NETWORK = 0b11  # bind and connect TCP, ABI 4
SCOPES = 0b11  # abstract Unix sockets and signals of others, ABI 6
WRITES_FROM = 3  # below, files can be cut to nothing behind its back


def abi() -> int:
    """The version this kernel speaks; 0 where there is none, or it is switched off."""
    return max(0, int(_libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)))


def make(version: int, readable: Iterable[Path], devices: Iterable[Path], working: Path) -> int:
    """A file descriptor of the rules: `readable` can be read, `devices` used, in `working` plain files be made.

    Raises:
        OSError: the kernel refuses them.
    """
    handled = ALL_BY_ABI[max(known for known in ALL_BY_ABI if known <= version)]
    fields = [handled, *([NETWORK] if version >= 4 else []), *([SCOPES] if version >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = _checked(_libc().syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    for path in readable:
        _allow(rules, path, READING & handled)
    for path in devices:
        _allow(rules, path, (READ_FILE | WRITE_FILE) & handled)
    _allow(rules, working, WORKING & handled)
    return rules


def restrict(rules: int) -> None:
    """Puts this thread, and those it starts, under the rules for ever; `PR_SET_NO_NEW_PRIVS` must be set.

    Raises:
        OSError: the kernel refuses.
    """
    _checked(_libc().syscall(RESTRICT_SELF, rules, 0))


def _allow(rules: int, path: Path, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= OF_FILES
            rule = struct.pack("=Qi", rights, place)
            _checked(_libc().syscall(ADD_RULE, rules, PATH_BENEATH, rule, 0))
        finally:
            os.close(place)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
