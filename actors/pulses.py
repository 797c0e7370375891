"""When an actor speaks to its controller: at once when there is news, else at an interval; never two at a time."""

import logging
from collections.abc import Iterable

from entrostat.protocol.errors import StationLost
from entrostat.protocol.messages import GroupReport, PolicyVersion, Pulse, PulseReply
from entrostat.protocol.ports import ControllerPort

log = logging.getLogger(__name__)

LEASE_SHARE = 0.1  # of lease_seconds: the longest silence, so that a lost pulse or two cost no lease
LONGEST_SECONDS = 0.25  # so that a new version is heard of soon
HUNGRY_SECONDS = 0.05  # between two requests for leases when there were none
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 4.0
SECONDS_UNTIL_LOST = 300.0  # a controller that is restarted reads its journal first


class Pulses:
    """The conversation with the controller. What is reported or handed back is kept until a reply shows it arrived."""

    def __init__(self, controller: ControllerPort, slot: int, incarnation: int, lease_seconds: float) -> None:
        self._controller = controller
        self._slot = slot
        self._incarnation = incarnation
        self._interval = min(LONGEST_SECONDS, LEASE_SHARE * lease_seconds)
        self._reports: list[GroupReport] = []
        self._returned: list[int] = []
        self._sent: tuple[int, int] | None = None  # reports and returned leases in the pulse under way
        self._asked = False  # the pulse under way asks for leases
        self._told: PolicyVersion | None = None  # in the last pulse sent
        self._number = 0
        self._failures = 0
        self._silent_since = 0.0
        self._next_at = 0.0
        self._hungry_at = 0.0

    def report(self, report: GroupReport) -> None:
        """Queues a report for the next pulse."""
        self._reports.append(report)

    def hand_back(self, lease_ids: Iterable[int]) -> None:
        """Queues leases for the next pulse, which gives them back."""
        self._returned.extend(lease_ids)

    def forget(self, lease_ids: set[int]) -> None:
        """Drops queued reports of leases that ended."""
        if self._sent is None:
            self._reports = [report for report in self._reports if report.lease_id not in lease_ids]

    @property
    def unreported(self) -> int:
        """Reports and leases handed back whose arrival is not confirmed."""
        return len(self._reports) + len(self._returned)

    @property
    def expecting(self) -> bool:
        """Whether the reply under way may bring leases."""
        return self._sent is not None and self._asked

    def send_if_due(
        self, now: float, version: PolicyVersion, room: int, running: tuple[int, ...], judging: int = 0
    ) -> bool:
        """Sends a pulse if none is under way and there is a reason to; returns whether it did."""
        # Under another version there may be leases that there were none of a moment ago. Who has work can wait.
        hungry = room > 0 and (version != self._told or (not running and now >= self._hungry_at))
        news = self._failures == 0 and (self.unreported or hungry)
        if self._sent is not None or not (news or now >= self._next_at):
            return False
        self._sent, self._told = (len(self._reports), len(self._returned)), version
        self._asked = room > 0
        self._number += 1
        self._controller.send(
            Pulse(
                slot=self._slot,
                incarnation=self._incarnation,
                number=self._number,
                version=version,
                room=room,
                running=(*running, *self._returned),
                reports=tuple(self._reports),
                returned=tuple(self._returned),
                judging=judging,
            )
        )
        return True

    def receive(self, now: float) -> PulseReply | None:
        """The reply to the pulse under way, once it is there.

        Raises:
            StationLost: a newer incarnation holds the slot, or the controller stays silent.
        """
        if self._sent is None:
            return None
        try:
            reply = self._controller.receive()
        except StationLost as error:
            self._retry_later(now, error)
            return None
        if reply is None:
            return None
        if reply.fenced:
            raise StationLost(
                f"rollout actor {self._slot}: a newer incarnation holds the slot, "
                f"so incarnation {self._incarnation} stops"
            )
        reports, returned = self._sent
        del self._reports[:reports]
        del self._returned[:returned]
        self._sent, self._failures = None, 0
        self._next_at = now + self._interval
        self._hungry_at = now if reply.leases else now + HUNGRY_SECONDS
        return reply

    def _retry_later(self, now: float, error: StationLost) -> None:
        self._sent = None
        if not self._failures:
            self._silent_since = now
        self._failures += 1
        silent = now - self._silent_since
        if silent >= SECONDS_UNTIL_LOST:
            raise StationLost(
                f"rollout actor {self._slot}: the controller did not answer for {silent:.0f} s, {self._failures} times "
                f"in a row; {error}"
            ) from error
        pause = min(FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 9), LONGEST_RETRY_SECONDS)
        log.warning("the controller did not answer (%s); again in %.1f s", error, pause)
        self._next_at = now + pause
