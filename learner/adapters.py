"""Low-rank adapters (LoRA): a policy's linear layers compute `W x + (α/r)·B (A x)`, and only A and B are trained.

`peft` puts them into the model. A starts random and B at zero, so the first policy is the model itself. Source: Hu et
al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

import logging
import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entrostat.learner.merged import Merged, Weight, held
from entrostat.learner.policy import Adapter, Policy
from entrostat.protocol.errors import CheckpointDamaged, ModelError
from entrostat.protocol.learner_settings import Lora

log = logging.getLogger(__name__)

NAME = "default"  # peft's, of the only adapter of a layer
PREFIX = "base_model.model."  # of the names in peft's files, and of those vLLM reads
FILE = "adapter_model.safetensors"


def adapt(policy: Policy, settings: Lora, *, source: str, seed: int) -> Policy:
    """The policy with adapters in its linear layers, and everything else frozen.

    Args:
        policy: as it was loaded; its model is changed.
        settings: rank, scale, and which layers.
        source: the model's folder or name, for messages and for peft's own configuration.
        seed: for A; torch's random state is left as it is.

    Raises:
        ModelError: no layer bears a name that is targeted, or one can't be adapted.
    """
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=source,
    )
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        # Of transposed layers, which are refused below.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, policy.model, adapter_name=NAME)
        except ValueError as error:
            raise ModelError(
                f"the model in {source!r} takes no adapters at {settings.targets!r} ({error}): name linear layers of "
                'its own in [learner.weights] targets, or say "all-linear"'
            ) from error
    layers = [(path, module) for path, module in policy.model.named_modules() if isinstance(module, LoraLayer)]
    adapted = replace(policy, adapters=tuple(Adapter(path=path, layer=layer) for path, layer in layers))
    _check(adapted, settings, source)
    count = sum(weight.numel() for weight in policy.model.parameters() if weight.requires_grad)
    log.info("%d numbers are trained, in adapters of %d layers", count, len(layers))
    return adapted


def adapter_tensors(policy: Policy, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every A and B under its name in peft's files; `state` holds the model's tensors under their names there."""
    return {
        f"{PREFIX}{adapter.path}.lora_{letter}.weight": state[f"{adapter.path}.lora_{letter}.{NAME}.weight"]
        for adapter in policy.adapters
        for letter in "AB"
    }


def merged_weights(policy: Policy, state: Mapping[str, Tensor]) -> dict[str, Weight]:
    """Every weight under its name in the model without adapters; those with one as what the two are together."""
    own = tuple(f"{adapter.path}.lora_" for adapter in policy.adapters)
    merged = {f"{adapter.path}.base_layer.weight": _merged(adapter, state) for adapter in policy.adapters}
    return {
        name.replace(".base_layer.", "."): merged.get(name, tensor)
        for name, tensor in state.items()
        if not name.startswith(own)
    }


def merged_as_saved(policy: Policy, state: Mapping[str, Tensor]) -> dict[str, Weight]:
    """`merged_weights` in the form and under the names of a Hugging Face checkpoint."""
    weights = merged_weights(policy, state)
    merged = {id(weight.base): weight for weight in weights.values() if isinstance(weight, Merged)}
    saved = policy.as_saved({name: held(weight) for name, weight in weights.items()})
    return {name: merged.get(id(tensor), tensor) for name, tensor in saved.items()}


def save_adapter(folder: Path, policy: Policy, state: Mapping[str, Tensor]) -> None:
    """Writes the adapter to `folder` in peft's own form.

    Raises:
        OSError: it can't be written.
    """
    folder.mkdir()
    tensors = {name: part.detach().cpu().contiguous() for name, part in adapter_tensors(policy, state).items()}
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    config = copy(policy.model.peft_config[NAME])
    config.inference_mode = True  # who loads it may not mean to train it on
    config.save_pretrained(folder)


def restore_adapter(folder: Path, policy: Policy) -> None:
    """Takes over an adapter that was saved in `folder` from the same model with the same settings.

    Raises:
        CheckpointDamaged: it is not one of this policy.
    """
    try:
        saved = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointDamaged(
            f"{folder} holds no adapter that can be read ({error}): it is damaged, or the run was begun with other "
            "[learner.weights]. Resume with the settings of the run, or from the checkpoint before"
        ) from error
    wanted = adapter_tensors(policy, policy.model.state_dict())
    for name in sorted(saved.keys() | wanted.keys()):
        came, expected = (tuple(side[name].shape) if name in side else "nothing" for side in (saved, wanted))
        if came != expected:
            raise CheckpointDamaged(
                f"{folder} holds {came} for {name}, expected {expected}: [learner.weights] or the model was changed "
                "since it was saved. Resume with the settings of the run"
            )
    with torch.no_grad():
        for name, part in wanted.items():
            part.copy_(saved[name])


def check_base(folder: Path, policy: Policy) -> None:
    """Holds the weights without adapters against those of the policy saved in `folder`: an adapter fits one model only.

    Raises:
        CheckpointDamaged: the model is another one now.
    """
    here = merged_as_saved(policy, policy.model.state_dict())
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                weight = here.get(name)
                if not isinstance(weight, Merged) and (weight is None or not _same(file.get_tensor(name), weight)):
                    raise CheckpointDamaged(
                        f"{name} is not what {path} holds: the model was changed since the run began, and its adapter "
                        "belongs to the one before. Put that model back, or begin a run from the checkpoint's policy"
                    )


def _same(saved: Tensor, here: Tensor) -> bool:
    return bool(saved.dtype == here.dtype and torch.equal(saved, here.cpu()))


def _merged(adapter: Adapter, state: Mapping[str, Tensor]) -> Merged:
    return Merged(
        base=state[f"{adapter.path}.base_layer.weight"].detach(),
        down=state[f"{adapter.path}.lora_A.{NAME}.weight"].detach(),
        up=state[f"{adapter.path}.lora_B.{NAME}.weight"].detach(),
        scale=adapter.layer.scaling[NAME],
    )


def _check(policy: Policy, settings: Lora, source: str) -> None:
    """Only plain linear layers, none of them the head, whose weights a checkpoint holds as they are."""
    for adapter in policy.adapters:
        base = adapter.layer.base_layer
        if not isinstance(base, nn.Linear) or adapter.layer is policy.model.get_output_embeddings():
            kind = "the head" if isinstance(base, nn.Linear) else f"of type {type(base).__name__}"
            raise ModelError(
                f"{adapter.path} of {source!r} is {kind}, and adapters stand beside the other linear layers "
                "only: leave it out of [learner.weights] targets"
            )
    for target in () if isinstance(settings.targets, str) else settings.targets:
        if not any(f".{adapter.path}".endswith(f".{target}") for adapter in policy.adapters):
            raise ModelError(
                f"no layer of {source!r} is named {target}: name linear layers of its own in [learner.weights] "
                'targets, or say "all-linear"'
            )
    found = sum(isinstance(weight, Merged) for weight in merged_as_saved(policy, policy.model.state_dict()).values())
    if found != len(policy.adapters):
        raise ModelError(
            f"a checkpoint of {source!r} holds {found} of the {len(policy.adapters)} adapted weights as they are in "
            "the model, and others in another form: name the layers to adapt in [learner.weights] targets without them"
        )
