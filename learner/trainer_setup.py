"""What a trainer works with, as the settings choose it: device, threads, policy, and where it publishes."""

from pathlib import Path

import torch

from entrostat.learner.adapters import adapt, check_base, restore_adapter
from entrostat.learner.ipc import IpcPublisher
from entrostat.learner.nccl import NcclPublisher
from entrostat.learner.policy import Policy, load_policy
from entrostat.learner.saved import ADAPTER, POLICY
from entrostat.learner.shared_memory import SharedMemoryPublisher
from entrostat.learner.weights import Publisher
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.learner_settings import LearnerSettings, Lora
from entrostat.protocol.settings import Stations, VllmSettings


def chosen_device(settings: LearnerSettings) -> torch.device:
    """`cuda` when there is one, unless the settings say otherwise.

    Raises:
        ResourceError: a GPU is asked for and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            'learner.device is "cuda" and torch sees no GPU: use "auto" or "cpu", or see entrostat doctor'
        )
    wanted = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def chosen_threads(stations: Stations, cores: int, ranks: int = 1) -> int:
    """`learner.threads`, or a rank's share of what the actors' engines leave of the machine's cores."""
    engine = stations.rollout.engine
    of_an_engine = engine.threads if isinstance(engine, VllmSettings) else 1
    left = cores - stations.rollout.actors * of_an_engine
    return stations.learner.threads or max(1, left // ranks)


def chosen_publisher(stations: Stations, device: torch.device, shared_memory: Path, address: str) -> Publisher:
    """Where `learner.transport` publishes; `address` is this node's.

    Raises:
        ConfigError: it needs a GPU, and the learner has none.
        ResourceError: there is no shared memory, or the address is not this node's.
    """
    transport, engine = stations.learner.transport, stations.rollout.engine
    if transport == "ipc":
        return IpcPublisher(device)
    if transport == "nccl":
        gpus = engine.tensor_parallel if isinstance(engine, VllmSettings) else 1
        return NcclPublisher(device, gpus, address, stations.stall_seconds)
    return SharedMemoryPublisher(stations.run, shared_memory, torch.get_num_threads())


def loaded(stations: Stations, checkpoint_folder: Path | None, device: torch.device) -> Policy:
    """The policy a run is begun with, or the one in a checkpoint of it.

    One with adapters is made of the model the run was begun from, and of the checkpoint's adapter.
    """
    weights, source = stations.learner.weights, stations.model.path
    if checkpoint_folder is not None and not isinstance(weights, Lora):
        source = str(checkpoint_folder / POLICY)
    policy = load_policy(
        stations.model,
        source=source,
        device=device,
        gradient_checkpointing=stations.learner.gradient_checkpointing,
        packed=stations.learner.packing,
    )
    if isinstance(weights, Lora):
        policy = adapt(policy, weights, source=source, seed=stations.seed)
        if checkpoint_folder is not None:
            restore_adapter(checkpoint_folder / ADAPTER, policy)
            check_base(checkpoint_folder / POLICY, policy)
    return policy
