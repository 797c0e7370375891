"""The run directory: made whole or not at all, used by one process at a time.

runs/NAME/  config.toml (effective) · prompts.npy (what it is trained on, as hashes)
            run.json, token (endpoints of a living run) · metrics.jsonl · summary.json
            checkpoints/step-N/ · journal/groups/ (where they are recorded) · samples/step-N.jsonl · report/
            stall.txt (where it stalled: who waited for whom)
            lock (of the driver) · branch and writers (which life it is in, and who may write: protocol/lives.py)
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import msgspec

from entrostat.learner.recorded import FOLDER
from entrostat.protocol import lives
from entrostat.protocol.errors import RunDirectoryError, StationLost
from entrostat.protocol.scaling import FILE, VARIABLE

TOKEN_BYTES = 32


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: where a living run can be asked."""

    process: int
    started_unix: float
    targets: str  # the controller's listing in Prometheus' HTTP service-discovery form
    health: str
    scale: str  # where another number of rollout actors is asked for …
    token: str  # … with what this file holds; "" where the environment's ENTROSTAT_TOKEN is it


class RunDirectory:
    """One run's files, locked for as long as this object is open.

    Raises:
        RunDirectoryError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._alone: IO[bytes] | None = None  # between two lives: keeps the stations out
        self._lock = _locked(path / "lock")
        try:
            self.branch = lives.read_branch(path) or 0
        except RunDirectoryError:
            self._lock.close()
            raise

    @property
    def config(self) -> Path:
        """The effective configuration."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One line per optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Written once, at the end."""
        return self.path / "summary.json"

    @property
    def evaluations(self) -> Path:
        """One line per evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folders `step-N`, each committed atomically."""
        return self.path / "checkpoints"

    @property
    def recorded(self) -> Path:
        """Groups that were trained, where the run records them."""
        return self.path / FOLDER

    @property
    def report(self) -> Path:
        """What people look at."""
        return self.path / "report"

    def make_token(self) -> str:
        """A fresh token that only the owner can read, unless the environment has one; its path, or ""."""
        path = self.path / FILE
        path.unlink(missing_ok=True)
        if os.environ.get(VARIABLE, "").strip():
            return ""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES))
        return str(path)

    def write_info(self, info: RunInfo) -> None:
        """Says where the living run can be asked."""
        write_atomically(self.path / "run.json", msgspec.json.format(msgspec.json.encode(info)))

    def end_life(self, say: Callable[[str], None]) -> None:
        """Waits until no station of the present life may write any more, and lets none begin to.

        Raises:
            StationLost: another process has begun a newer life, or the directory is gone.
            RunDirectoryError: a station did not end in time; names it.
        """
        if self._alone is None:
            self.check()
            self._alone = lives.outlive(self.path, say)

    def begin_life(self, above: int = 0) -> int:
        """Begins the next life, on a branch after every earlier one and `above`; returns it.

        It is on disk before this returns. `end_life` comes first.
        """
        self.branch = max(self.branch, above) + 1
        write_atomically(self.path / lives.BRANCH, f"{self.branch}\n".encode())
        self._let_in()
        return self.branch

    def check(self) -> None:
        """Sees that the directory is still this process's to write; called before what it writes counts.

        Raises:
            StationLost: a newer life has begun where locks don't work, or the directory is gone.
        """
        lives.check(self.path, self.branch, self.path / "lock", self._lock.fileno())

    def close(self) -> None:
        """Gives the directory back; `run.json` names no dead endpoint afterwards."""
        with contextlib.suppress(StationLost, RunDirectoryError):  # then it is another's
            self.check()
            (self.path / "run.json").unlink(missing_ok=True)
            (self.path / FILE).unlink(missing_ok=True)
        self._let_in()
        self._lock.close()

    def _let_in(self) -> None:
        if self._alone is not None:
            self._alone.close()
            self._alone = None


def create(path: Path, config: str, *, keep_earlier: bool, files: Mapping[str, bytes] | None = None) -> RunDirectory:
    """A new run directory that holds its effective configuration.

    Args:
        path: must not exist, unless `keep_earlier`.
        config: TOML.
        keep_earlier: rename an existing run to a name with its time instead of refusing.
        files: what else it holds from the beginning, by name.

    Raises:
        RunDirectoryError: the path exists, or can't be written.
    """
    if keep_earlier and path.exists():
        keep(path)
    check_free(path)
    fresh = path.with_name(f".{path.name}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name, content in {"config.toml": config.encode(), **(files or {})}.items():
            write_atomically(fresh / name, content)
        write_atomically(fresh / lives.BRANCH, b"0\n")
        fresh.rename(path)
        sync(path.parent)
    except OSError as error:
        raise RunDirectoryError(
            f"the run directory {path} can't be made: {error.strerror}; choose another with --run DIR"
        ) from error
    return RunDirectory(path)


def check_free(path: Path) -> None:
    """Sees that there is nothing where a run is to go.

    Raises:
        RunDirectoryError: the path exists.
    """
    if path.exists():
        raise RunDirectoryError(
            f"{path} exists already: go on with it (entrostat train --resume {path}), "
            "choose another (--run DIR), or keep it under another name (--keep-earlier)"
        )


def keep(path: Path) -> Path:
    """Renames an earlier run after the time its folder last changed: a file was added, replaced or removed there.

    Returns:
        Its new place.

    Raises:
        RunDirectoryError: it holds no run, or a process is using it.
    """
    if not (path / "config.toml").is_file():
        raise RunDirectoryError(f"{path} holds no run that could be kept: choose another place with --run DIR")
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    kept = path.with_name(f"{path.name}-{stamp}")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}-{stamp}-{number}")
    with _locked(path / "lock"), lives.outlive(path, tell):
        path.rename(kept)
    return kept


def reopen(path: Path) -> RunDirectory:
    """An existing run, to go on with it: `end_life`, `begin_life`.

    Raises:
        RunDirectoryError: there is no run there, or a process is using it.
    """
    if not (path / "config.toml").is_file():
        raise RunDirectoryError(
            f"{path} holds no run: expected a folder with a config.toml, as entrostat train makes it"
        )
    directory = RunDirectory(path)
    if lives.read_branch(path) is None:  # an earlier release made it
        write_atomically(path / lives.BRANCH, b"0\n")
    return directory


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file so that a reader sees the old or the new one, never a part, after a loss of power too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns once what a file or folder holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tell(text: str) -> None:
    """Says something before there is a screen."""
    print(text, file=sys.stderr, flush=True)


def _locked(path: Path) -> IO[str]:
    handle = path.open("a+", encoding="utf-8")
    if not lives.taken(handle.fileno(), path, fcntl.LOCK_EX):
        handle.seek(0)
        owner = handle.read().strip() or "unknown"
        handle.close()
        raise RunDirectoryError(
            f"{path.parent} is in use by process {owner}: wait for it, stop it, "
            "or choose another directory with --run DIR"
        )
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle
