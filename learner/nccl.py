"""Published versions broadcast over NCCL to the GPUs of one rollout actor, by vLLM's own trainer-side engine.

No GPU has run this: it is built after vLLM 0.32's code (`NCCLTrainerWeightTransferEngine`, `WeightSource`). Tested are
its pure parts: what is sent and in which pieces, that the other side puts them together again, the hand-over to the
thread that sends, and its deadline. On a CPU it is refused.

A version is written into one flat buffer on the learner's GPU, as for `ipc`, and sent from there in buckets, as plain
bytes and without packing; the learner trains on meanwhile. The actor receives into a flat buffer of its own and goes
on from there as with any other: checksums, canary, probe, the way back to the version before. Memory: one version on
the learner's GPU, on each of the actor's the one it serves and the one it receives.

A broadcast needs both sides at once. So the next version is published only when this one has arrived, and an actor
that dies takes the group along: the run ends when the deadline passes.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from entrostat.learner.merged import Weight
from entrostat.learner.weights import fill, layout, manifest, specs
from entrostat.protocol.buckets import pieces
from entrostat.protocol.errors import ConfigError, ResourceError, Stalled, StationLost
from entrostat.protocol.messages import NcclGroup, PolicyVersion, Probe, WeightsManifest

log = logging.getLogger(__name__)


class Bucket(NamedTuple):
    """What vLLM calls `ParamMeta`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class BucketSource:
    """A flat buffer `[bytes] uint8` as what vLLM calls a `WeightSource`: its buckets, in order, each a view."""

    def __init__(self, buffer: Tensor) -> None:
        self._buffer = buffer

    def metadata(self) -> list[Bucket]:
        """What iteration yields."""
        return [Bucket(str(i), torch.uint8, (end - first,)) for i, (first, end) in enumerate(self._pieces())]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for i, (first, end) in enumerate(self._pieces()):
            yield str(i), self._buffer[first:end]

    def _pieces(self) -> list[tuple[int, int]]:
        return pieces(self._buffer.nbytes)


class Sender(Protocol):
    """vLLM's trainer-side engine."""

    def send_weights(self) -> None:
        """Returns when all have received."""
        ...

    def shutdown(self) -> None:
        """Leaves the group."""
        ...


class SilentClient:
    """vLLM's `VLLMWeightSyncClient` where nobody needs to be told: an actor joins when it meets the manifest."""

    def init_weight_transfer_engine(self, init_info: dict[str, object]) -> None:
        """The actor has the group's address from the manifest."""

    def start_weight_update(self) -> None:
        """The actor starts by itself."""

    def update_weights(self, update_info: object) -> None:
        """The actor knows the buckets by the buffer's size."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The actor finishes by itself."""


class Broadcaster:
    """Sends the buffer's content in a thread of its own.

    Args:
        open: joins the group; called by that thread, as it waits for the others.
        seconds: from when it is sent until it must have arrived.
    """

    def __init__(self, open: Callable[[], Sender], seconds: float) -> None:
        self._open = open
        self._seconds = seconds
        self._sender: Sender | None = None
        self._arrival: Future[None] | None = None
        self._what, self._begun = "", 0.0

    def send(self, what: str) -> None:
        """Begins to send, and returns; what was sent before must have arrived."""
        self._arrival, self._what, self._begun = Future(), what, time.monotonic()
        threading.Thread(target=self._work, args=(self._arrival,), name="broadcast", daemon=True).start()

    def wait(self) -> None:
        """Returns once everybody has what was sent last.

        Raises:
            Stalled: not within the deadline.
            StationLost: sending failed.
        """
        if self._arrival is None:
            return
        wait([self._arrival], max(0.0, self._begun + self._seconds - time.monotonic()))
        if not self._arrival.done():
            raise Stalled(
                f"{self._what} was not received over NCCL within run.stall_seconds = {self._seconds:g}: the rollout "
                "actor died, does not reach the learner, or evaluates for so long; its log says which. Resume the run "
                "from its last checkpoint"
            )
        error = self._arrival.exception()
        if error is not None:
            raise StationLost(
                f"{self._what} could not be sent over NCCL ({type(error).__name__}: {error}): see the logs of learner "
                "and rollout actor, and resume the run from its last checkpoint"
            ) from error

    def close(self) -> None:
        """Leaves the group, unless the others are still waited for: then the process's end does.

        Nobody waits for the last version any more: that it did not arrive is told by the log alone.
        """
        if self._arrival is None:
            return
        if not self._arrival.done():
            log.warning("%s was not received over NCCL when the learner ended", self._what)
            return
        error = self._arrival.exception()
        if error is not None:
            log.error("%s could not be sent over NCCL", self._what, exc_info=error)
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None

    def _work(self, arrival: "Future[None]") -> None:
        try:
            if self._sender is None:
                self._sender = self._open()
            self._sender.send_weights()
        except BaseException as error:  # noqa: BLE001 - nobody is above this thread: `wait` and `close` tell it
            arrival.set_exception(error)
        else:
            arrival.set_result(None)


