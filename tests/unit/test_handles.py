"""A rollout actor's ports over Ray's handles: nothing waits beyond its deadline, and a lost group is sent again."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from entrostat.actors import handles
from entrostat.actors.deliveries import (
    BUFFER_SECONDS,
    CONTROLLER_SECONDS,
    FIRST_RETRY_SECONDS,
    PUTS_UNTIL_LOST,
)
from entrostat.actors.handles import RayBuffer, RayController
from entrostat.protocol import wire
from entrostat.protocol.errors import StationLost, WireError
from entrostat.protocol.messages import Pulse, PulseReply
from tests.made_messages import version
from tests.tiny_policy import make_group

PULSE = Pulse(slot=0, incarnation=1, version=version(0), room=1, running=(), reports=())
REPLY = PulseReply(leases=(), ended=(), manifest=None, fenced=False)


class Handle:
    """Ray as a port sees it: calls are answered when the test says so, with a value or an error."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[int, Any] = {}
        self.put = self.pulse = SimpleNamespace(remote=self._call)

    def _call(self, *arguments: Any) -> int:
        self.calls.append(arguments)
        return len(self.calls) - 1

    def wait(self, calls: Sequence[int], *, timeout: float, num_returns: int = 1) -> tuple[list[int], list[int]]:
        assert timeout == 0
        return [one for one in calls if one in self.answers], [one for one in calls if one not in self.answers]

    def get(self, call: int, *, timeout: float) -> Any:
        assert timeout > 0
        answer = self.answers[call]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    made = Handle()
    monkeypatch.setattr(handles, "ray", made)
    monkeypatch.setattr(handles, "time", made)
    return made


def test_a_group_is_confirmed_once_it_is_stored(handle: Handle) -> None:
    buffer, group = RayBuffer(handle), make_group(3)
    buffer.send(group)
    assert buffer.stored() == []
    handle.answers[0] = None
    assert buffer.stored() == [group.rollout.lease.id]
    assert buffer.stored() == []
    assert len(handle.calls) == 1


@pytest.mark.parametrize("dies", [True, False], ids=["the buffer dies", "no answer comes"])
def test_a_group_that_does_not_arrive_is_sent_again_and_after_some_times_the_buffer_is_lost(
    handle: Handle, dies: bool
) -> None:
    buffer = RayBuffer(handle)
    buffer.send(make_group(3))

    def fail() -> None:
        if dies:
            handle.answers[len(handle.calls) - 1] = RayActorError()
        handle.now += BUFFER_SECONDS + 1.0

    for attempt in range(1, PUTS_UNTIL_LOST):
        fail()
        assert buffer.stored() == []
        assert len(handle.calls) == attempt  # not at once: a buffer that restarts needs time
        handle.now += FIRST_RETRY_SECONDS * 2 ** (attempt - 1)
        assert buffer.stored() == []
        assert len(handle.calls) == attempt + 1
        assert handle.calls[-1][0] == handle.calls[0][0]
        assert handle.calls[-1][1] is handle.calls[0][1]  # the same frame
    fail()
    with pytest.raises(StationLost, match=f"did not take the group of lease .* {PUTS_UNTIL_LOST} times"):
        buffer.stored()


def test_a_pulse_is_answered_or_the_controller_is_lost_after_its_deadline(handle: Handle) -> None:
    controller = RayController(handle)
    assert controller.receive() is None
    controller.send(PULSE)
    handle.now = CONTROLLER_SECONDS - 1.0
    assert controller.receive() is None
    handle.answers[0] = wire.encode(REPLY)
    assert controller.receive() == REPLY
    controller.send(PULSE)
    handle.now += CONTROLLER_SECONDS + 1.0
    with pytest.raises(StationLost, match="did not answer a pulse within 30 s"):
        controller.receive()
    assert controller.receive() is None  # another may be sent


@pytest.mark.parametrize("error", [RayActorError(), GetTimeoutError("late")])
def test_a_controller_that_died_is_lost(handle: Handle, error: Exception) -> None:
    controller = RayController(handle)
    controller.send(PULSE)
    handle.answers[0] = error
    with pytest.raises(StationLost, match="did not answer a pulse"):
        controller.receive()


def test_an_error_of_ours_on_the_other_side_is_raised_as_itself(handle: Handle) -> None:
    controller = RayController(handle)
    controller.send(PULSE)
    handle.answers[0] = RayTaskError("pulse", "traceback", WireError("a checksum is wrong"))
    with pytest.raises(WireError, match="a checksum is wrong"):
        controller.receive()
