"""A LoRA adapter into vLLM, in vLLM's own process: from a version's flat buffer, without a file and without a pause.

Every request carries the same adapter's id, so that what stands under it is exchanged between two steps like weights
are: requests that run go on with the new one. vLLM's own model is the one the run was begun from and is never changed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from entrostat.protocol.errors import ModelError
from entrostat.protocol.learner_settings import NOT_ADAPTED, Lora

ID = 1  # 0 is vLLM's word for none
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
# The path is never read: vLLM has the adapter of this id before any request comes.
REQUEST = LoRARequest(lora_name="policy", lora_int_id=ID, lora_path="/entrostat/adapters/come/from/memory")


def engine_arguments(model: str, lora: Lora) -> dict[str, Any]:
    """What vLLM is started with to have room for this adapter of the model in the folder `model`.

    It is told which layers: left to itself it makes room beside the head as well, and on a CPU can't score two prompts
    at once then.
    """
    chosen = linear_layers(model) if isinstance(lora.targets, str) else {each.split(".")[-1] for each in lora.targets}
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next(rank for rank in RANKS if rank >= lora.rank),
        "lora_target_modules": sorted(chosen),
    }


def linear_layers(model: str) -> set[str]:
    """The last parts of the names of a checkpoint's matrices that are neither head nor embedding.

    Raises:
        ModelError: the folder holds no safetensors that could be read.
    """
    found = set[str]()
    for path in Path(model).glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                layer, _, kind = str(name).rpartition(".")
                if kind == "weight" and len(file.get_slice(name).get_shape()) == 2:
                    found.add(layer.rpartition(".")[2])
    found -= set(NOT_ADAPTED)
    if not found:
        raise ModelError(
            f"{model} holds no safetensors whose layers could be named to vLLM: name them in [learner.weights] "
            'targets, or set publish = "merged"'
        )
    return found


def exchange(worker: Any, tensors: Mapping[str, Any], lora: Lora) -> list[str]:
    """Puts an adapter's tensors, named as in peft's files, in the place of the one there was.

    Returns:
        The layers vLLM has no place for an adapter beside; where there are any, nothing is changed.
    """
    manager = worker.model_runner.lora_manager._adapter_manager
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    adapter = LoRAModel.from_lora_tensors(
        ID,
        # Copies: vLLM scales B in its place, and the buffer is the learner's again after the next version.
        {name: tensor.clone() for name, tensor in tensors.items()},
        PEFTHelper(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear"),
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=mapper.get_rename_mapper() if mapper is not None else None,
    )
    places = {*manager.modules, *(part for parts in manager.packed_modules.values() for part in parts)}
    homeless = sorted(adapter.loras.keys() - places)
    if not homeless:
        manager.remove_adapter(ID)
        manager.add_adapter(adapter)
        manager.activate_adapter(ID)
    return homeless