class NcclPublisher:
    """Sends each version from a flat buffer in the learner's GPU memory.

    Args:
        device: the learner's.
        gpus: of the rollout actor.
        address: of the learner's node, as the actor reaches it.
        seconds: from when a version is sent until it must have arrived.

    Raises:
        ConfigError: the learner has no GPU.
    """

    def __init__(self, device: torch.device, gpus: int, address: str, seconds: float) -> None:
        if device.type != "cuda":
            raise ConfigError(
                f'[learner] transport = "nccl" goes from GPU to GPU, and the learner runs on {device}: '
                'use transport = "shared_memory"'
            )
        self._device = device
        self._port = held_port(address)
        self._location = NcclGroup(host=address, port=self._port.getsockname()[1], ranks=1 + gpus)
        self._buffer: Tensor | None = None
        self._broadcaster = Broadcaster(self._join, seconds)

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Weight], probe: Probe) -> WeightsManifest:
        """See `Publisher`.

        Raises:
            Stalled, StationLost: the version before did not arrive.
        """
        self._broadcaster.wait()
        places, size = layout(tensors)
        if self._buffer is None:
            try:
                self._buffer = torch.zeros(size, dtype=torch.uint8, device=self._device)
            except torch.OutOfMemoryError as error:
                raise ResourceError(
                    f"a policy version of {size:,} bytes does not fit into {self._device}'s memory beside the policy: "
                    'use learner.transport = "shared_memory"'
                ) from error
        fill(self._buffer, places)
        torch.cuda.synchronize(self._device)  # the thread that sends has a stream of its own
        # Checksums are made of a copy on the host; the GPU has none of this kind.
        found = specs(self._buffer.cpu().numpy(), places, torch.get_num_threads())
        self._broadcaster.send(f"version {version}")
        return manifest(version, found, size, self._location, probe)

    def close(self) -> None:
        """Lets go of the buffer and leaves the group."""
        self._broadcaster.close()
        self._port.close()
        self._buffer = None

    def _join(self) -> Sender:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        assert self._buffer is not None
        source: Any = BucketSource(self._buffer)  # has what the engine asks of a `WeightSource`
        torch.cuda.set_device(self._device)  # of this thread
        sender: Sender = NCCLTrainerWeightTransferEngine.trainer_init(
            NCCLTrainerInitInfo(
                rank=0,
                master_address=self._location.host,
                master_port=self._location.port,
                world_size=self._location.ranks,
                packed=False,
            ),
            client=SilentClient(),
            source=source,
        )
        return sender


def held_port(address: str) -> socket.socket:
    """A free port of this node's address, kept from others until the socket is closed.

    vLLM's engine takes a number and listens there itself, when the group is joined. It may, because both sockets say
    SO_REUSEADDR and this one never listens; another process is given the port neither by number nor as a free one.

    Raises:
        ResourceError: the address is not this node's.
    """
    with contextlib.ExitStack() as unwound:
        held = unwound.enter_context(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((address, 0))
        except OSError as error:
            raise ResourceError(
                f"the learner can't wait for its rollout actor at {address} ({error.strerror}): expected this node's "
                'own IPv4 address, as Ray knows it (ray start --node-ip-address); or use transport = "shared_memory"'
            ) from error
        unwound.pop_all()
    return held
