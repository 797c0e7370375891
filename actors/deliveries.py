"""How long an actor waits for the controller and the sample buffer, and how often it asks again: no transport in it."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import StationLost
from entrostat.protocol.messages import Group, Pulse, PulseReply

log = logging.getLogger(__name__)

CONTROLLER_SECONDS = 30.0  # for one reply
BUFFER_SECONDS = 60.0  # for one group
PUTS_UNTIL_LOST = 6  # of one group …
FIRST_RETRY_SECONDS = 0.5  # … with doubling pauses between: a buffer that restarts is gone for seconds


class Calls(Protocol):
    """Calls of one method of another process: begun at once, answered some time or never."""

    def begin(self, *arguments: int | UInt8) -> Any:
        """Starts a call; returns what stands for its answer."""
        ...

    def answered(self, references: Sequence[Any]) -> list[Any]:
        """Those whose answer is there, or will never come, without waiting."""
        ...

    def answer(self, reference: Any) -> Any:
        """An answer that is there.

        Raises:
            StationLost: the process called is gone, or restarts, or its answer can't be read.
        """
        ...


class Conversation:
    """A `ControllerPort`: pulses, each answered before its deadline or given up."""

    def __init__(self, calls: Calls, clock: Callable[[], float]) -> None:
        self._calls, self._clock = calls, clock
        self._reference: Any = None
        self._deadline = 0.0

    def send(self, pulse: Pulse) -> None:
        """Sends a pulse; the one before must have been answered."""
        self._reference = self._calls.begin(wire.encode(pulse))
        self._deadline = self._clock() + CONTROLLER_SECONDS

    def receive(self) -> PulseReply | None:
        """The answer to the last pulse, once it is there.

        Raises:
            StationLost: the controller died, or did not answer within its deadline.
        """
        if self._reference is None:
            return None
        if not self._calls.answered([self._reference]):
            if self._clock() < self._deadline:
                return None
            self._reference = None
            raise StationLost(f"the controller did not answer a pulse within {CONTROLLER_SECONDS:.0f} s")
        reference, self._reference = self._reference, None
        try:
            return wire.decode(self._calls.answer(reference), PulseReply)
        except StationLost as error:
            raise StationLost(f"the controller did not answer a pulse: {error}") from error


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A group on its way."""

    lease_id: int
    frame: UInt8
    attempt: int
    due: float  # seconds: given up then, or sent again then if it waits for that


class Deliveries:
    """A `BufferPort`: groups, each sent again until the buffer confirms it, at most some times."""

    def __init__(self, calls: Calls, clock: Callable[[], float]) -> None:
        self._calls, self._clock = calls, clock
        self._sent: dict[Any, Delivery] = {}  # by reference
        self._failed: list[Delivery] = []  # to be sent again

    def send(self, group: Group) -> None:
        """Sends a group to the buffer; returns at once."""
        self._put(group.rollout.lease.id, wire.encode(group), 1)

    def stored(self) -> list[int]:
        """Lease ids of groups that the buffer has confirmed since the last call.

        Raises:
            StationLost: a group could not be stored, again and again.
        """
        if not self._sent and not self._failed:
            return []
        now = self._clock()
        confirmed = self._confirmed()
        for reference in [reference for reference, sent in self._sent.items() if now > sent.due]:
            self._fail(self._sent.pop(reference), f"no answer within {BUFFER_SECONDS:.0f} s")
        due = [one for one in self._failed if now >= one.due]
        self._failed = [one for one in self._failed if now < one.due]
        for one in due:
            self._put(one.lease_id, one.frame, one.attempt + 1)
        return confirmed

    def _confirmed(self) -> list[int]:
        confirmed = []
        for reference in self._calls.answered(list(self._sent)) if self._sent else ():
            sent = self._sent.pop(reference)
            try:
                self._calls.answer(reference)
                confirmed.append(sent.lease_id)
            except StationLost as error:
                self._fail(sent, str(error))
        return confirmed

    def _put(self, lease_id: int, frame: UInt8, attempt: int) -> None:
        reference = self._calls.begin(lease_id, frame)
        due = self._clock() + BUFFER_SECONDS
        self._sent[reference] = Delivery(lease_id=lease_id, frame=frame, attempt=attempt, due=due)

    def _fail(self, sent: Delivery, why: str) -> None:
        if sent.attempt == PUTS_UNTIL_LOST:
            raise StationLost(
                f"the sample buffer did not take the group of lease {sent.lease_id} {sent.attempt} times: {why}"
            )
        pause = FIRST_RETRY_SECONDS * 2 ** (sent.attempt - 1)
        log.warning("the sample buffer did not take lease %d's group (%s); again in %.1f s", sent.lease_id, why, pause)
        self._failed.append(msgspec.structs.replace(sent, due=self._clock() + pause))
