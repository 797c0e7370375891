"""A version's flat buffer received over NCCL, by vLLM's own worker-side engine: the other end of `learner/nccl.py`.

No GPU has run this; its pure part, `Assembly`, is tested.
"""

from collections.abc import Iterable
from typing import Any

import torch

from entrostat.protocol.buckets import pieces
from entrostat.protocol.messages import NcclGroup


class Assembly:
    """Stands where vLLM's engine has a model: the buckets it loads are put together to `buffer [bytes] uint8`."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self._places = {str(i): piece for i, piece in enumerate(pieces(size))}

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Each bucket's shape under its name, in the order they come."""
        return {name: [end - first] for name, (first, end) in self._places.items()}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copies buckets to their places."""
        for name, bucket in weights:
            first, end = self._places[name]
            self.buffer[first:end].copy_(bucket)


class NcclReceiver:
    """This worker's end of the group, joined with the first version; `engine` is the weight-transfer engine it serves.

    The version received last is kept: it is sent once, and a version that was refused is tried again.
    """

    def __init__(self, engine: Any) -> None:
        self._owner = engine
        self._group: Any = None
        self._last: tuple[str, torch.Tensor] | None = None

    def receive(self, version: str, location: NcclGroup, size: int) -> torch.Tensor:
        """The version's flat buffer `[bytes] uint8`. Waits for the learner, which sends each version once, in order."""
        from vllm.distributed.weight_transfer import nccl_engine

        if self._last is not None and self._last[0] == version:
            return self._last[1]
        owner = self._owner
        assembly = Assembly(size, owner.device)
        as_model: Any = assembly  # of a model vLLM's engine calls `load_weights` alone
        if self._group is None:
            self._group = nccl_engine.NCCLWeightTransferEngine(owner.config, owner.vllm_config, owner.device, as_model)
            self._group.init_transfer_engine(
                nccl_engine.NCCLWeightTransferInitInfo(
                    master_address=location.host,
                    master_port=location.port,
                    rank_offset=1,
                    world_size=location.ranks,
                    packed=False,
                )
            )
        self._group.model = as_model
        self._group.receive_weights(
            nccl_engine.NCCLWeightTransferUpdateInfo(
                names=list(assembly.shapes),
                dtype_names=["uint8"] * len(assembly.shapes),
                shapes=list(assembly.shapes.values()),
            )
        )
        torch.cuda.current_stream().synchronize()
        self._last = (version, assembly.buffer)
        self._group.model = None
        return assembly.buffer

    def close(self) -> None:
        """Leaves the group."""
        self._last = None
        if self._group is not None:
            self._group.shutdown()
            self._group = None
