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

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from entrostat.learner.merged import Weight
from entrostat.learner.weights import fill, layout, manifest, specs
from entrostat.protocol.buckets import pieces
from entrostat.protocol.errors import ConfigError, ResourceError, Stalled, StationLost
from entrostat.protocol.messages import NcclGroup, PolicyVersion, Probe, WeightsManifest

# An actor takes no new weights while it evaluates, which may last half an hour.
ARRIVAL_SECONDS = 2400.0


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
        seconds: until what is sent must have arrived.
    """

    def __init__(self, open: Callable[[], Sender], seconds: float = ARRIVAL_SECONDS) -> None:
        self._open = open
        self._seconds = seconds
        self._sender: Sender | None = None
        self._arrival: Future[None] | None = None
        self._what = ""

    def send(self, what: str) -> None:
        """Begins to send, and returns; what was sent before must have arrived."""
        self._arrival, self._what = Future(), what
        threading.Thread(target=self._work, args=(self._arrival,), name="broadcast", daemon=True).start()

    def wait(self) -> None:
        """Returns once everybody has what was sent last.

        Raises:
            Stalled: not within the deadline.
            StationLost: sending failed.
        """
        if self._arrival is None:
            return
        try:
            self._arrival.result(self._seconds)
        except TimeoutError as error:
            raise Stalled(
                f"{self._what} was not received over NCCL within {self._seconds:g} s: the rollout actor died or does "
                "not reach the learner; its log says which. Resume the run from its last checkpoint"
            ) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise StationLost(f"{self._what} could not be sent over NCCL: {error}") from error

    def close(self) -> None:
        """Leaves the group, unless the others are still waited for: then the process's end does."""
        if self._sender is not None and self._arrival is not None and self._arrival.done():
            self._sender.shutdown()
            self._sender = None

    def _work(self, arrival: Future[None]) -> None:
        try:
            if self._sender is None:
                self._sender = self._open()
            self._sender.send_weights()
        except (RuntimeError, ValueError, OSError) as error:
            arrival.set_exception(error)
        else:
            arrival.set_result(None)


class NcclPublisher:
    """Sends each version from a flat buffer in the learner's GPU memory.

    Args:
        device: the learner's.
        gpus: of the rollout actor.

    Raises:
        ConfigError: the learner has no GPU.
    """

    def __init__(self, device: torch.device, gpus: int) -> None:
        if device.type != "cuda":
            raise ConfigError(
                f'[learner] transport = "nccl" goes from GPU to GPU, and the learner runs on {device}: '
                'use transport = "shared_memory"'
            )
        self._device = device
        self._location = NcclGroup(host=socket.gethostbyname(socket.gethostname()), port=_free_port(), ranks=1 + gpus)
        self._buffer: Tensor | None = None
        self._broadcaster = Broadcaster(self._join)

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
