"""Processes of this machine as the driver sees them, without asking Ray."""

import contextlib
import platform
from collections.abc import Iterable

import psutil

GONE_SECONDS = 3.0  # until a process that was told to end has ended


def state_of(host: str, process: int) -> str:
    """What the kernel says of a process: `running`, `stopped`, `gone`; empty for one of another host."""
    if host != platform.node() or not process:
        return ""
    try:
        status = psutil.Process(process).status()
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.AccessDenied:
        return ""
    return "gone" if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else str(status)


def below_ray() -> list[psutil.Process]:
    """The processes of a Ray that this process started, and all below them; workers before what watches over them."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any("/ray/" in word for word in child.cmdline()):
                found += [*child.children(recursive=True), child]
    return found


def end(processes: Iterable[psutil.Process], seconds: float = GONE_SECONDS) -> int:
    """Waits until these processes have ended and kills those that have not; how many these were."""
    _, alive = psutil.wait_procs(list(processes), timeout=seconds)
    kill(alive)
    return len(alive)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kills them; a process that is stopped dies too."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()
