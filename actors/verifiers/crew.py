"""The thread behind the pool: keeps a fork server and its workers alive, fed, and to their deadlines."""

import logging
import selectors
import time

import msgspec

from entrostat.actors.seams import Meter
from entrostat.actors.verifiers.frames import Ended, Forked, Item, Ready, Spent, pack
from entrostat.actors.verifiers.inbox import Inbox, Job
from entrostat.actors.verifiers.judge import failed
from entrostat.actors.verifiers.process import ServerProcess, Worker, ending
from entrostat.actors.verifiers.tally import StatusTally
from entrostat.protocol import metrics
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import TaskSettings

log = logging.getLogger(__name__)

STARTS = 3  # failed starts in a row, or lost hand-overs of one item, before giving up
START_SECONDS = 60.0  # for a server: it imports libraries
FORK_SECONDS = 10.0  # for a worker, to come or to end
TICK_SECONDS = 1.0
# A worker is handed so much work at a time that it need not wait for more …
AHEAD_SECONDS = 0.05
PATIENCE_SECONDS = 0.25  # … and what is behind an item that takes longer than this is handed to others
MOST_AHEAD = 32
FIRST_AHEAD = 4
MEMORY_OF_PACE = 0.05  # weight of the newest verdict in the mean seconds of one
# A million characters are some 250,000 tokens: more than any policy's context, and cheap for every verifier to read.
LONGEST_TEXT = 1 << 20


class _Leaving(msgspec.Struct):
    """A worker that ended or was told to, until the server says that it is gone."""

    since: float
    job: Job | None = None  # the one it was judging, which gets its verdict when it is known how it ended
    complaint: str = ""


