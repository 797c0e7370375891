"""Rollout actors on their way out: asked to stop, then killed, and their processes with them; nobody waits for it."""

import logging
import socket
import time
from typing import Any

import msgspec
import psutil

from entrostat import ray_calls

log = logging.getLogger(__name__)

STOP_SECONDS = 15.0  # an actor's own end: engine and verifiers closed
KILL_SECONDS = 2.0  # from Ray's kill to ours; a stopped process doesn't hear Ray's, which then takes 5 s
PROCESS_NAME = "ray::Rollout"


class Leaver(msgspec.Struct, kw_only=True):
    """An actor that no slot holds any more."""

    who: str
    handle: Any
    host: str  # "" before it was placed
    process: int
    stopped: Any  # reference to its own end; None once it is killed
    deadline: float


class Leaving:
    """All actors on their way out."""

    def __init__(self) -> None:
        self._all: list[Leaver] = []

    @property
    def handles(self) -> list[Any]:
        """Of those that are not dead for certain."""
        return [leaver.handle for leaver in self._all]

    def add(self, who: str, handle: Any, host: str, process: int, *, gently: bool) -> None:
        """Begins to end an actor: at once, or after it has closed what it holds."""
        leaver = Leaver(
            who=who,
            handle=handle,
            host=host,
            process=process,
            stopped=handle.stop.remote() if gently else None,
            deadline=time.monotonic() + STOP_SECONDS,
        )
        if not gently:
            _kill(leaver)
        self._all.append(leaver)

    def watch(self) -> None:
        """Takes each a step further."""
        now = time.monotonic()
        for leaver in list(self._all):
            if leaver.stopped is not None:
                if ray_calls.done(leaver.stopped) or now > leaver.deadline:
                    _kill(leaver)
            elif now > leaver.deadline:
                end_process(leaver.who, leaver.host, leaver.process)
                self._all.remove(leaver)


def _kill(leaver: Leaver) -> None:
    leaver.stopped = None
    leaver.deadline = time.monotonic() + KILL_SECONDS
    ray_calls.kill(leaver.handle)


def end_process(who: str, host: str, process: int) -> bool:
    """Kills an actor's process and all below it, where it is still there and on this host; whether it did."""
    if host != socket.gethostname():
        return False
    try:
        found = psutil.Process(process)
        # Numbers are used again: nobody else's process is meant.
        if not found.name().startswith(PROCESS_NAME):
            return False
        below = found.children(recursive=True)
        found.kill()
    except psutil.NoSuchProcess:
        return False
    for child in below:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    log.warning("%s did not end when Ray killed it: its process %d got SIGKILL", who, process)
    return True
