"""The learner's part of a checkpoint: the policy in Hugging Face form, the optimizer, and torch's random state.

One rank takes a copy of all that on the host first, which is quick, and writes the copy: training may go on meanwhile.
Several ranks write what they hold, and train on afterwards.

A policy with adapters is saved merged, to be used by itself, and its adapter beside it in peft's form. Training goes
on from the adapter and the model it was begun from, as the trainer loads them: what was merged was rounded.

One rank writes the optimizer to a file; several write a folder, a checkpoint of torch.distributed in which each puts
its parts of weights and moments. Either is read by any number of ranks.
"""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from entrostat.learner import checkpoint
from entrostat.learner.adapters import merged_weights, save_adapter
from entrostat.learner.merged import made
from entrostat.learner.optimizer import MOMENTS, Optimizer
from entrostat.learner.policy import Policy
from entrostat.learner.ranks import is_lost
from entrostat.learner.sharding import gather
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import CheckpointDamaged, ResourceError
from entrostat.protocol.messages import PolicyVersion

POLICY, OPTIMIZER, OPTIMIZER_PARTS, CONTROLLER = "policy", "optimizer.pt", "optimizer", "controller.bin"
ADAPTER = "adapter"
RANDOM = "random"  # torch's state, among the optimizer's


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What a checkpoint holds of the learner, apart from what trains on. Weights that are never trained are shared."""

    policy: dict[str, Tensor]  # by name in the model; tied weights are one tensor under each of their names
    optimizer: dict[str, Any]  # with the random state


def copied(policy: Policy, optimizer: Optimizer) -> Copy:
    """A copy of the state of a learner of one rank."""
    parameters = policy.model.named_parameters(remove_duplicate=False)
    frozen = {name for name, weight in parameters if not weight.requires_grad}
    copies: dict[tuple[int, torch.Size], Tensor] = {}

    def once(weight: Tensor) -> Tensor:
        place = (weight.data_ptr(), weight.shape)
        if place not in copies:
            # Adapters are little, and stay beside the weights that they are merged with.
            copies[place] = weight.detach().clone() if policy.adapters else _on_host(weight)
        return copies[place]

    state = optimizer.state()
    moments = {
        place: {name: _on_host(tensor) for name, tensor in of_weight.items()}
        for place, of_weight in state["adam"]["state"].items()
    }
    return Copy(
        policy={name: weight if name in frozen else once(weight) for name, weight in gather(policy).items()},
        optimizer={
            "adam": {**state["adam"], "state": moments},
            "masters": [_on_host(master) for master in state["masters"]],
            RANDOM: torch.get_rng_state(),
        },
    )


def commit(
    folder: Path,
    version: PolicyVersion,
    controller: UInt8,
    write_state: Callable[[Path], None],
    fence: Callable[[], None] = checkpoint.no_fence,
) -> None:
    """Commits the checkpoint `folder` of a version, with the controller's snapshot frame `[bytes]`; on the first rank.

    `write_state` puts the learner's state into the directory it is given: `write_copy` or `save_state`.

    Raises:
        StationLost: `fence` refused.
        ResourceError: the disk is full, or can't be written.
    """

    def write(partial: Path) -> None:
        write_state(partial)
        (partial / CONTROLLER).write_bytes(controller.tobytes())

    try:
        checkpoint.commit(folder, branch=version.branch, step=version.step, write=write, fence=fence)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(checkpoint.partial(folder), ignore_errors=True)  # others need room on that disk too
        reason = error.strerror if isinstance(error, OSError) else None
        raise ResourceError(
            f"the checkpoint {folder} can't be written ({reason or error}): free some of the disk, or keep "
            "fewer checkpoints; the one before is untouched"
        ) from error


def write_copy(folder: Path, policy: Policy, copy: Copy) -> None:
    """Writes a copy of the policy and its optimizer to `folder`, on the rank that is alone.

    Raises:
        OSError, SafetensorError: it can't be written.
    """
    try:
        torch.save(copy.optimizer, folder / OPTIMIZER)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{OPTIMIZER}, which torch could not write to its end: {error}") from error
    _save_policy(folder, policy, copy.policy)


def save_state(folder: Path, policy: Policy, optimizer: Optimizer) -> None:
    """Writes what several ranks hold to `folder`. Each calls it; the others wait until the first has made the folder.

    Raises:
        OSError, SafetensorError, ResourceError: it can't be written.
    """
    policy.ranks.meet()
    try:
        save({**optimizer.named(), RANDOM: torch.get_rng_state()}, checkpoint_id=folder / OPTIMIZER_PARTS)
    except CheckpointException as error:
        raise ResourceError(
            f"the learner's ranks can't write to {folder / OPTIMIZER_PARTS} ({_reasons(error)}): all of them need "
            "the run directory, on a disk with room"
        ) from error
    tensors = gather(policy)
    if policy.ranks.first:
        _save_policy(folder, policy, tensors)


def restore_state(folder: Path, policy: Policy, optimizer: Optimizer) -> None:
    """Takes over what a learner of the same policy saved in the checkpoint `folder`. Every rank calls it.

    Raises:
        CheckpointDamaged: the checkpoint changed since it was saved, or is not of this policy.
        RuntimeError: a rank waited for another one in vain.
    """
    if policy.ranks.first:
        checkpoint.verify(folder)
    parts = folder / OPTIMIZER_PARTS
    path = parts if parts.is_dir() else folder / OPTIMIZER
    try:
        read = _from_parts if path is parts else _from_file
        torch.set_rng_state(read(path, policy, optimizer))
    except (KeyError, ValueError, RuntimeError, CheckpointException) as error:
        if not policy.ranks.alone and is_lost(error):
            raise  # a rank that died or is late says nothing of the checkpoint
        reason = _reasons(error) if isinstance(error, CheckpointException) else error
        raise CheckpointDamaged(
            f"{path} does not hold an optimizer of this policy ({reason}): the model or its dtype was changed since it "
            "was saved. Resume with the settings of the run"
        ) from error


def _from_file(path: Path, policy: Policy, optimizer: Optimizer) -> Tensor:
    """Reads one rank's file; returns the random state."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    if policy.ranks.alone:
        optimizer.restore(state)
    else:
        _distribute(state, optimizer)
    random: Tensor = state[RANDOM]
    return random


