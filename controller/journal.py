"""The controller's journal: every event and what came of it, one frame after another, in files that are only added to.

    journal/0.0.journal    the first segment of branch 0: what the controller was made of, then its events
    journal/0.1.journal    a segment begins with the whole state: at a checkpoint, and when another process takes over
    journal/1.0.journal    a resumed run's branch; its first event is the `Rewound`

A frame has its length and checksum (wire.py). What a crash cut off at the end of a segment is a torn tail, and is void;
damage with whole frames after it is no torn tail, and is refused. A process writes to its own segment alone, and the
next segment says how much of it counts: whatever a process adds that was replaced without knowing it is void too.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from entrostat.controller.events import Command, Event
from entrostat.controller.snapshot import ControllerState
from entrostat.protocol import wire
from entrostat.protocol.arrays import Int32, UInt8
from entrostat.protocol.errors import JournalDamaged, ResourceError, SchemaMismatch, WireError
from entrostat.protocol.messages import WeightsManifest
from entrostat.protocol.settings import Stations

NAME = re.compile(r"(\d+)\.(\d+)\.journal")


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """The levels of all training prompts, and how many of the prompts each task has."""

    names: tuple[str, ...]
    numbers: Int32  # [prompts] into `names`
    tasks: tuple[int, ...] = ()  # prompts of each task, by id one after the other; () where nobody asked

    def of_prompts(self) -> list[str]:
        """`[prompts]` each one's level."""
        return [self.names[number] for number in self.numbers.tolist()]


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first record of a segment: all that the events after it need."""

    branch: int
    segment: int
    term: int  # which life of the controller in this branch
    settings: Stations
    levels: Levels | None  # in the branch's first segment
    state: ControllerState | None  # in all others
    follows: int  # bytes of the segment before that count


class Recorded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An event and what was to be done about it."""

    event: Event
    commands: tuple[Command, ...]


class Offered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A version that actors may be offered: a process that takes over must be able to offer it, too."""

    manifest: WeightsManifest


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The last record of a run that came to its end: nothing is missing after it."""


Record = Opened | Recorded | Offered | Closed


class Segment(Protocol):
    """A file that is only added to."""

    def append(self, frame: UInt8) -> None:
        """Adds a frame; afterwards it survives this process.

        Raises:
            ResourceError: the disk is full, or can't be written.
        """
        ...

    def sync(self) -> None:
        """Returns once all that was added survives the machine.

        Raises:
            ResourceError: as `append`.
        """
        ...

    def close(self) -> None:
        """Nothing is added any more."""
        ...


class Storage(Protocol):
    """Where segments are."""

    def segments(self) -> list[tuple[int, int]]:
        """Branch and number of each, ascending."""
        ...

    def create(self, branch: int, segment: int) -> Segment:
        """A new one.

        Raises:
            ResourceError: there is one of this name, or it can't be made.
        """
        ...

    def read(self, branch: int, segment: int) -> bytes:
        """All that is in one."""
        ...


class Frames:
    """The records of a segment, with their offsets in bytes; afterwards `end` is where the last whole one ends.

    After the iteration `closed` says whether the run came to its end there.

    Args:
        content: of the segment.
        name: for errors.

    Raises:
        JournalDamaged: by iteration, where a frame is damaged and others follow.
        SchemaMismatch: another release wrote it.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self._content, self.name = memoryview(content), name
        self.end = 0
        self.closed = False

    def __iter__(self) -> Iterator[tuple[int, Record, memoryview]]:
        while self.end < len(self._content):
            try:
                frame = wire.first_frame(self._content[self.end :])
            except SchemaMismatch:
                raise  # no torn end: whole records, which this release can't read
            except WireError as error:
                self._refuse_unless_torn(error)
                return
            record: Record = wire.decode(bytes(frame), Record)
            if self.closed:
                raise JournalDamaged(f"{self.name} goes on at byte {self.end:,} after the run came to its end")
            offset, self.end = self.end, self.end + len(frame)
            self.closed = isinstance(record, Closed)
            yield offset, record, frame

    @property
    def torn(self) -> int:
        """Bytes after the last whole record."""
        return len(self._content) - self.end

    def _refuse_unless_torn(self, error: WireError) -> None:
        after = self.end + 1
        content = bytes(self._content[after:])
        place = content.find(wire.MAGIC)
        while place >= 0:
            try:
                wire.first_frame(memoryview(content)[place:])
            except WireError:
                place = content.find(wire.MAGIC, place + 1)
                continue
            raise JournalDamaged(
                f"{self.name} is damaged at byte {self.end:,}: {error}. Whole records follow from byte "
                f"{after + place:,} on, so it is no torn end: restore the file from a copy, or go on from a checkpoint "
                "without it (move the journal away)"
            ) from error


def check_first(record: Record, name: str) -> Opened:
    """The record as what a segment begins with.

    Raises:
        JournalDamaged: it is another one.
    """
    if not isinstance(record, Opened):
        raise JournalDamaged(f"{name} begins with a {type(record).__name__}; expected what it was opened with")
    return record


def name_of(branch: int, segment: int) -> str:
    """A segment's file name."""
    return f"{branch}.{segment}.journal"


class FileSegment:
    """A `Segment` that is a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def append(self, frame: UInt8) -> None:
        """See `Segment`."""
        rest = frame.data
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> None:
        """See `Segment`."""
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """See `Segment`."""
        os.close(self._file)

    def _unwritable(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"the journal {self._path} can't be written ({error.strerror}): the run can't go on without it. Free some "
            "of the disk, and go on with entrostat train --resume"
        )


class Folder:
    """A `Storage` in a folder, which is made when the first segment is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def segments(self) -> list[tuple[int, int]]:
        """See `Storage`."""
        found = (NAME.fullmatch(path.name) for path in self._path.glob("*.journal"))
        return sorted((int(match[1]), int(match[2])) for match in found if match)

    def create(self, branch: int, segment: int) -> Segment:
        """See `Storage`."""
        path = self._path / name_of(branch, segment)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            made = FileSegment(path)
            folder = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ResourceError(
                f"the journal {path} can't be made ({error.strerror}): free some of the disk, or see whether another "
                "process uses this run"
            ) from error
        return made

    def read(self, branch: int, segment: int) -> bytes:
        """See `Storage`."""
        return (self._path / name_of(branch, segment)).read_bytes()
