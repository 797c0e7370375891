"""The learner's ranks as Ray actors, but for the first: what they do beside it, and the first one's hold on them."""

import logging
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, Stalled, StationLost
from entrostat.protocol.lives import Writer
from entrostat.protocol.logs import log_to
from entrostat.protocol.messages import Group, PolicyVersion, PromptSet, TrainOrder
from entrostat.protocol.settings import Stations
from entrostat.protocol.stacks import stacks

if TYPE_CHECKING:
    from entrostat.learner.ranks import Ranks
    from entrostat.learner.trainer import Trainer

log = logging.getLogger(__name__)

BLAME_SECONDS = 10.0  # until a failed wait of the ranks for each other is seen in the one that caused it


class FollowerActor:
    """A rank after the first. It makes the first one's steps on its own share; `start` comes first."""

    def __init__(
        self, number: int, settings_frame: UInt8, prompts_frame: UInt8, branch: int, step: int, checkpoint: str | None
    ) -> None:
        # What can fail waits for `start`: an error in a constructor reaches nobody with its type.
        self._number = number
        self._settings_frame, self._prompts_frame = settings_frame, prompts_frame
        self._version = PolicyVersion(branch=branch, step=step)
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._trainer: Trainer | None = None
        self._failure: EntrostatError | None = None

    def start(self, host: str, port: int) -> None:
        """Joins the ranks that meet there, loads the policy, and makes the first version with them."""
        with self._told():
            from transformers.utils.logging import disable_progress_bar

            from entrostat.learner.trainer import Trainer

            stations = wire.decode(self._settings_frame, Stations)
            writer = Writer(stations.directory, self._version.branch, f"rank {self._number} of the learner")
            log_to(stations.directory, f"learner-rank-{self._number}")
            disable_progress_bar()
            ranks = joined(stations, self._number, host, port)
            prompts = wire.decode(self._prompts_frame, PromptSet)
            self._trainer = Trainer(stations, prompts, self._version, self._checkpoint, ranks=ranks, fence=writer.check)
            self._trainer.make_first()

    def train(self, order_frame: UInt8, frames: Sequence[UInt8], again: bool) -> None:
        """Its share of an order's steps."""
        with self._told():
            groups = [wire.decode(frame, Group) for frame in frames]
            self._running().make(wire.decode(order_frame, TrainOrder), groups, again=again)

    def save(self, folder: str) -> None:
        """Its part of a checkpoint."""
        with self._told():
            self._running().save_part(Path(folder))

    def lives(self) -> None:
        """Answers at once, with what ended its work if anything did."""
        if self._failure is not None:
            raise self._failure

    def stacks(self) -> UInt8:
        """A `Stacks`."""
        return wire.encode(stacks())

    def _running(self) -> "Trainer":
        if self._trainer is None:
            raise StationLost(f"rank {self._number} of the learner was asked for work before it was started")
        return self._trainer

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Keeps a failure for `lives`: the first rank may be waiting for this one, and could tell nobody."""
        try:
            yield
        except EntrostatError as error:
            self._failure = error
            raise
        except Exception as error:  # whatever it is, it is kept, told by name and raised again
            from entrostat.learner.ranks import is_lost

            log.exception("rank %d of the learner failed", self._number)
            told = StationLost(
                f"rank {self._number} of the learner failed ({type(error).__name__}: {error}); its log is "
                f"learner-rank-{self._number}.log in the run's logs"
            )
            if not is_lost(error):  # else the cause is another rank's
                self._failure = told
            raise told from error


class Followers:
    """The ranks after the first, as the first one sees them.

    Args:
        handles: of their actors, rank 1 first; empty where the first is alone.
        seconds: how much longer than the first one may take.
    """

    def __init__(self, handles: Sequence[Any], seconds: float) -> None:
        self._handles, self._seconds = handles, seconds

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._handles)

    @contextmanager
    def beside(self, call: str, *arguments: Any) -> Iterator[None]:
        """Has all of them make a call while the block does the first rank's part of it.

        Raises:
            EntrostatError: what one of them failed with.
            StationLost: one died.
            Stalled: one did not come to its end.
        """
        once = [ray.put(argument) for argument in arguments] if self._handles else []
        pending = {getattr(one, call).remote(*once): i for i, one in enumerate(self._handles, 1)}
        try:
            yield
        except RuntimeError as error:
            from entrostat.learner.ranks import is_lost

            if not is_lost(error) or not pending:
                raise
            self._settle(pending, BLAME_SECONDS)
            raise Stalled(_not_seen(pending.values(), self._seconds)) from error
        self._settle(pending, self._seconds)
        if pending:
            raise Stalled(_not_seen(pending.values(), self._seconds))

    def _settle(self, pending: dict[Any, int], seconds: float) -> None:
        """Waits for the calls and takes out those that ended; the first that failed is raised."""
        if not pending:
            return
        ended, _ = ray.wait(list(pending), num_returns=len(pending), timeout=seconds)
        failed: list[EntrostatError] = []
        for reference in ended:
            number = pending.pop(reference)
            try:
                ray.get(reference)
            except RayActorError as error:
                raise StationLost(
                    f"rank {number} of the learner died: see learner-rank-{number}.log in the run's logs"
                ) from error
            except RayTaskError as error:
                if not isinstance(error.cause, EntrostatError):
                    raise
                failed.append(error.cause)
        if failed:
            raise failed[0]


def joined(stations: Stations, number: int, host: str, port: int, listening: int | None = None) -> "Ranks":
    """Joins the learner's ranks at `host:port`, where the first one serves their store on the socket `listening`.

    Raises:
        Stalled: not all of them came in time.
    """
    from datetime import timedelta

    from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    from entrostat.learner.ranks import join
    from entrostat.learner.trainer_setup import chosen_device

    settings = stations.learner
    device = chosen_device(settings)
    try:
        store = TCPStore(
            host,
            port,
            settings.ranks,
            is_master=number == 0,
            timeout=timedelta(seconds=settings.rank_seconds),
            wait_for_workers=False,
            master_listen_fd=listening,
        )
        return join(store, number, settings.ranks, device, settings.rank_seconds)
    except DistError as error:
        raise Stalled(
            f"rank {number} of the learner did not meet the other {settings.ranks - 1} at {host}:{port} within "
            f"learner.rank_seconds = {settings.rank_seconds:.0f} ({error}): see the logs of those, learner-rank-*.log"
        ) from error


def listening_socket() -> socket.socket:
    """A socket of this node's own address, on a free port, where the ranks can meet."""
    host = ray.util.get_node_ip_address()
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    opened.bind((host, 0))
    opened.listen()
    return opened


def _not_seen(numbers: Iterable[int], seconds: float) -> str:
    names = ", ".join(str(number) for number in sorted(numbers)) or "0"
    return (
        f"the learner's ranks waited for each other for learner.rank_seconds = {seconds:.0f}, and rank {names} did not "
        "come to the end of its step: see learner-rank-*.log in the run's logs"
    )
