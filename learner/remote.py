"""The Ray shell of the learner and of the sample buffer: frames in, frames out, metrics beside."""

import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from entrostat.learner import recorded
from entrostat.learner.buffer import SampleBuffer
from entrostat.learner.checkpoint import no_fence
from entrostat.learner.followers import Followers, joined, listening_socket
from entrostat.protocol import metrics, wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError, Stalled, StationLost
from entrostat.protocol.lives import Writer
from entrostat.protocol.logs import log_to
from entrostat.protocol.messages import Group, GroupsMissing, PolicyVersion, PromptSet, StepReport, TrainOrder
from entrostat.protocol.metrics import Exporter
from entrostat.protocol.settings import Stations
from entrostat.protocol.stacks import stacks

if TYPE_CHECKING:
    from entrostat.learner.trainer import Trainer

log = logging.getLogger(__name__)

FETCH_SECONDS = 60.0  # a batch out of the buffer; it takes milliseconds
BUFFER_SHARE = 4  # the buffer may hold this part of the machine's memory: one in …


class BufferActor:
    """The sample buffer as a Ray actor."""

    def __init__(self, settings_frame: UInt8) -> None:
        stations = wire.decode(settings_frame, Stations)
        self._directory: str | None = stations.directory  # until its log is open
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._buffer = SampleBuffer(memory // BUFFER_SHARE)
        self._exporter = Exporter("buffer", host=stations.metrics_host)
        self._life = uuid.uuid4().hex

    def life(self) -> str:
        """Another one after each restart, which may be over before anybody's call fails."""
        return self._life

    def put(self, lease_id: int, frame: UInt8) -> int:
        """Keeps a group's frame; answers with its lease id once it is kept."""
        # Not in the constructor, where an error would reach nobody with its type.
        if self._directory is not None:
            log_to(self._directory, "buffer")
            self._directory = None
        self._buffer.put(lease_id, frame)
        self._show()
        return lease_id

    def take(self, lease_ids: Sequence[int]) -> tuple[list[UInt8], list[int]]:
        """The groups' frames, or none of them and the lease ids of those that are missing."""
        taken = self._buffer.take(lease_ids)
        self._show()
        return list(taken.frames), list(taken.missing)

    def discard(self, lease_ids: Sequence[int]) -> None:
        """Forgets groups that nobody will ask for."""
        self._buffer.discard(lease_ids)
        self._show()

    def retain(self, lease_ids: Sequence[int]) -> None:
        """Forgets all groups but these."""
        self._buffer.retain(lease_ids)
        self._show()

    def endpoint(self) -> int:
        """The port of its metrics."""
        return self._exporter.port

    def stacks(self) -> UInt8:
        """A `Stacks`, and how much it holds."""
        found = stacks()
        held = f"holds {len(self._buffer)} groups, {self._buffer.bytes:,} bytes\n"
        return wire.encode(msgspec.structs.replace(found, text=held + found.text))

    def _show(self) -> None:
        self._exporter.set(metrics.BUFFER_GROUPS, len(self._buffer))
        self._exporter.set(metrics.BUFFER_BYTES, self._buffer.bytes)


class LearnerActor:
    """The learner as a Ray actor. `start` comes first; `train`, `retrain` and `save` are called one at a time.

    Of several ranks it is the first, and has the others (`followers`, their actors) do their part of each call.
    """

    def __init__(
        self,
        settings_frame: UInt8,
        prompts_frame: UInt8,
        buffer: Any,
        branch: int,
        step: int,
        checkpoint: str | None,
        followers: Sequence[Any] = (),
    ) -> None:
        # What can fail waits for `start`: an error in a constructor reaches nobody with its type.
        self._settings_frame, self._prompts_frame = settings_frame, prompts_frame
        self._buffer = buffer
        self._version = PolicyVersion(branch=branch, step=step)
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        stations = wire.decode(settings_frame, Stations)
        self._followers = Followers(followers, stations.learner.rank_seconds)
        self._exporter = Exporter("learner", host=stations.metrics_host)
        self._trainer: Trainer | None = None
        self._fence: Callable[[], None] = no_fence  # until it has the right to write
        self._records, self._recorded = stations.record_samples, Path(stations.directory) / recorded.FOLDER
        self._commit: tuple[float, Callable[[], None]] | None = None  # since when, and what is left of it to do

    def start(self) -> UInt8:
        """Loads the policy and publishes it: a `WeightsManifest`."""
        # torch takes seconds to import; the driver and the sample buffer, which import this file, do without.
        from transformers.utils.logging import disable_progress_bar

        from entrostat.learner.trainer import Trainer

        stations = wire.decode(self._settings_frame, Stations)
        prompts = wire.decode(self._prompts_frame, PromptSet)
        self._fence = Writer(stations.directory, self._version.branch, "the learner").check
        log_to(stations.directory, "learner")
        disable_progress_bar()
        address = ray.util.get_node_ip_address()
        if not self._followers.count:
            self._trainer = Trainer(
                stations, prompts, self._version, self._checkpoint, address=address, fence=self._fence
            )
            return self._published()
        with listening_socket() as opened:
            host, port = opened.getsockname()[:2]
            with self._followers.beside("start", host, port):
                ranks = joined(stations, 0, host, port, opened.detach())
                self._trainer = Trainer(
                    stations,
                    prompts,
                    self._version,
                    self._checkpoint,
                    ranks=ranks,
                    address=address,
                    fence=self._fence,
                )
                return self._published()

    def train(self, order_frame: UInt8, wait_seconds: float) -> UInt8:
        """One optimizer step: a `StepOutcome`, or `GroupsMissing`."""
        order = wire.decode(order_frame, TrainOrder)
        began = time.perf_counter()
        frames, missing = self._fetched([group.lease_id for group in order.groups])
        if missing:
            return wire.encode(GroupsMissing(version=order.version, lease_ids=tuple(missing)))
        if self._records:
            self._fence()
            recorded.write(self._recorded, order.version, frames)
        return self._trained(order, frames, wait=wait_seconds, fetch=time.perf_counter() - began)

    def retrain(self, order_frame: UInt8) -> UInt8:
        """The optimizer step of an order that was trained before, on its recorded groups: a `StepOutcome`.

        The learner stands at the order's step, after a restart on a younger branch; the step goes on from there.
        """
        order = wire.decode(order_frame, TrainOrder)
        began = time.perf_counter()
        frames = recorded.read(self._recorded, order.version)
        return self._trained(order, frames, wait=0.0, fetch=time.perf_counter() - began, again=True)

    def save(self, folder: str, controller_frame: UInt8) -> None:
        """Begins the checkpoint `folder`, with the controller's snapshot in it, by a copy of the state.

        `commit` does the rest, and the next steps may be trained meanwhile. Several ranks copy nothing: they write
        before this returns.
        """
        began = time.perf_counter()
        with self._followers.beside("save", folder):
            self._commit = began, self._running().save(Path(folder), controller_frame)

    def commit(self) -> None:
        """Commits the checkpoint that was begun last. It may be called beside `train`."""
        if self._commit is None:
            raise EntrostatError("the learner was asked to commit a checkpoint that was not begun: call save first")
        (began, commit), self._commit = self._commit, None
        commit()
        self._exporter.observe(metrics.CHECKPOINT_SECONDS, time.perf_counter() - began)

    def endpoint(self) -> int:
        """The port of its metrics."""
        return self._exporter.port

    def stacks(self) -> UInt8:
        """A `Stacks`."""
        return wire.encode(stacks())

    def stop(self) -> None:
        """Frees the shared memory."""
        if self._trainer is not None:
            self._trainer.close()
        self._exporter.close()

    def _published(self) -> UInt8:
        log.info("the learner starts from version %s", self._version)
        return wire.encode(self._running().publish_first())

    def _trained(
        self, order: TrainOrder, frames: Sequence[UInt8], *, wait: float, fetch: float, again: bool = False
    ) -> UInt8:
        groups = [wire.decode(frame, Group) for frame in frames]
        with self._followers.beside("train", wire.encode(order), frames, again):
            outcome = self._running().train(order, groups, wait=wait, fetch=fetch, again=again)
        self._show(outcome.report)
        return wire.encode(outcome)

    def _running(self) -> "Trainer":
        if self._trainer is None:
            raise StationLost("the learner was asked for work before it was started: call start first")
        return self._trainer

    def _fetched(self, lease_ids: list[int]) -> tuple[list[UInt8], list[int]]:
        try:
            frames, missing = ray.get(self._buffer.take.remote(lease_ids), timeout=FETCH_SECONDS)
        except GetTimeoutError as error:
            raise Stalled(
                f"the sample buffer did not hand out {len(lease_ids)} groups within {FETCH_SECONDS:.0f} s"
            ) from error
        except ActorUnavailableError:
            log.warning("the sample buffer is being restarted; the order's %d groups are lost", len(lease_ids))
            return [], lease_ids
        except ActorDiedError as error:
            raise StationLost(f"the sample buffer died and was not replaced: {error}") from error
        return frames, missing

    def _show(self, report: StepReport) -> None:
        show = self._exporter
        show.add(metrics.STEPS)
        for phase in metrics.PHASES:
            show.add(metrics.STEP_SECONDS, getattr(report.phases, phase), phase=phase)
        show.set(metrics.LOSS, report.loss)
        show.set(metrics.GRADIENT_NORM, report.gradient_norm)
        show.set(metrics.CLIP_SHARE, report.clip_share)
        show.set(metrics.LEARNING_RATE, report.learning_rate)
        show.set(metrics.CLAMPED_MASS, report.clamped_mass)
        show.set(metrics.DRIFT, report.drift_mean)
        show.set(metrics.DRIFT_MAX, report.drift_max)
        show.set(metrics.DRIFT_KL, report.drift_kl)
        show.set(metrics.FRESH_DRIFT, nan if report.fresh is None else report.fresh.mean)
        show.add(metrics.LEARNER_TOKENS, report.response_tokens)
        show.set(metrics.PADDING, report.padding_share)
        show.set(metrics.LAST_STEP, time.time())
