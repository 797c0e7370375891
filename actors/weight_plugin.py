"""Weights into vLLM, in vLLM's own process: a weight-transfer engine that maps a version's flat buffer.

vLLM finds `register` through the entry point group `vllm.general_plugins`, in every process it starts. `Receiver` is
mixed into its workers, so that what was loaded can be asked with `collective_rpc`.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from entrostat.actors import adapter
from entrostat.actors.flat_buffer import SharedFiles, check_host, damaged
from entrostat.actors.nccl_buffer import NcclReceiver
from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.learner_settings import Lora
from entrostat.protocol.messages import CudaMemory, NcclGroup, SharedFile, TensorSpec, WeightsManifest

BACKEND = "entrostat"
# They warn, at every start or update, of what does not concern us: missing allocators, rotary caches that no checkpoint
# holds (what an update left out is in its receipt).
TALKATIVE_LOGGERS = ("vllm.v1.worker.cpu_worker", "vllm.model_executor.model_loader.reload.layerwise")
RECEIVER = "entrostat.actors.weight_plugin.Receiver"


def register() -> None:
    """Makes the backend known to vLLM in this process; calling it again does nothing."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "entrostat.actors.weight_plugin", "FlatBufferEngine")
    for name in TALKATIVE_LOGGERS:
        # A filter: vLLM resets its loggers' levels more than once.
        logging.getLogger(name).addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def settle_on_cpu(threads: int) -> None:
    """Computes with so many threads, and compiles nothing: it costs the first generation many seconds.

    The variable alone would not do: torch reads it once, and may have been imported long before.
    """
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    torch._dynamo.config.disable = True
    torch.set_num_threads(threads)


