"""What tests of the verifiers' processes share: submitting, waiting, and looking at what runs below."""

import contextlib
import time
from collections.abc import Callable, Sequence

import psutil

from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.protocol.messages import Prompt, Verdict


def judged(pool: VerifierPool, items: Sequence[tuple[Prompt, str]], seconds: float = 30.0) -> dict[object, Verdict]:
    """Verdicts by the items' positions."""
    for number, (prompt, text) in enumerate(items):
        pool.submit(number, prompt, text)
    verdicts: dict[object, Verdict] = {}
    end = time.monotonic() + seconds
    while pool.pending and time.monotonic() < end:
        pool.wait(0.5)
        verdicts |= dict(pool.collect())
    return verdicts


def servers() -> list[psutil.Process]:
    """The fork servers below this process."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[1:2] == ["-m"] and child.cmdline()[2].endswith("server"):
                found.append(child)
    return found


def workers() -> list[psutil.Process]:
    """All processes right below the fork servers, zombies too."""
    found = []
    for server in servers():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += server.children()
    return found


def soon(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether something comes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
