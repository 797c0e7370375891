"""Where stations may run: how a cluster's GPUs are shared out, and whether there is a cluster at all."""

import socket

from entrostat.protocol.errors import ConfigError, ResourceError
from entrostat.protocol.settings import Stations, VllmSettings

CONNECT_SECONDS = 10.0


def gpu_shares(stations: Stations, gpus: float) -> tuple[float, float]:
    """How much of Ray's `gpus` each rank of the learner and each rollout actor are given; on a CPU that is none.

    Raises:
        ConfigError: ranks would share a GPU.
        ResourceError: together they ask for more than there is.
    """
    learner = stations.learner.gpus if gpus and stations.learner.device != "cpu" else 0.0
    actor = stations.rollout.gpus if gpus and isinstance(stations.rollout.engine, VllmSettings) else 0.0
    ranks = stations.learner.ranks
    if ranks > 1 and gpus and stations.learner.device != "cpu" and learner < 1:
        raise ConfigError(
            f"learner.ranks = {ranks} and learner.gpus = {learner:g}: NCCL lets no two ranks share a GPU. Set "
            'learner.gpus = 1, or use a CPU (learner.device = "cpu")'
        )
    wanted = ranks * learner + stations.rollout.actors * actor
    if wanted > gpus:
        each = f"{ranks} ranks of the learner ({learner:g} each)" if ranks > 1 else f"the learner ({learner:g})"
        raise ResourceError(
            f"{each} and {stations.rollout.actors} rollout actors ({actor:g} each) ask for "
            f"{wanted:g} GPUs, Ray has {gpus:g}: lower learner.gpus and rollout.gpus (0.5 each shares one), or "
            'use a CPU (learner.device = "cpu", rollout.gpus = 0)'
        )
    return learner, actor


def check_address(address: str) -> None:
    """Sees that a Ray cluster answers at `host:port`; other forms are Ray's own business.

    Raises:
        ResourceError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address} ({error}): start one there (ray start --head), or leave --address out"
        ) from error
