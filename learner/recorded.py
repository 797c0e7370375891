"""Groups as they were trained, kept so that an order can be trained again to the same weights.

    journal/groups/BRANCH.STEP.groups    the groups of the order that started from that version, in its sequence

A file is one frame of the wire (protocol/wire.py: sizes and checksum) around the groups' own frames. Its name is given
once its bytes are on the disk.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import CheckpointDamaged, ResourceError, WireError
from entrostat.protocol.messages import PolicyVersion

FOLDER = Path("journal/groups")  # in the run directory
NAME = re.compile(r"(\d+)\.(\d+)\.groups")


class RecordedGroups(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """learner → its own file, and back after a restart. What an order from `version` was trained on."""

    version: PolicyVersion
    frames: tuple[UInt8, ...]  # [groups] of `Group`


def write(folder: Path, version: PolicyVersion, frames: Sequence[UInt8]) -> None:
    """Keeps the frames of an order's groups; when this returns they outlive the machine.

    An earlier file of that version, of an order that was not trained, is replaced.

    Raises:
        ResourceError: the disk is full, or can't be written.
    """
    path = _path(folder, version)
    made = path.with_name(f".{path.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with made.open("wb") as file:
            file.write(wire.encode(RecordedGroups(version=version, frames=tuple(frames))).data)
            file.flush()
            os.fsync(file.fileno())
        made.rename(path)
        _sync(folder)
    except OSError as error:
        raise ResourceError(
            f"the groups of the order from version {version} can't be recorded as {path} ({error.strerror}): free some "
            "of the disk, or go on with run.record_samples = false"
        ) from error


def holds(folder: Path, version: PolicyVersion) -> bool:
    """Whether there are groups of the order from `version`."""
    return _path(folder, version).is_file()


def read(folder: Path, version: PolicyVersion) -> tuple[UInt8, ...]:
    """The frames of the groups of the order from `version`; views of what was read.

    Raises:
        CheckpointDamaged: they were not recorded, or the file has changed since.
    """
    path = _path(folder, version)
    try:
        found = wire.decode(path.read_bytes(), RecordedGroups)
    except (OSError, WireError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointDamaged(
            f"the groups of the order from version {version} can't be read from {path} ({reason}): its step can't be "
            "made again. Restore the file from a copy, or sample anew from the checkpoint: resume with "
            "run.record_samples = false"
        ) from error
    if found.version != version:
        raise CheckpointDamaged(
            f"{path} holds the groups of the order from version {found.version}, expected {version}: it was renamed. "
            "Restore the file from a copy, or resume with run.record_samples = false"
        )
    return found.frames


def prune(folder: Path, older_than: int) -> None:
    """Removes what orders from steps before `older_than` were trained on."""
    for path in folder.glob("*.groups"):
        name = NAME.fullmatch(path.name)
        if name and int(name[2]) < older_than:
            path.unlink(missing_ok=True)


def _path(folder: Path, version: PolicyVersion) -> Path:
    return folder / f"{version}.groups"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
