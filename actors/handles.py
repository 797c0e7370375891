"""Ray's handles of the controller and of the sample buffer, as a rollout actor's ports (protocol/ports.py)."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from entrostat.actors.deliveries import Conversation, Deliveries
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, StationLost
from entrostat.protocol.messages import Group, Pulse, PulseReply

READ_SECONDS = 30.0  # for an answer that is there


class RayCalls:
    """One method of a Ray actor's handle as `Calls`."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def begin(self, *arguments: int | UInt8) -> Any:
        """Starts a call; returns its reference."""
        return self._method.remote(*arguments)

    def answered(self, references: Sequence[Any]) -> list[Any]:
        """Those whose answer is there, without waiting."""
        ready: list[Any] = ray.wait(list(references), num_returns=len(references), timeout=0)[0]
        return ready

    def answer(self, reference: Any) -> Any:
        """A call's answer; an error of ours on the other side is raised here as itself.

        Raises:
            StationLost: the actor died, or its answer could not be read.
        """
        try:
            return ray.get(reference, timeout=READ_SECONDS)
        except RayTaskError as error:
            if isinstance(error.cause, EntrostatError):
                raise error.cause from None
            raise
        except (RayActorError, GetTimeoutError) as error:
            raise StationLost(str(error)) from error


class RayController:
    """The controller's handle as a `ControllerPort`."""

    def __init__(self, handle: Any) -> None:
        self._conversation = Conversation(RayCalls(handle.pulse), time.monotonic)

    def send(self, pulse: Pulse) -> None:
        """Sends a pulse; the one before must have been answered."""
        self._conversation.send(pulse)

    def receive(self) -> PulseReply | None:
        """The answer to the last pulse, once it is there.

        Raises:
            StationLost: the controller died, or did not answer within its deadline.
        """
        return self._conversation.receive()


class RayBuffer:
    """The sample buffer's handle as a `BufferPort`. A group that does not arrive is sent again, some times."""

    def __init__(self, handle: Any) -> None:
        self._deliveries = Deliveries(RayCalls(handle.put), time.monotonic)

    def send(self, group: Group) -> None:
        """Sends a group to the buffer; returns at once."""
        self._deliveries.send(group)

    def stored(self) -> list[int]:
        """Lease ids of groups that the buffer has confirmed since the last call.

        Raises:
            StationLost: a group could not be stored, again and again.
        """
        return self._deliveries.stored()
