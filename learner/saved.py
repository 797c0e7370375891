"""The learner's part of a checkpoint: the policy in Hugging Face form, the optimizer, and torch's random state.

A policy with adapters is saved merged, to be used by itself, and its adapter beside it in peft's form. Training goes
on from the adapter and the model it was begun from, as the trainer loads them: what was merged was rounded.

One rank writes the optimizer to a file; several write a folder, a checkpoint of torch.distributed in which each puts
its parts of weights and moments. Either is read by any number of ranks.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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


def commit(
    folder: Path,
    version: PolicyVersion,
    policy: Policy,
    optimizer: Optimizer,
    controller: UInt8,
    fence: Callable[[], None] = checkpoint.no_fence,
) -> None:
    """Commits the checkpoint `folder` of a version, with the controller's snapshot frame `[bytes]`; on the first rank.

    Raises:
        StationLost: `fence` refused.
        ResourceError: the disk is full, or can't be written.
    """

    def write(partial: Path) -> None:
        save_state(partial, policy, optimizer)
        (partial / CONTROLLER).write_bytes(controller.tobytes())

    try:
        checkpoint.commit(folder, branch=version.branch, step=version.step, write=write, fence=fence)
    except OSError as error:
        raise ResourceError(
            f"the checkpoint {folder} can't be written ({error.strerror or error}): free some of the disk, or keep "
            "fewer checkpoints; the one before is untouched"
        ) from error


def save_state(folder: Path, policy: Policy, optimizer: Optimizer) -> None:
    """Writes all there is to `folder`. Every rank calls it; the others wait until the first has made the folder.

    Raises:
        OSError, ResourceError: it can't be written.
    """
    ranks = policy.ranks
    if ranks.alone:
        if not policy.adapters:
            policy.model.save_pretrained(folder / POLICY)
        torch.save({**optimizer.state(), RANDOM: torch.get_rng_state()}, folder / OPTIMIZER)
    else:
        ranks.meet()
        try:
            save({**optimizer.named(), RANDOM: torch.get_rng_state()}, checkpoint_id=folder / OPTIMIZER_PARTS)
        except CheckpointException as error:
            raise ResourceError(
                f"the learner's ranks can't write to {folder / OPTIMIZER_PARTS} ({_reasons(error)}): all of them need "
                "the run directory, on a disk with room"
            ) from error
    if policy.adapters or not ranks.alone:
        _save_policy(folder, policy)
    if ranks.first:
        policy.tokenizer.save_pretrained(folder / POLICY)


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


def _save_policy(folder: Path, policy: Policy) -> None:
    """Writes the policy whole, gathered and merged, and its adapter beside it. Every rank calls it."""
    tensors, config = gather(policy), policy.model.config
    if not policy.ranks.first:
        return
    if policy.adapters:
        save_adapter(folder / ADAPTER, policy, tensors)
        tensors = {name: made(weight).cpu() for name, weight in merged_weights(policy, tensors).items()}
    policy.model.save_pretrained(folder / POLICY, state_dict=tensors)
    # transformers asks the parts, which are float32, and not what they are gathered in.
    config.dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    config.save_pretrained(folder / POLICY)


def _reasons(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {type(cause).__name__}: {cause}" for rank, (cause, _) in error.failures.items())
