"""Verifier processes behind a queue: hand responses in, collect verdicts later, wait for nobody."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from entrostat.actors.verifiers.frames import Item
from entrostat.actors.verifiers.judge import failed
from entrostat.actors.verifiers.process import WorkerLost, WorkerProcess
from entrostat.actors.verifiers.tally import StatusTally
from entrostat.protocol.errors import StationLost
from entrostat.protocol.messages import Prompt, Status, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import TaskSettings

log = logging.getLogger(__name__)

BATCH_ITEMS = 16  # per write; those behind a hung one wait for its deadline, then go to the next process
STARTS = 3  # failed starts in a row, or lost hand-overs of one item, before giving up
IDLE_SECONDS = 1.0
CLOSE_SECONDS = 5.0


class _Job(msgspec.Struct):
    ticket: object
    item: Item
    handovers: int = 0  # how often a process was lost before it began this item


class VerifierPool:
    """`settings.processes` worker processes, each fed by a thread of its own.

    An item that hangs or kills its process costs itself alone: it gets a reward of 0 and the status `timeout` or
    `error`, the process is killed and replaced, and the next one judges the items behind it. Safe from any thread.
    """

    def __init__(self, settings: VerifierSettings, tasks: Sequence[TaskSettings]) -> None:
        """Starts the processes; returns at once."""
        self._settings = settings
        self._tasks = tuple(tasks)
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._judged: deque[tuple[object, Verdict]] = deque()
        self._pending = 0
        self._broken = ""
        self._closed = False
        self._tally = StatusTally(settings.alarm_share)
        self._processes: set[WorkerProcess] = set()
        self.replaced = 0  # processes killed at a deadline or found dead
        self._threads = [
            threading.Thread(target=self._work, name=f"verifier-{number}", daemon=True)
            for number in range(settings.processes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Items submitted whose verdict was not yet collected."""
        return self._pending

    @property
    def statuses(self) -> Counter[Status]:
        """How many verdicts of each status were collected since the start."""
        return Counter(self._tally.counts)

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        """Queues a response; its verdict comes back with `ticket`.

        Raises:
            StationLost: no process can be started, or the pool is closed.
        """
        clean = text.encode(errors="replace").decode()  # half a surrogate pair can't be sent
        with self._changed:
            self._check()
            self._waiting.append(_Job(ticket=ticket, item=Item(prompt=prompt, text=clean)))
            self._pending += 1
            self._changed.notify_all()

    def collect(self) -> list[tuple[object, Verdict]]:
        """All verdicts there are by now, in no particular order; returns at once.

        Raises:
            StationLost: no process can be started, or the pool is closed.
        """
        with self._changed:
            if not self._judged:
                self._check()
            verdicts = list(self._judged)
            self._judged.clear()
            self._pending -= len(verdicts)
            for _, verdict in verdicts:
                self._tally.observe(verdict)
        return verdicts

    def wait(self, seconds: float) -> bool:
        """Waits until there is something to collect, nothing is pending, or the time has passed; True for the first.

        Raises:
            StationLost: no process can be started, or the pool is closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: bool(self._judged or not self._pending or self._broken or self._closed), timeout=seconds
            )
            if not self._judged:
                self._check()
            return bool(self._judged)

    def close(self) -> None:
        """Kills the processes; what was not judged is forgotten. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for process in self._processes:
                process.interrupt()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                log.warning("%s did not end within %g s of closing the verifiers", thread.name, CLOSE_SECONDS)

    def _check(self) -> None:
        if self._broken:
            raise StationLost(self._broken)
        if self._closed:
            raise StationLost("the verifiers were closed and are asked for verdicts")

    # ── each thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        """Keeps one process alive and fed until the pool is closed."""
        process: WorkerProcess | None = None
        try:
            while not self._closed and not self._broken:
                process = process or self._start()
                jobs = self._take()
                if process is not None and jobs and not self._judge(process, jobs):
                    self._forget(process)
                    process = None
        finally:
            if process is not None:
                self._forget(process)
            with self._changed:
                if not self._closed and not self._broken:
                    self._broken = f"the thread {threading.current_thread().name} ended unexpectedly; see its traceback"
                self._changed.notify_all()

    def _start(self) -> WorkerProcess | None:
        """A process that is ready; None if the pool was closed meanwhile or none can be started."""
        for _ in range(STARTS):
            process = WorkerProcess(self._tasks, self._settings.deadline_seconds)
            with self._changed:
                self._processes.add(process)
                if self._closed:
                    process.interrupt()
            try:
                process.wait_until_ready()
            except (WorkerLost, TimeoutError) as error:
                reason = f"{error or 'it was not ready in time'}; {self._forget(process)}"
                if self._closed:
                    return None
                log.warning("a verifier process did not start: %s", reason)
                continue
            return process
        with self._changed:
            self._broken = f"no verifier process could be started in {STARTS} attempts; the last one: {reason}"
            self._changed.notify_all()
        return None

    def _forget(self, process: WorkerProcess) -> str:
        with self._changed:
            self._processes.discard(process)
        return process.kill()

    def _take(self) -> list[_Job]:
        """A fair share of what waits; nothing if nothing came for a while."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting or self._closed or self._broken), timeout=IDLE_SECONDS)
            if self._closed or self._broken:
                return []
            share = -(-len(self._waiting) // self._settings.processes)
            return [self._waiting.popleft() for _ in range(min(share, BATCH_ITEMS))]

    def _judge(self, process: WorkerProcess, jobs: list[_Job]) -> bool:
        """Has a process judge the jobs in turn; False if it must be replaced."""
        try:
            process.send(tuple(job.item for job in jobs))
        except (WorkerLost, TimeoutError) as error:
            self._put_back(jobs, f"a verifier process was lost: {error or 'it did not read its items'}")
            return False
        for number, job in enumerate(jobs):
            try:
                verdict = process.verdict(self._settings.deadline_seconds)
            except TimeoutError:
                seconds = self._settings.deadline_seconds
                detail = f"no verdict within {seconds:g} s (deadline_seconds)"
                verdict = Verdict(reward=0.0, status="timeout", seconds=seconds, detail=detail)
            except WorkerLost as error:
                verdict = failed(f"the verifier process was lost over it: {error}; {process.kill()}")
            else:
                self._deliver(job, verdict)
                continue
            self._lose(job, verdict, jobs[number + 1 :])
            return False
        return True

    def _lose(self, job: _Job, verdict: Verdict, behind: list[_Job]) -> None:
        """Delivers the verdict on the job that cost its process, and puts those behind it back in front."""
        if not self._closed:
            log.warning("%s: %s: %s; its process is replaced", job.item.prompt.name, verdict.status, verdict.detail)
        self.replaced += 1
        with self._changed:
            self._waiting.extendleft(reversed(behind))
        self._deliver(job, verdict)

    def _put_back(self, jobs: list[_Job], reason: str) -> None:
        """Queues jobs again that no process began; those that were handed over too often are given up."""
        self.replaced += 1
        for job in reversed(jobs):
            job.handovers += 1
            if job.handovers >= STARTS:
                self._deliver(job, failed(f"{reason}, {STARTS} times in a row"))
                continue
            with self._changed:
                self._waiting.appendleft(job)

    def _deliver(self, job: _Job, verdict: Verdict) -> None:
        with self._changed:
            self._judged.append((job.ticket, verdict))
            self._changed.notify_all()
