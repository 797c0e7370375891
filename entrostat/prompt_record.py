"""`prompts.npy`: what a run's training prompts are, so that one that goes on never counts other ones by their ids.

A hash of 8 bytes for each prompt, in the order of their ids.
"""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from entrostat.directory import write_atomically
from entrostat.protocol.errors import RunDirectoryError, TaskError
from entrostat.protocol.messages import Prompt

log = logging.getLogger(__name__)

FILE = "prompts.npy"
SHOWN = 3  # prompts that are named in an error

Hashes = NDArray[np.uint64]  # [prompts]


def record(prompts: Sequence[Prompt]) -> bytes:
    """The file's content."""
    file = io.BytesIO()
    np.save(file, hashes(prompts), allow_pickle=False)
    return file.getvalue()


def check(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Sees that a run's tasks still yield the prompts it was begun with.

    A run of an earlier release, which has no record of them, gets one now.

    Raises:
        TaskError: they yield others; names the first of them.
        RunDirectoryError: the record is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        log.warning("%s has no %s: whether its tasks still yield the prompts it began with can't be seen", folder, FILE)
        write_atomically(path, record(prompts))
        return
    before, now = _read(path), hashes(prompts)
    both = min(len(before), len(now))
    differing = [prompts[index].name for index in np.flatnonzero(before[:both] != now[:both])[:SHOWN]]
    if not differing and len(before) == len(now):
        return
    counts = f"{len(before)} prompts, now {len(now)}" if len(before) != len(now) else f"{len(before)} prompts"
    if differing:
        first = f"the first that differ are {', '.join(differing)}"
    else:
        first = f"from {prompts[both].name} on they are new" if len(now) > both else "the last are gone"
    raise TaskError(
        f"the data of {folder} is not what it was begun with ({counts}): {first}. What was learnt of each prompt, and "
        "which comes next, is counted by the old ones: put the old data back, or begin another run"
    )


def hashes(prompts: Sequence[Prompt]) -> Hashes:
    """One for each prompt, of everything that makes it but its id."""
    encode = msgspec.msgpack.Encoder().encode
    return np.fromiter(
        (
            xxhash.xxh3_64_intdigest(encode((one.name, one.level, one.task, one.text, one.answer, one.entry)))
            for one in prompts
        ),
        np.uint64,
        count=len(prompts),
    )


def _read(path: Path) -> Hashes:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, np.ndarray) or found.dtype != np.uint64 or found.ndim != 1:
        raise _damaged(path, f"it holds {type(found).__name__}")
    return found


def _damaged(path: Path, reason: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{path} can't be read ({reason}): where the tasks' data is surely unchanged, remove it and go on without"
    )
