"""What lies between the pool's callers and its thread: responses in, verdicts out, behind one short-held lock."""

import contextlib
import os
import threading
from collections import deque

import msgspec

from entrostat.protocol.errors import StationLost
from entrostat.protocol.messages import Prompt, Verdict

TAKEN_CHARACTERS = 1 << 18  # at most at a time, so that neither the thread nor Python's lock is long in one call


class Job(msgspec.Struct):
    """A response, and how often a process was lost before it began it."""

    ticket: object
    prompt: Prompt
    text: str
    handovers: int = 0


class Inbox:
    """The callers' side never waits but in `wait`, and copies no text; the thread's side rings nobody who sleeps on.

    A caller rings the bell (a file descriptor that the thread's selector watches) only when the thread said that it
    listens: once for a burst, as each ring hands Python's lock over.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[Job] = deque()
        self._judged: list[tuple[object, Verdict]] = []
        self._collectors = 0
        self._listening = False
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.pending = 0  # submitted, and the verdict not collected
        self.broken = ""
        self.closed = False

    # ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, job: Job) -> None:
        """Queues a job."""
        with self._changed:
            self._check()
            self._waiting.append(job)
            self.pending += 1
            self._ring()

    def collect(self) -> list[tuple[object, Verdict]]:
        """All verdicts there are by now."""
        with self._changed:
            if not self._judged:
                self._check()
            verdicts, self._judged = self._judged, []
            self.pending -= len(verdicts)
        return verdicts

    def wait(self, seconds: float) -> bool:
        """Waits until there is something to collect, nothing is pending, or the time has passed; True for the first."""
        with self._changed:
            self._collectors += 1
            try:
                self._changed.wait_for(
                    lambda: bool(self._judged or not self.pending or self.broken or self.closed), timeout=seconds
                )
            finally:
                self._collectors -= 1
            if not self._judged:
                self._check()
            return bool(self._judged)

    def close(self) -> None:
        """No more is taken in or given out; the thread is told."""
        with self._changed:
            self.closed = True
            self._listening = True
            self._ring()
            self._changed.notify_all()

    def unhang(self) -> None:
        """The bell is taken down, once nobody listens any more."""
        with self._changed:
            if self.bell >= 0:
                os.close(self.bell)
                self.bell = -1

    def _ring(self) -> None:
        if self._listening and self.bell >= 0:
            self._listening = False
            os.eventfd_write(self.bell, 1)

    def _check(self) -> None:
        if self.broken:
            raise StationLost(self.broken)
        if self.closed:
            raise StationLost("the verifiers were closed and are asked for verdicts")

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def listen(self) -> bool:
        """From now on the bell is rung for a job; False where one waits already."""
        with self._changed:
            self._listening = True
            return not self._waiting and not self.closed

    def heard(self) -> None:
        """The bell is silent again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    def take(self, most: int, among: int) -> list[Job]:
        """The jobs that have waited longest: at most `most`, and no more than a fair share where `among` ask."""
        with self._changed:
            share = min(most, -(-len(self._waiting) // among))
            jobs: list[Job] = []
            characters = 0
            while len(jobs) < share and characters < TAKEN_CHARACTERS:
                jobs.append(self._waiting.popleft())
                characters += len(jobs[-1].text)
            return jobs

    def put_back(self, jobs: list[Job]) -> None:
        """Jobs that nobody began are first again."""
        with self._changed:
            self._waiting.extendleft(reversed(jobs))

    def deliver(self, verdicts: list[tuple[object, Verdict]]) -> None:
        """Verdicts, with their tickets, for whoever collects."""
        with self._changed:
            self._judged += verdicts
            if self._collectors:
                self._changed.notify_all()

    def break_down(self, reason: str) -> None:
        """Nobody judges any more: every caller is told why."""
        with self._changed:
            self.broken = self.broken or reason
            self._changed.notify_all()
