"""What ends a run that no longer moves: a report, and exit code 3, even where the driver itself is stuck.

A stall that the driver's main thread sees is an error, `Stalled`, which `reported` writes down. A thread of its own
sees to it that the main thread comes by at all: a call into Ray may never return where Ray's processes are stuck.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from entrostat import processes, stall
from entrostat.directory import write_atomically
from entrostat.protocol.errors import EntrostatError, Stalled
from entrostat.protocol.stacks import stacks
from entrostat.stall import Look, Picture, Told

log = logging.getLogger(__name__)

START_SECONDS = 300.0  # the longest the main thread may take until it first comes by
GRACE_SECONDS = 30.0  # it may be so much later than the deadline whose passing it is to notice
LEAVE_SECONDS = 60.0  # from the end of a run until its cluster is left …
STALLED_SECONDS = 25.0  # … and of a stalled one, from the decision to end it; who did not answer is not waited for
LAST_WORDS_SECONDS = 10.0  # for the report of a main thread that is stuck


class Heart:
    """Ends the process when `beat` was not called for so long.

    Args:
        path: where the report goes.
        stall_seconds: the longest the main thread may be away; it gets `grace_seconds` on top.
        lease_seconds: for the report.
        grace_seconds, start_seconds: see above.
        told: what the rollout actors last said.
        exit: ends the process.
    """

    def __init__(
        self,
        path: Path,
        stall_seconds: float,
        lease_seconds: float,
        *,
        grace_seconds: float = GRACE_SECONDS,
        start_seconds: float = START_SECONDS,
        told: Callable[[], tuple[Told, ...]] = tuple,
        exit: Callable[[int], object] = os._exit,
    ) -> None:
        self.path, self._limit, self._lease_seconds = path, stall_seconds + grace_seconds, lease_seconds
        self.told, self._exit = told, exit
        self._last = self._stalled = False
        self._failure: EntrostatError | None = None
        self._doing, self._since = "the stations' start", time.monotonic()
        self._beaten, self._due = self._since, self._since + max(self._limit, start_seconds)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, doing: str = "") -> None:
        """The main thread came by; it waits for `doing`."""
        now = time.monotonic()
        if doing and doing != self._doing:
            self._doing, self._since = doing, now
        self._beaten = now
        if not self._last:
            self._due = now + self._limit

    def leave(self, seconds: float = LEAVE_SECONDS) -> None:
        """The run is over: the main thread leaves the cluster within so long, whatever becomes of that."""
        self.beat("the cluster to be left")
        due = time.monotonic() + seconds
        self._due, self._last = min(self._due, due) if self._last else due, True

    def stalled(self, picture: Picture) -> None:
        """Writes down a stall that the main thread saw.

        Raises:
            OSError: the report can't be written.
        """
        write_atomically(self.path, stall.report(picture).encode())
        self._stalled = True

    def failed(self, error: EntrostatError) -> None:
        """The run ends with this error, if its cluster can't be left too."""
        self._failure = error

    @property
    def doing(self) -> tuple[str, float]:
        """What the main thread waits for, and for how long."""
        return self._doing, time.monotonic() - self._since

    def close(self) -> None:
        """Watches no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(max(0.0, min(1.0, self._due - time.monotonic()))):
            if time.monotonic() >= self._due:
                break
        else:
            return
        # Neither a full disk nor a lock that the main thread holds may keep the process.
        latest = threading.Timer(LAST_WORDS_SECONDS, self._end)
        latest.daemon = True
        latest.start()
        try:
            self._last_words()
        finally:
            latest.cancel()
            self._end()

    def _last_words(self) -> None:
        away = time.monotonic() - self._beaten
        reason = (
            f"the driver's main thread has not come by for {away:.0f} s: it waits for {self._doing} in a call to Ray"
        )
        look = stacks()
        picture = Picture(
            reason=reason,
            doing=self._doing,
            doing_seconds=self.doing[1],
            unix_seconds=time.time(),
            lease_seconds=self._lease_seconds,
            told=self.told(),
            looks=(Look(name="the driver", host=look.host, process=look.process, stacks=look.text),),
        )
        if self._failure is not None:
            print(f"entrostat: {self._failure}", file=sys.stderr)
        print(f"entrostat: {reason}\n  its stack: {self.path}", file=sys.stderr, flush=True)
        try:
            earlier = self.path.read_text() + "\n" if self._stalled else ""  # what the main thread saw
            write_atomically(self.path, (earlier + stall.report(picture)).encode())
        except OSError as error:
            print(f"entrostat: {self.path} can't be written: {error.strerror}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        left = processes.below_ray()
        # A driver whose Ray dies may be ended by Ray, with a code of its own: no time between these two.
        processes.kill(left)
        self._exit(Stalled.exit_code if self._failure is None else self._failure.exit_code)


@contextlib.contextmanager
def reported(heart: Heart, look: Callable[[str, str, float], Picture]) -> Iterator[None]:
    """Writes down what a stall looks like, before anything is torn down.

    Args:
        heart: of the run; from a stall on it sees to the process's end.
        look: the reason, who is waited for, and how long → the picture; takes some seconds at most.

    Raises:
        Stalled: the same, with the likely cause and where the report is.
    """
    try:
        yield
    except Stalled as error:
        doing = heart.doing
        heart.leave(STALLED_SECONDS)
        picture = look(str(error), *doing)
        log.error("stalled: %s; %s", picture.reason, stall.likely_cause(picture))
        try:
            heart.stalled(picture)
        except OSError as failure:  # a full disk may be what it is about
            log.error("%s can't be written: %s", heart.path, failure.strerror)
        raise Stalled(stall.summary(picture, str(heart.path))) from error