def update_info(manifest: WeightsManifest, *, perturb: bool = False, keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """What vLLM carries to its workers for one update: plain values only.

    Args:
        manifest: the version to load.
        perturb: load wrong values instead (each tensor's, moved on by one place), as a test of the probe.
        keep: versions whose buffers stay mapped besides this one's, so that they can be loaded again.
    """
    return {
        "version": str(manifest.version),
        "location": msgspec.to_builtins(manifest.location, builtin_types=(bytes,)),
        "tensors": [msgspec.to_builtins(spec) for spec in manifest.tensors],
        "bytes": manifest.bytes,
        "perturb": perturb,
        "keep": list(keep),
    }


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is not typed
    """Nothing needs to be agreed on beforehand."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]  # vLLM is not typed
    """`update_info`'s values, as vLLM hands them to `receive_weights`."""

    version: str
    location: dict[str, Any]
    tensors: list[dict[str, Any]]
    bytes: int
    perturb: bool = False
    keep: list[str] = field(default_factory=list)


class FlatBufferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]  # vLLM is not typed
    """Maps flat buffers and loads the model from them, layer by layer."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._buffers: dict[str, tuple[dict[str, Any], torch.Tensor]] = {}  # version → where it lies, [bytes] uint8
        self._files = SharedFiles()
        self._nccl = NcclReceiver(self)
        self._opened: dict[tuple[bytes, int], torch.Tensor] = {}  # the learner's buffers, which it uses in turn
        self._expected: set[str] = set()
        self.loaded: list[str] = []
        self.missing: list[str] = []

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to agree on."""

    def start_weight_update(self) -> None:
        """Takes vLLM's repacked layers apart, so that a checkpoint's tensors fit again."""
        initialize_layerwise_reload(self.model)
        # Now, before loading merges them again, tied parameters are counted apart.
        self._expected = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        self.loaded, self.missing = [], []

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Loads every tensor of the buffer into the model."""
        specs = msgspec.convert(update_info.tensors, list[TensorSpec])
        buffer = self._buffer(update_info)
        model: Any = self.model
        received = model.load_weights(self._tensors(buffer, specs, update_info.perturb))
        self.loaded = [spec.name for spec in specs]
        self.missing = sorted(self._expected - received) if received is not None else []

    def adapter(self, info: UpdateInfo) -> dict[str, torch.Tensor]:
        """The tensors of a buffer that holds an adapter; wrong ones where the update asks for them.

        B starts at zero, which no change of places alters: 1 is added.
        """
        found = self._tensors(self._buffer(info), msgspec.convert(info.tensors, list[TensorSpec]), info.perturb)
        return {name: tensor + 1.0 if info.perturb else tensor for name, tensor in found}

    def finish_weight_update(self) -> None:
        """Lets vLLM repack what was loaded."""
        finalize_layerwise_reload(self.model, self.model_config)

    def damaged(self, info: UpdateInfo) -> list[str]:
        """Names of the buffer's tensors that don't match their checksums; the model is not touched."""
        buffer = self._buffer(info)
        host = buffer if buffer.device.type == "cpu" else buffer.cpu()
        return damaged(host.numpy(), msgspec.convert(info.tensors, list[TensorSpec]), torch.get_num_threads())

    def keep(self, versions: Sequence[str]) -> None:
        """Lets go of all other versions' buffers: the learner may use them again."""
        self._buffers = {version: held for version, held in self._buffers.items() if version in versions}
        self._files.keep([place["path"] for place, _ in self._buffers.values() if "path" in place])

    def shutdown(self) -> None:
        """Lets the buffers go."""
        self.keep(())
        self._opened.clear()
        self._nccl.close()

    def _buffer(self, info: UpdateInfo) -> torch.Tensor:
        """The version's flat buffer `[bytes] uint8`, mapped once; those of versions not to be kept are let go.

        Device memory stays open: the learner writes later versions to the same place, and exports it only once.
        """
        self.keep((info.version, *info.keep))
        place, buffer = self._buffers.get(info.version, ({}, None))
        if buffer is None or place != info.location:
            kinds = SharedFile | CudaMemory | NcclGroup
            location: SharedFile | CudaMemory | NcclGroup = msgspec.convert(info.location, kinds)
            if isinstance(location, SharedFile):
                buffer = torch.from_numpy(self._files.hold(location, info.bytes))
            elif isinstance(location, NcclGroup):
                buffer = self._nccl.receive(info.version, location, info.bytes)
            else:
                opened = (location.handle, location.storage_offset_bytes)
                if opened not in self._opened:
                    self._opened[opened] = _open_cuda(location, info.bytes, self.device)
                buffer = self._opened[opened]
            self._buffers[info.version] = (info.location, buffer)
        return buffer

    def _tensors(
        self, buffer: torch.Tensor, specs: list[TensorSpec], perturb: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors as views of the buffer `[bytes] uint8`, under their names."""
        seen: set[tuple[int, int]] = set()
        for spec in specs:
            place = (spec.offset, spec.bytes)
            if place in seen and not self._has(spec.name):
                continue  # a head tied in the model's own code, not as a module
            seen.add(place)
            flat = buffer[spec.offset : spec.offset + spec.bytes]
            tensor = flat.view(getattr(torch, spec.dtype)).view(spec.shape)
            yield spec.name, tensor.flatten().roll(1).view(spec.shape) if perturb else tensor

    def _has(self, name: str) -> bool:
        module = name.rpartition(".")[0].rpartition(".")[2]
        return any(path.rpartition(".")[2] == module for path, _ in self.model.named_modules())


class Receiver:
    """Methods vLLM's workers gain; they answer with plain values."""

    weight_transfer_engine: Any

    def entrostat_inspect(self, info: dict[str, Any]) -> dict[str, Any]:
        """Maps a buffer and holds it against its checksums; an error comes back as words, whatever the process."""
        try:
            return {"damaged": self.weight_transfer_engine.damaged(UpdateInfo(**info)), "error": ""}
        except WeightsRefused as error:
            return {"damaged": [], "error": str(error)}

    def entrostat_adapt(self, info: dict[str, Any], lora: dict[str, Any]) -> list[str]:
        """Loads an adapter; the layers that vLLM can't have it beside, and then nothing was changed."""
        engine = self.weight_transfer_engine
        tensors = engine.adapter(UpdateInfo(**info))
        homeless = adapter.exchange(self, tensors, msgspec.convert(lora, Lora))
        engine.loaded, engine.missing = ([], homeless) if homeless else (list(tensors), [])
        return homeless

    def entrostat_keep(self, versions: list[str]) -> None:
        """Lets go of the buffers of all other versions."""
        self.weight_transfer_engine.keep(versions)

    def entrostat_receipt(self) -> dict[str, list[str]]:
        """What the last update loaded, and which parameters it loaded nothing into."""
        return {"loaded": self.weight_transfer_engine.loaded, "missing": self.weight_transfer_engine.missing}


def _open_cuda(location: CudaMemory, expected_bytes: int, device: torch.device) -> torch.Tensor:
    """The learner's flat buffer `[bytes] uint8` on this worker's GPU, without a copy.

    Raises:
        WeightsRefused: the buffer lies on another host or GPU.
    """
    check_host(location)
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    if location.device_uuid != uuid:
        raise WeightsRefused(
            f"the weights lie on GPU {location.device_uuid} of {location.host}, this actor computes on {uuid}: "
            'set learner.transport = "shared_memory", or place both on one GPU'
        )
    tensor: torch.Tensor = rebuild_cuda_tensor(
        torch.Tensor,
        (expected_bytes,),
        (1,),
        0,
        torch.UntypedStorage,
        torch.uint8,
        device.index if device.index is not None else torch.cuda.current_device(),
        location.handle,
        location.storage_bytes,
        location.storage_offset_bytes,
        False,
        location.reference_handle,
        location.reference_offset,
        location.event_handle,
        location.event_sync,
    )
    return tensor