class Crew:
    """`work` runs in one thread, which alone touches what is here."""

    def __init__(
        self,
        settings: VerifierSettings,
        tasks: tuple[TaskSettings, ...],
        inbox: Inbox,
        tally: StatusTally,
        meter: Meter | None,
    ) -> None:
        self._settings, self._tasks, self._inbox, self._tally, self._meter = settings, tasks, inbox, tally, meter
        self._server: ServerProcess | None = None
        self._workers: dict[int, Worker] = {}
        self._leaving: dict[int, _Leaving] = {}
        self._failed_starts = 0
        self._pace = AHEAD_SECONDS / FIRST_AHEAD  # seconds of one verdict, a decayed mean
        self._verdicts: list[tuple[object, Verdict]] = []  # of this turn
        self.replaced = 0

    def work(self) -> None:
        """Until the inbox is closed, or no server can be started."""
        try:
            with selectors.DefaultSelector() as self._selector:
                self._selector.register(self._inbox.bell, selectors.EVENT_READ, None)
                while not self._inbox.closed and not self._inbox.broken:
                    self._turn()
        finally:
            if self._server is not None:
                self._server.end()
            for worker in self._workers.values():
                worker.channel.close()
            if not self._inbox.closed:
                self._inbox.break_down("the verifiers' thread ended unexpectedly; see its traceback")

    def _turn(self) -> None:
        """One round: people, work, and what came meanwhile."""
        self._hire()
        hungry = self._feed()
        self._publish()
        listens = self._inbox.listen() if hungry else not self._inbox.closed
        for key, events in self._selector.select(self._until_next() if listens else 0.0):
            if key.data is None:
                self._inbox.heard()
                continue
            channel = key.data.channel
            if channel.fileno() < 0:
                continue  # closed by what was heard before it in this round
            if events & selectors.EVENT_WRITE:
                channel.flush()
                self._watch(key.data)
            if events & selectors.EVENT_READ:
                self._hear(key.data)
        self._expire()
        self._publish()
        self._tally.look()

    # ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hire(self) -> None:
        """A server, and as many workers as there should be."""
        try:
            if self._server is None:
                self._server = ServerProcess(self._tasks, self._settings.deadline_seconds)
                self._watch(self._server)
            while self._server.ready and len(self._workers) < self._settings.processes:
                worker = self._server.fork()
                self._workers[worker.number] = worker
                self._watch(worker)
                self._watch(self._server)
        except OSError as error:
            self._not_started(f"no process, socket or folder can be had for it ({error})")

    def _not_started(self, reason: str) -> None:
        """Counts a failed start, and begins anew from the server."""
        self._failed_starts += 1
        reason = f"{reason}; {self._dismiss()}"
        if self._failed_starts >= STARTS:
            self._inbox.break_down(f"no verifier process could be started in {STARTS} attempts; the last one: {reason}")
        else:
            log.warning("a verifier process did not start: %s", reason)

    def _dismiss(self) -> str:
        """Ends the server and all workers; what they had is judged by the next ones. Says how the server ended."""
        reason = "the fork server of the verifiers was lost over it or beside it"
        for worker in list(self._workers.values()):
            self._put_back([job for job in worker.jobs if job], reason)
            self._forget(worker)
        for left in self._leaving.values():  # workers die with their server, and may be noticed first
            self._put_back([left.job] if left.job is not None else [], reason)
        self._leaving.clear()
        server, self._server = self._server, None
        if server is None:
            return "there was none before it"
        self._selector.unregister(server.channel)
        return server.end()

    def _lose_server(self, reason: str) -> None:
        """The server ended, or hangs: a new one is started."""
        server = self._server
        if server is None:
            return
        if not server.ready:
            self._not_started(reason)
            return
        how = self._dismiss()
        log.warning("the fork server of the verifiers is replaced: %s; %s", reason, how)
        self._count_replaced("server")

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _feed(self) -> bool:
        """Hands out what waits; whether somebody has room for more."""
        ahead = max(1, min(MOST_AHEAD, int(AHEAD_SECONDS / self._pace)))
        hungry = [one for one in self._workers.values() if one.ready and len(one.jobs) <= ahead // 2]
        for left, worker in enumerate(sorted(hungry, key=lambda one: len(one.jobs))):
            jobs = self._inbox.take(ahead - len(worker.jobs), len(hungry) - left)
            items = [item for job in jobs if (item := self._item(job)) is not None]
            if not items:
                continue
            if not worker.jobs:
                worker.since = time.monotonic()
            worker.jobs.extend(job for job in jobs if len(job.text) <= LONGEST_TEXT)
            worker.channel.send(_packed(items))
            if worker.channel.ended:
                self._end(worker, begun=False)
            else:
                self._watch(worker)
        return any(len(one.jobs) <= ahead // 2 for one in hungry)

    def _item(self, job: Job) -> Item | None:
        """What is sent of a job; nothing of one that no policy can have written."""
        if len(job.text) <= LONGEST_TEXT:
            return Item(prompt=job.prompt, text=job.text)
        detail = f"a response of {len(job.text)} characters; at most {LONGEST_TEXT} are read"
        self._verdicts.append((job.ticket, Verdict(reward=0.0, status="unparsable", seconds=0.0, detail=detail)))
        return None

    def _put_back(self, jobs: list[Job], reason: str) -> None:
        """Queues jobs again; the first may have been begun, and is given up when that was too often."""
        if jobs:
            jobs[0].handovers += 1
            if jobs[0].handovers >= STARTS:
                self._verdicts.append((jobs.pop(0).ticket, failed(f"{reason}, {STARTS} times in a row")))
        self._inbox.put_back(jobs)

    def _publish(self) -> None:
        if self._verdicts:
            for _, verdict in self._verdicts:
                self._tally.observe(verdict)
            self._inbox.deliver(self._verdicts)
            self._verdicts = []

    # ── what comes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _hear(self, speaker: ServerProcess | Worker) -> None:
        if isinstance(speaker, Worker):
            self._hear_worker(speaker)
            if speaker.channel.ended and speaker.number in self._workers:
                self._end(speaker)
            return
        for reply in speaker.channel.receive():
            if self._server is not speaker:
                return
            match reply:
                case Ready(failure=""):
                    speaker.ready = True
                    if reply.threads > 1:
                        log.warning(
                            "a verifier's module started %d threads when it was imported: they do not exist in its "
                            "worker processes, which may hang over them; start them at the first use instead",
                            reply.threads - 1,
                        )
                case Ready():
                    self._not_started(reply.failure)
                case Forked():
                    speaker.pids[reply.number] = reply.pid
                case Ended():
                    speaker.pids.pop(reply.number, None)
                    self._buried(reply)
        if self._server is speaker and speaker.channel.ended:
            self._lose_server("it ended")

    def _hear_worker(self, worker: Worker) -> None:
        now = time.monotonic()
        for reply in worker.channel.receive():
            if isinstance(reply, Verdict) and worker.jobs:
                job = worker.jobs.popleft()
                if job is not None:
                    self._verdicts.append((job.ticket, reply))
                self._pace += MEMORY_OF_PACE * (now - worker.since - self._pace)
                worker.since = now
            elif isinstance(reply, Ready) and not worker.ready and not reply.failure:
                worker.ready, self._failed_starts = True, 0
            elif isinstance(reply, Ready) and not worker.ready:
                self._not_started(reply.failure)
                return
            elif isinstance(reply, Spent):
                self._end(worker, begun=False)
                return
            else:
                worker.channel.ended, worker.channel.complaint = True, "it answered what it was not asked"

    def _buried(self, ended: Ended) -> None:
        """The server says that a worker is gone: its last words may still lie in its channel."""
        worker = self._workers.get(ended.number)
        while worker is not None and not worker.channel.ended and worker.number in self._workers:
            self._hear_worker(worker)
            if not self._selectable(worker):
                break
        if worker is not None and worker.number in self._workers:
            self._end(worker, complaint=ended.failure)
        left = self._leaving.pop(ended.number, None)
        if left is not None and left.job is not None:
            detail = f"the verifier process was lost over it: {left.complaint or ending(ended.code)}"
            log.warning("%s: error: %s; its process is replaced", left.job.prompt.name, detail)
            self._verdicts.append((left.job.ticket, failed(detail)))

    @staticmethod
    def _selectable(worker: Worker) -> bool:
        with selectors.DefaultSelector() as one:
            one.register(worker.channel, selectors.EVENT_READ)
            return bool(one.select(0))

    def _expire(self) -> None:
        """Deadlines that have passed."""
        now, deadline = time.monotonic(), self._settings.deadline_seconds
        for worker in list(self._workers.values()):
            if worker.ready and worker.jobs and now - worker.since > deadline:
                self._hear_worker(worker)  # this thread may be the one that is late
                if worker.jobs and now - worker.since > deadline and worker.number in self._workers:
                    self._time_out(worker)
            elif worker.ready and self._has_behind(worker) and now - worker.since > PATIENCE_SECONDS:
                self._take_back(worker)
            elif not worker.ready and now - worker.since > FORK_SECONDS:
                self._not_started(f"a worker was not ready within {FORK_SECONDS:g} s")
                return
        server = self._server
        if server is not None and not server.ready and now - server.since > START_SECONDS:
            self._not_started(f"the fork server was not ready within {START_SECONDS:g} s")
        elif any(now - left.since > FORK_SECONDS for left in self._leaving.values()):
            self._lose_server(f"a worker was not buried within {FORK_SECONDS:g} s")

    def _has_behind(self, worker: Worker) -> bool:
        """Somebody else could judge what this one was handed and did not begin."""
        return len(self._workers) > 1 and len(worker.jobs) > 1 and worker.jobs[-1] is not None

    def _take_back(self, worker: Worker) -> None:
        """Gives others what is behind a slow item; should that end yet, the worker's verdicts on it are dropped."""
        head, *behind = worker.jobs
        self._inbox.put_back([job for job in behind if job])
        worker.jobs.clear()
        worker.jobs.append(head)
        worker.jobs.extend(None for _ in behind)

    def _until_next(self) -> float:
        ends = [
            one.since + (PATIENCE_SECONDS if self._has_behind(one) else self._settings.deadline_seconds)
            for one in self._workers.values()
            if one.jobs
        ]
        return max(0.0, min([TICK_SECONDS, *(end - time.monotonic() for end in ends)]))

    def _time_out(self, worker: Worker) -> None:
        job, seconds = worker.jobs.popleft(), time.monotonic() - worker.since
        if job is not None:
            detail = f"no verdict within {self._settings.deadline_seconds:g} s (deadline_seconds)"
            log.warning("%s: timeout: %s; its process is replaced", job.prompt.name, detail)
            self._verdicts.append((job.ticket, Verdict(reward=0.0, status="timeout", seconds=seconds, detail=detail)))
        self._end(worker, begun=False)

    def _end(self, worker: Worker, *, begun: bool = True, complaint: str = "") -> None:
        """Ends a worker that is lost; what it was handed goes to others, but for a job that it had begun."""
        head = worker.jobs.popleft() if begun and worker.jobs else None
        jobs = [job for job in worker.jobs if job]
        left = _Leaving(since=time.monotonic(), job=head, complaint=complaint or worker.channel.complaint)
        self._inbox.put_back(jobs)
        ready = worker.ready
        self._forget(worker)
        self._leaving[worker.number] = left
        if self._server is not None:
            self._server.kill(worker.number)
            self._watch(self._server)
        if ready:
            self.replaced += 1
            self._count_replaced("worker")
        elif not self._inbox.closed:
            self._not_started(left.complaint or "a worker ended before it was ready")

    def _forget(self, worker: Worker) -> None:
        self._workers.pop(worker.number, None)
        self._selector.unregister(worker.channel)
        worker.channel.close()

    def _count_replaced(self, what: str) -> None:
        if self._meter is not None:
            self._meter.add(metrics.VERIFY_REPLACED, process=what)

    def _watch(self, speaker: ServerProcess | Worker) -> None:
        """Reads from a channel always, and writes to it when there is something unsent."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if speaker.channel.unsent else 0)
        try:
            if self._selector.get_key(speaker.channel).events != events:
                self._selector.modify(speaker.channel, events, speaker)
        except KeyError:
            self._selector.register(speaker.channel, events, speaker)


def _packed(items: list[Item]) -> bytes:
    try:
        return pack(tuple(items))
    except UnicodeEncodeError:  # half a surrogate pair can't be sent
        return pack(tuple(Item(prompt=_whole(item.prompt), text=_encodable(item.text)) for item in items))


def _whole(prompt: Prompt) -> Prompt:
    fields = msgspec.structs.asdict(prompt)
    texts = {name: _encodable(value) for name, value in fields.items() if isinstance(value, str)}
    return msgspec.structs.replace(prompt, **texts)


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
