"""What the driver asks of Ray: a cluster, an actor on it, an answer with a deadline."""

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from entrostat import processes
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, ResourceError, Stalled, StationAway, StationLost

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 1 << 30
READ_SECONDS = 1.0  # a small answer that is there


class _Log(io.TextIOBase):
    """Where what Ray prints goes."""

    def write(self, text: str) -> int:
        """Line by line."""
        for line in text.splitlines():
            if line.strip():
                log.info("Ray says: %s", line.strip())
        return len(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Ray's own words from the driver's screen, a dozen lines for every death. The log has them."""
    with contextlib.redirect_stdout(_Log()):
        yield


def connect(address: str, cpus: int) -> None:
    """Joins the cluster at `address`; "local" starts one on this machine, with at least so many of Ray's CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # A station waits more than it computes: Ray's count of CPUs must not keep an actor from being placed.
        options |= {"num_cpus": max(cpus, os.cpu_count() or 1), "object_store_memory": OBJECT_STORE_BYTES}
    ray.init(address=address, **options)


def free() -> tuple[float, float]:
    """How many CPUs and GPUs of the cluster nobody holds, by Ray's count."""
    found = ray.available_resources()
    return float(found.get("CPU", 0.0)), float(found.get("GPU", 0.0))


def kill(station: Any) -> None:
    """Ends an actor at once, or its wait for a place; returns before it is dead."""
    ray.kill(station, no_restart=True)


def gpus() -> float:
    """How many the cluster has."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def share(frame: UInt8) -> Any:
    """A reference that stands for the frame in calls, so that it travels to each machine once."""
    return ray.put(frame)


def reserve(count: int, *, cpus: float, gpus: float, seconds: float) -> list[Any]:
    """Room for `count` actors that are held together, as near to each other as there is room: a place for each.

    Raises:
        ResourceError: the cluster has not so much room, or not within `seconds`.
    """
    group = placement_group([{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}] * count, strategy="PACK")
    if not group.wait(seconds):
        raise ResourceError(
            f"the learner's {count} ranks ask for {cpus:g} CPUs and {gpus:g} GPUs each, and Ray had no room for them "
            f"within {seconds:.0f} s: lower learner.ranks or learner.gpus, or use a larger cluster"
        )
    return [PlacementGroupSchedulingStrategy(group, bundle) for bundle in range(count)]


def remote(
    station: type,
    *,
    cpus: float = 0,
    gpus: float = 0,
    max_concurrency: int | None = None,
    place: Any = None,
    restarts: int = 0,
) -> Any:
    """The station as a Ray actor's class, for a `place` that was reserved if there is one.

    Ray restarts it at most `restarts` times; calls under way are never made again by Ray.
    """
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": restarts}
    if max_concurrency is not None:
        options["max_concurrency"] = max_concurrency
    if place is not None:
        options["scheduling_strategy"] = place
    return ray.remote(**options)(station)


def done(reference: Any, seconds: float = 0.0) -> bool:
    """Whether a call's answer is there, waiting at most `seconds` for it."""
    return bool(ray.wait([reference], timeout=max(0.0, seconds))[0])


def answer(reference: Any, who: str, seconds: float) -> Any:
    """A call's answer; an error of ours on the other side is raised here as itself.

    Raises:
        StationAway: `who` died, and Ray restarts it.
        StationLost: `who` died.
        Stalled: the answer could not be read in time.
    """
    try:
        return ray.get(reference, timeout=seconds)
    except RayTaskError as error:
        if isinstance(error.cause, EntrostatError):
            raise error.cause from None
        raise
    except ActorUnavailableError as error:
        raise StationAway(f"{who} died and is restarted: {first_sentence(str(error))}") from error
    except RayActorError as error:
        raise StationLost(f"{who} died: {first_sentence(str(error))}") from error
    except GetTimeoutError as error:
        raise Stalled(f"the answer of {who} could not be read within {seconds:.0f} s") from error


def soon(reference: Any, who: str, deadline: float) -> Any:
    """A call's answer if it comes before `deadline` (monotonic), and whatever else it comes to as an error of ours.

    Raises:
        EntrostatError: none came, or something else did.
    """
    if not done(reference, deadline - time.monotonic()):
        raise Stalled(f"no answer of {who} in time")
    try:
        return answer(reference, who, READ_SECONDS)
    except RayError as error:
        raise StationLost(f"{who} could not answer: {first_sentence(str(error))}") from error


def stop(stations: Sequence[Any], seconds: float) -> None:
    """Asks the actors to stop, waits so long, and leaves the cluster. Never raises: it also follows failures.

    Of a cluster that was started here no process is left.
    """
    below = processes.below_ray()
    try:
        ray.wait([station.stop.remote() for station in stations], num_returns=len(stations), timeout=seconds)
    except RayError as error:
        log.warning("a station did not stop by itself: %s", error)
    ray.shutdown()
    if killed := processes.end(below):
        log.warning("%d processes of Ray did not end by themselves and were killed", killed)


def first_sentence(text: str) -> str:
    """What Ray says of a death, without its advice and tables."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next(
        (line for line in lines if "cause" in line.lower() or "died" in line.lower()), lines[0] if lines else ""
    )
    return told[:300]
