"""NCCL without a GPU: what is sent comes together again, hand-over and deadline are kept, a CPU is refused."""

import threading

import pytest
import torch

from entrostat.actors.nccl_buffer import Assembly
from entrostat.learner.nccl import Broadcaster, BucketSource, NcclPublisher
from entrostat.protocol import buckets
from entrostat.protocol.errors import ConfigError, Stalled, StationLost


class FakeSender:
    """Sends when it may."""

    def __init__(self, error: Exception | None = None) -> None:
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
        NcclPublisher(torch.device("cpu"), 1)


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
    with pytest.raises(Stalled, match=r"version 0\.7 was not received over NCCL within 0\.05 s"):
        broadcaster.wait()
    broadcaster.close()
    assert not sender.left  # the group is not torn down under a thread that is in it
    sender.may.set()


def test_what_can_not_be_sent_is_named() -> None:
    sender = FakeSender(RuntimeError("NCCL error: unhandled system error"))
    sender.may.set()
    broadcaster = Broadcaster(lambda: sender, seconds=30)
    broadcaster.send("version 0.7")
    with pytest.raises(StationLost, match=r"version 0\.7 could not be sent over NCCL: NCCL error"):
        broadcaster.wait()
