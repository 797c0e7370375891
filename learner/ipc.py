"""Published versions as device memory, shared with processes on the same GPU through CUDA IPC.

What travels are the arguments torch itself sends to rebuild a CUDA tensor in another process
(`torch.multiprocessing.reductions.reduce_tensor`): CUDA's handle of the allocation, and torch's own reference count and
event, which keep the memory alive while an engine still copies from it.
"""

import socket
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from entrostat.learner.weights import fill, layout, manifest, specs
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.messages import CudaMemory, PolicyVersion, Probe, WeightsManifest

KEPT_VERSIONS = 2


class IpcPublisher:
    """Keeps the newest versions in the learner's device memory."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ResourceError(
                f'learner.transport = "ipc" shares memory of a GPU, and the learner runs on {device}: '
                'use transport = "shared_memory"'
            )
        self._device = device
        self._versions: list[Tensor] = []

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor], probe: Probe) -> WeightsManifest:
        """See `Publisher`."""
        places, size = layout(tensors)
        while len(self._versions) >= KEPT_VERSIONS:
            self._versions.pop(0)
        try:
            buffer = torch.zeros(size, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"a policy version needs {size:,} bytes of {self._device}'s memory: lower rollout.engine.memory_share, "
                'or use learner.transport = "shared_memory"'
            ) from error
        fill(buffer, places)
        torch.cuda.synchronize(self._device)
        self._versions.append(buffer)
        # Checksums are made of a copy on the host; the GPU has none of this kind.
        return manifest(version, specs(buffer.cpu().numpy(), places), size, shared(buffer), probe)

    def close(self) -> None:
        """Lets go of every version."""
        self._versions.clear()


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
