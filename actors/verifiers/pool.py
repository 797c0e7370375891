"""Verifier processes behind a queue: hand responses in, collect verdicts later, wait for nobody."""

import logging
import threading
from collections import Counter
from collections.abc import Sequence

from entrostat.actors.seams import Meter
from entrostat.actors.verifiers.crew import Crew
from entrostat.actors.verifiers.inbox import Inbox, Job
from entrostat.actors.verifiers.tally import StatusTally
from entrostat.protocol.messages import Prompt, Status, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import TaskSettings

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0


class VerifierPool:
    """`settings.processes` worker processes, forked by a server that has imported the verifiers, fed by one thread.

    An item that hangs or kills its process costs itself alone: it gets a reward of 0 and the status `timeout` or
    `error`, the process is killed with all it started, and one forked in milliseconds judges the items behind it. Safe
    from any thread; needs no signal and no particular thread of its process. Where that process dies, however, its
    verifiers die too.
    """

    def __init__(self, settings: VerifierSettings, tasks: Sequence[TaskSettings], meter: Meter | None = None) -> None:
        """Starts the processes; returns at once. `meter` is told of alarms and replaced processes."""
        self._inbox = Inbox()
        self._tally = StatusTally(settings.alarm_share, meter)
        self._crew = Crew(settings, tuple(tasks), self._inbox, self._tally, meter)
        self._thread = threading.Thread(target=self._crew.work, name="verifiers", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Items submitted whose verdict was not yet collected."""
        return self._inbox.pending

    @property
    def replaced(self) -> int:
        """Worker processes killed at a deadline, found dead, or grown too large."""
        return self._crew.replaced

    @property
    def statuses(self) -> Counter[Status]:
        """How many verdicts of each status were given since the start."""
        return Counter(self._tally.counts)

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        """Queues a response; its verdict comes back with `ticket`.

        Raises:
            StationLost: no process can be started, or the pool is closed.
        """
        self._inbox.submit(Job(ticket=ticket, prompt=prompt, text=text))

    def collect(self) -> list[tuple[object, Verdict]]:
        """All verdicts there are by now, in no particular order; returns at once.

        Raises:
            StationLost: no process can be started, or the pool is closed.
        """
        return self._inbox.collect()

    def wait(self, seconds: float) -> bool:
        """Waits until there is something to collect, nothing is pending, or the time has passed; True for the first.

        Raises:
            StationLost: no process can be started, or the pool is closed.
        """
        return self._inbox.wait(seconds)

    def close(self) -> None:
        """Kills the processes and removes their files; what was not judged is forgotten. May be called twice."""
        self._inbox.close()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("the verifiers' thread did not end within %g s of closing them", CLOSE_SECONDS)
            return
        self._inbox.unhang()
        self._tally.close()
