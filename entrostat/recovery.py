"""Where a run begins: at step 0, at a checkpoint, or at the last step whose samples were recorded."""

import logging
from pathlib import Path

import msgspec
import numpy as np

from entrostat.controller import history
from entrostat.controller.history import TrainedOrder
from entrostat.controller.journal import Folder
from entrostat.directory import RunDirectory
from entrostat.learner import recorded
from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import JournalDiffers
from entrostat.protocol.messages import PolicyVersion, StepOutcome

log = logging.getLogger(__name__)

CONTROLLER = "controller.bin"  # in a checkpoint


class Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """What a life of a run starts from."""

    version: PolicyVersion  # of its branch, what the first order starts from
    checkpoint: Path | None = None  # the learner's; None: the configured model
    state: UInt8 | None = None  # the controller's, a frame; None: the checkpoint's
    again: tuple[TrainedOrder, ...] = ()  # to be trained again on their recorded groups, from the checkpoint on

    @property
    def learner(self) -> PolicyVersion:
        """Where the learner starts."""
        return msgspec.structs.replace(self.version, step=self.version.step - len(self.again))

    @property
    def controller(self) -> UInt8 | None:
        """What the controller starts with, a frame; None where there is nothing to know yet."""
        if self.state is not None or self.checkpoint is None:
            return self.state
        return np.frombuffer((self.checkpoint / CONTROLLER).read_bytes(), np.uint8)


def steps_since(directory: RunDirectory, saved: PolicyVersion) -> tuple[tuple[TrainedOrder, ...], UInt8 | None]:
    """The orders trained since a checkpoint, and the controller's state after them; none where a record is missing.

    Raises:
        JournalDamaged, JournalDiffers: the journal is not what the run wrote.
    """
    branches = history.read(Folder(directory.path / "journal"))
    found = history.since(branches, saved)
    last = history.newest(branches)
    end = None if last is None else last.end
    if not found or end is None:
        if end is not None and end.version.step > saved.step:
            log.warning("the run goes on from its checkpoint: its journal does not lead from there to %s", end.version)
        return (), None
    missing = [one.order.version for one in found if not recorded.holds(directory.recorded, one.order.version)]
    if missing or end.version.step != saved.step + len(found):
        log.warning("the run goes on from its checkpoint: the groups of %s were not recorded", [*map(str, missing)])
        return (), None
    return tuple(found), wire.encode(end)


def check(one: TrainedOrder, outcome: StepOutcome) -> None:
    """Sees that an order that was trained again made the same weights.

    Raises:
        JournalDiffers: it made others.
    """
    made = outcome.manifest.checksum
    if one.checksum not in (None, made):
        raise JournalDiffers(
            f"the order from version {one.order.version}, trained again on its recorded groups, leads to weights with "
            f"the digest {made:016x}; it led to {one.checksum:016x}: other software, another number of threads, or "
            "another machine. Go on from the checkpoint with --set run.record_samples=false"
        )
