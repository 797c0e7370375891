"""Where stations may run: how a cluster's GPUs are shared out, and whether there is a cluster at all."""

import socket

from entrostat.protocol.errors import ResourceError
from entrostat.protocol.settings import Stations, VllmSettings

CONNECT_SECONDS = 10.0


def gpu_shares(stations: Stations, gpus: float) -> tuple[float, float]:
    """How much of Ray's `gpus` the learner and each rollout actor are given; what computes on a CPU takes none.

    Raises:
        ResourceError: together they ask for more than there is.
    """
    learner = stations.learner.gpus if gpus and stations.learner.device != "cpu" else 0.0
    actor = stations.rollout.gpus if gpus and isinstance(stations.rollout.engine, VllmSettings) else 0.0
    wanted = learner + stations.rollout.actors * actor
    if wanted > gpus:
        raise ResourceError(
            f"the learner ({learner:g}) and {stations.rollout.actors} rollout actors ({actor:g} each) ask for "
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
