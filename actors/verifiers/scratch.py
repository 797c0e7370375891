"""Scratch folders of workers: made private, and removed whatever was left in them."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

ROOT_VARIABLE = "ENTROSTAT_SCRATCH"  # beneath this folder, else beneath the system's temporary one


def make_root() -> Path:
    """A new folder for one server's scratch folders, for this user alone.

    Raises:
        OSError: it can't be made there.
    """
    return Path(tempfile.mkdtemp(prefix="entrostat-verifiers-", dir=os.environ.get(ROOT_VARIABLE) or None))


def remove(folder: Path) -> None:
    """Removes a folder and all in it, however deep and whatever its permissions; what can't be removed is left.

    Folders within are moved up to `folder` one by one, so that neither paths nor the stack grow with their depth.
    """
    with contextlib.suppress(OSError):
        folder.chmod(stat.S_IRWXU)
    within, number = [folder], 0
    while within:
        here = within.pop()
        for path in _entries(here):
            with contextlib.suppress(OSError):
                if not stat.S_ISDIR(path.lstat().st_mode):
                    path.unlink()
                    continue
                number += 1
                path.chmod(stat.S_IRWXU)
                moved = folder / f".removed-{number}"
                path.rename(moved)
                within.append(moved)
        if here != folder:
            with contextlib.suppress(OSError):
                here.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [Path(entry.path) for entry in os.scandir(folder)]
    return []
