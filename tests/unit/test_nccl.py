"""NCCL without a GPU: what is sent comes together again, hand-over and deadline are kept, a CPU is refused."""

import socket
import threading
import time

import pytest
import torch

from entrostat.actors.nccl_buffer import Assembly
from entrostat.learner.nccl import Broadcaster, BucketSource, NcclPublisher, held_port
from entrostat.protocol import buckets
from entrostat.protocol.errors import ConfigError, ResourceError, Stalled, StationLost


class FakeSender:
    """Sends when it may."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.may = threading.Event()
        self.sent = 0
        self.left = False
        self.error = error

    def send_weights(self) -> None:
        self.may.wait(30)
        if self.error is not None:
            raise self.error
        self.sent += 1

    def shutdown(self) -> None:
        self.left = True


def test_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'transport = "nccl" .* runs on cpu: use transport = "shared_memory"'):
        NcclPublisher(torch.device("cpu"), 1, "127.0.0.1", 600.0)


@pytest.mark.parametrize("size", [1, 64, 200])
def test_what_is_sent_in_buckets_comes_together_again(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 64)
    buffer = torch.arange(size, dtype=torch.uint8)
    source = BucketSource(buffer)
    told = source.metadata()
    sent = list(source)
    assert [(one.name, one.dtype, one.shape) for one in told] == [(n, t.dtype, tuple(t.shape)) for n, t in sent]
    assert all(tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr() for _, tensor in sent)
    received = Assembly(size, torch.device("cpu"))
    assert received.shapes == {one.name: list(one.shape) for one in told}
    for pair in sent:
        received.load_weights([pair])
    assert torch.equal(received.buffer, buffer)


def test_the_group_is_joined_once_and_a_version_waits_for_the_one_before() -> None:
    senders: list[FakeSender] = []

    def join() -> FakeSender:
        senders.append(FakeSender())
        return senders[-1]

    broadcaster = Broadcaster(join, seconds=30)
    broadcaster.wait()  # nothing was sent yet
    for count in (1, 2):
        broadcaster.send("version 0.1")
        while not senders:
            pass
        senders[0].may.set()
        broadcaster.wait()
        assert senders[0].sent == count
    broadcaster.close()
    assert len(senders) == 1
    assert senders[0].left


def test_what_does_not_arrive_in_time_is_named() -> None:
    sender = FakeSender()
    broadcaster = Broadcaster(lambda: sender, seconds=0.05)
    broadcaster.send("version 0.7")
    with pytest.raises(Stalled, match=r"version 0\.7 was not received over NCCL within run\.stall_seconds = 0\.05"):
        broadcaster.wait()
    broadcaster.close()
    assert not sender.left  # the group is not torn down under a thread that is in it
    sender.may.set()


def test_the_deadline_counts_from_when_a_version_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = FakeSender()
    broadcaster = Broadcaster(lambda: sender, seconds=600.0)
    broadcaster.send("version 0.7")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 599.95)
    with pytest.raises(Stalled):
        broadcaster.wait()
    sender.may.set()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("NCCL error: unhandled system error"),
        AttributeError("no ncclSend"),
        TimeoutError("the store"),  # of the sender's own, which is no deadline of ours
        SystemExit("quietly"),
    ],
)
def test_whatever_ends_a_send_is_named_at_once(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    sender = FakeSender(error)
    sender.may.set()
    broadcaster = Broadcaster(lambda: sender, seconds=5)
    broadcaster.send("version 0.7")
    expected = rf"version 0\.7 could not be sent over NCCL \({type(error).__name__}: {error}\)"
    with pytest.raises(StationLost, match=expected):
        broadcaster.wait()
    broadcaster.close()  # as of the last version, which nobody waits for
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("ERROR", "version 0.7 could not be sent over NCCL")
    ]


def test_a_port_is_kept_from_others_and_left_to_the_engine() -> None:
    with held_port("127.0.0.1") as held, socket.socket() as other, socket.socket() as engine:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        engine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM's StatelessProcessGroup does
        engine.bind(("127.0.0.1", port))
        engine.listen()
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_an_address_of_another_node_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"can't wait for its rollout actor at 192\.0\.2\.1 .*node-ip-address"):
        held_port("192.0.2.1")
