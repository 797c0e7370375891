"""Published versions as device memory, shared with processes on the same GPU through CUDA IPC.

What travels are the arguments torch itself sends to rebuild a CUDA tensor in another process
(`torch.multiprocessing.reductions.reduce_tensor`): CUDA's handle of the allocation, and torch's reference count and
event. The count is not relied on: it rises with every export, whether somebody opens it or not, and falls with every
reader that goes. Instead the memory lives as long as its publisher, and is used again: a manifest's checksums tell a
reader that comes too late.
"""

import socket
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from entrostat.learner.merged import Weight
from entrostat.learner.weights import fill, layout, manifest, specs
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.messages import CudaMemory, PolicyVersion, Probe, WeightsManifest

BUFFERS = 3  # what an engine serves, what it loads, and what is in the making


class Ring:
    """Flat buffers that are used in turn and never freed, each exported once.

    Args:
        device: where they lie.
        size: of each, in bytes.
        export: what another process needs to open one.

    Raises:
        ResourceError: the device has no room for them.
    """

    def __init__(self, device: torch.device, size: int, export: Callable[[Tensor], CudaMemory]) -> None:
        try:
            buffers = [torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(BUFFERS)]
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"{BUFFERS} policy versions of {size:,} bytes don't fit into {device}'s memory: lower "
                'rollout.engine.memory_share, or use learner.transport = "shared_memory"'
            ) from error
        self._places = [(buffer, export(buffer)) for buffer in buffers]
        self._used = 0

    def turn(self) -> tuple[Tensor, CudaMemory]:
        """The buffer `[bytes] uint8` whose content is oldest, to be filled anew, and where readers find it."""
        place = self._places[self._used % BUFFERS]
        self._used += 1
        return place


class IpcPublisher:
    """Keeps the newest versions in the learner's device memory."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ResourceError(
                f'learner.transport = "ipc" shares memory of a GPU, and the learner runs on {device}: '
                'use transport = "shared_memory"'
            )
        self._device = device
        self._ring: Ring | None = None

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Weight], probe: Probe) -> WeightsManifest:
        """See `Publisher`."""
        places, size = layout(tensors)
        if self._ring is None:
            self._ring = Ring(self._device, size, shared)  # every version has the same size
        buffer, location = self._ring.turn()
        fill(buffer, places)
        torch.cuda.synchronize(self._device)  # a reader that has the buffer open waits for nothing else
        # Checksums are made of a copy on the host; the GPU has none of this kind.
        return manifest(version, specs(buffer.cpu().numpy(), places), size, location, probe)

    def close(self) -> None:
        """Lets go of every version."""
        self._ring = None


def shared(buffer: Tensor) -> CudaMemory:
    """What another process needs to open `buffer [bytes] uint8` on the same GPU."""
    arguments: tuple[Any, ...] = reduce_tensor(buffer)[1]
    device, handle, storage_bytes, storage_offset = arguments[6:10]
    reference_handle, reference_offset, event_handle, event_sync = arguments[11:15]
    return CudaMemory(
        host=socket.gethostname(),
        device_uuid=str(torch.cuda.get_device_properties(device).uuid),
        handle=handle,
        storage_bytes=storage_bytes,
        storage_offset_bytes=storage_offset,
        reference_handle=reference_handle,
        reference_offset=reference_offset,
        event_handle=event_handle,
        event_sync=event_sync,
    )