def _distribute(state: dict[str, Any], optimizer: Optimizer) -> None:
    """Gives each rank its part of one rank's state."""
    named = optimizer.named()
    weights = [name.removeprefix("weight.") for name in named if name.startswith("weight.")]
    moments, masters = state["adam"]["state"], state["masters"]
    if len(masters) not in (0, len(weights)):
        raise ValueError(f"{len(masters)} of its {len(weights)} weights have a float32 master; with learner.ranks = 1")
    for place, name in enumerate(weights):
        whole = {f"{kind}.{name}": value for kind, value in moments.get(place, {}).items() if kind in MOMENTS}
        if masters:  # without, the weights are those of the policy's own files
            whole[f"weight.{name}"] = masters[place]
        for key, value in whole.items():
            part = named[key]
            if isinstance(part, DTensor):
                if part.shape != value.shape:
                    raise ValueError(f"{key} has the shape {tuple(value.shape)}, expected {tuple(part.shape)}")
                value = value.to(part.device, part.dtype)
                value = distribute_tensor(value, part.device_mesh, part.placements, src_data_rank=None)
            part.copy_(value)


def _from_parts(path: Path, policy: Policy, optimizer: Optimizer) -> Tensor:
    """Reads several ranks' parts, each rank what it holds now; returns the random state."""
    random = torch.get_rng_state()
    wanted = {**optimizer.named(), RANDOM: random}
    with warnings.catch_warnings():
        # That there is one process only is no news.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        load(wanted, checkpoint_id=path, no_dist=policy.ranks.alone)
    return random


def _save_policy(folder: Path, policy: Policy, tensors: dict[str, Tensor]) -> None:
    """Writes the policy of these weights whole and merged, its tokenizer, and its adapter beside it."""
    config = policy.model.config
    if policy.adapters:
        save_adapter(folder / ADAPTER, policy, tensors)
        tensors = {name: made(weight).cpu() for name, weight in merged_weights(policy, tensors).items()}
    policy.model.save_pretrained(folder / POLICY, state_dict=dict(tensors))  # it empties what it is given
    # transformers asks the parts, which are float32, and not what they are gathered in.
    config.dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    config.save_pretrained(folder / POLICY)
    policy.tokenizer.save_pretrained(folder / POLICY)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _reasons(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {type(cause).__name__}: {cause}" for rank, (cause, _) in error.failures.items())
