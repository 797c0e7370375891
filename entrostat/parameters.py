"""How many numbers a model's folder holds, and an adapter to it, from the headers of its safetensors alone."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

from entrostat.protocol.learner_settings import NOT_ADAPTED, Lora

LONGEST_HEADER = 1 << 27


def parameter_count(folder: str) -> int:
    """Numbers in a folder's safetensors; 0 where there are none, or none that can be read."""
    return sum(math.prod(shape) for _, shape in _tensors(folder))


def adapter_count(folder: str, lora: Lora) -> int:
    """Numbers in A and B of all layers that are adapted; 0 where there are none, or none that can be read."""
    named = () if isinstance(lora.targets, str) else tuple(f".{target}" for target in lora.targets)
    total = 0
    for name, shape in _tensors(folder):
        layer, _, kind = f".{name}".rpartition(".")
        wanted = layer.endswith(named) if named else layer.rpartition(".")[2] not in NOT_ADAPTED
        if kind == "weight" and len(shape) == 2 and wanted:
            total += lora.rank * sum(shape)
    return total


def _tensors(folder: str) -> Iterator[tuple[str, list[int]]]:
    """Every tensor's name and shape; nothing of a folder with a file that can't be read."""
    found: list[tuple[str, list[int]]] = []
    for path in Path(folder).glob("*.safetensors"):
        with path.open("rb") as file:
            header = file.read(8)
            if len(header) < 8:
                return
            (length,) = struct.unpack("<Q", header)
            try:
                tensors = json.loads(file.read(min(length, LONGEST_HEADER)))
            except ValueError:
                return
        found += [(name, tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__"]
    yield from found
