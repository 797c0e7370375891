"""Ray's handles of the controller and of the sample buffer, as a rollout actor's ports (protocol/ports.py)."""

import logging
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, StationLost
from entrostat.protocol.messages import Group, Pulse, PulseReply

log = logging.getLogger(__name__)

CONTROLLER_SECONDS = 30.0  # for one reply
BUFFER_SECONDS = 60.0  # for one group
PUTS_UNTIL_LOST = 4  # of one group


class RayController:
    """The controller's handle as a `ControllerPort`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._reference: Any = None
        self._deadline = 0.0

    def send(self, pulse: Pulse) -> None:
        """Sends a pulse; the one before must have been answered."""
        self._reference = self._handle.pulse.remote(wire.encode(pulse))
        self._deadline = time.monotonic() + CONTROLLER_SECONDS

    def receive(self) -> PulseReply | None:
        """The answer to the last pulse, once it is there.

        Raises:
            StationLost: the controller died, or did not answer within its deadline.
        """
        if self._reference is None:
            return None
        if not ray.wait([self._reference], timeout=0)[0]:
            if time.monotonic() < self._deadline:
                return None
            self._reference = None
            raise StationLost(f"the controller did not answer a pulse within {CONTROLLER_SECONDS:.0f} s")
        reference, self._reference = self._reference, None
        try:
            return wire.decode(_get(reference, CONTROLLER_SECONDS), PulseReply)
        except (RayActorError, GetTimeoutError) as error:
            raise StationLost(f"the controller did not answer a pulse: {error}") from error


class RayBuffer:
    """The sample buffer's handle as a `BufferPort`. A group that does not arrive is sent again, some times."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._sent: dict[Any, tuple[int, UInt8, int, float]] = {}  # reference → lease, frame, attempt, deadline

    def send(self, group: Group) -> None:
        """Sends a group to the buffer; returns at once."""
        self._put(group.rollout.lease.id, wire.encode(group), 1)

    def stored(self) -> list[int]:
        """Lease ids of groups that the buffer has confirmed since the last call.

        Raises:
            StationLost: a group could not be stored, again and again.
        """
        if not self._sent:
            return []
        ready, waiting = ray.wait(list(self._sent), num_returns=len(self._sent), timeout=0)
        confirmed = []
        for reference in ready:
            lease_id, frame, attempt, _ = self._sent.pop(reference)
            try:
                _get(reference, BUFFER_SECONDS)
                confirmed.append(lease_id)
            except RayActorError as error:
                self._again(lease_id, frame, attempt, str(error))
        for reference in waiting:
            lease_id, frame, attempt, deadline = self._sent[reference]
            if time.monotonic() > deadline:
                del self._sent[reference]
                self._again(lease_id, frame, attempt, f"no answer within {BUFFER_SECONDS:.0f} s")
        return confirmed

    def _put(self, lease_id: int, frame: UInt8, attempt: int) -> None:
        reference = self._handle.put.remote(lease_id, frame)
        self._sent[reference] = (lease_id, frame, attempt, time.monotonic() + BUFFER_SECONDS)

    def _again(self, lease_id: int, frame: UInt8, attempt: int, why: str) -> None:
        if attempt == PUTS_UNTIL_LOST:
            raise StationLost(f"the sample buffer did not take the group of lease {lease_id} {attempt} times: {why}")
        log.warning("the sample buffer did not take the group of lease %d (%s); sent again", lease_id, why)
        self._put(lease_id, frame, attempt + 1)


def _get(reference: Any, seconds: float) -> Any:
    """A call's answer; an error of ours on the other side is raised here as itself."""
    try:
        return ray.get(reference, timeout=seconds)
    except RayTaskError as error:
        if isinstance(error.cause, EntrostatError):
            raise error.cause from None
        raise
