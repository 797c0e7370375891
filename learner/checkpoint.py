"""Checkpoints on disk: whole or not at all, and held against their checksums before anything is read from them.

    checkpoints/step-N/    manifest.json     branch, step, and every other file's size and checksum
                           policy/           weights and tokenizer in Hugging Face form
                           adapter/          in peft's form, where the policy has one
                           optimizer.pt      moments, float32 masters, random state; of several ranks optimizer/
                           controller.bin    the controller's snapshot frame

A checkpoint is written to `.step-N.partial`, synced to disk file by file, and renamed. Pure functions on paths.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import xxhash

from entrostat.protocol.errors import CheckpointDamaged

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d+)")
BLOCK_BYTES = 1 << 20


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a checkpoint."""

    path: str  # relative to the checkpoint
    bytes: int
    xxh3_128: str  # hexadecimal


class CheckpointManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`: which policy version it is, and what belongs to it."""

    branch: int
    step: int
    files: tuple[FileDigest, ...]


def no_fence() -> None:
    """Of a folder that nobody else writes into."""


def commit(
    folder: Path, *, branch: int, step: int, write: Callable[[Path], None], fence: Callable[[], None] = no_fence
) -> CheckpointManifest:
    """Makes the checkpoint `folder` from what `write` puts into the directory it is given.

    Until the last moment nothing bears the name `folder`; an earlier checkpoint of that name (of a branch that a
    restored checkpoint has voided) is replaced.

    Raises:
        EntrostatError: `fence`, asked before anything is written and again before it is named, raised it.
    """
    fence()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_remains(folder.parent)
    made = partial(folder)
    made.mkdir()
    write(made)
    files = tuple(_digest(made, path) for path in _files(made))
    manifest = CheckpointManifest(branch=branch, step=step, files=files)
    (made / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    for path in made.rglob("*"):
        _sync(path)
    _sync(made)
    fence()
    replaced = folder.with_name(f".{folder.name}.replaced")
    if folder.exists():
        folder.rename(replaced)
    made.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return manifest


def partial(folder: Path) -> Path:
    """Where a checkpoint is written before it bears its name."""
    return folder.with_name(f".{folder.name}.partial")


def verify(folder: Path) -> CheckpointManifest:
    """The checkpoint's manifest, once every file matches it.

    Raises:
        CheckpointDamaged: a file is missing or has changed; names it.
    """
    manifest = read_manifest(folder)
    if not manifest.files:
        raise CheckpointDamaged(f"{folder / MANIFEST} names no files: {_advice(folder)}")
    for expected in manifest.files:
        path = folder / expected.path
        if not path.is_file():
            raise CheckpointDamaged(f"{path} is missing from its checkpoint: {_advice(folder)}")
        found = _digest(folder, path)
        if found != expected:
            raise CheckpointDamaged(
                f"{path} has changed since it was saved ({found.bytes} bytes, xxh3 {found.xxh3_128}; expected "
                f"{expected.bytes} bytes, {expected.xxh3_128}): {_advice(folder)}"
            )
    return manifest


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest, its files unseen.

    Raises:
        CheckpointDamaged: there is none, or it can't be read.
    """
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=CheckpointManifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointDamaged(f"{path} can't be read ({error}): {_advice(folder)}") from error


def newest(directory: Path) -> Path | None:
    """The newest committed checkpoint, by branch and then step; None where there is none. See `verify`.

    Raises:
        CheckpointDamaged: a checkpoint's manifest can't be read.
    """
    return max(_committed(directory), key=_age, default=None)


def oldest_step(directory: Path) -> int | None:
    """The least step of all committed checkpoints; None where there is none."""
    return min(map(_step, _committed(directory)), default=None)


def retain(directory: Path, keep: int, scores: Mapping[int, float]) -> list[Path]:
    """Removes all but the newest `keep` checkpoints and the best by `scores`, and returns what it removed.

    `scores` maps steps to their evaluation, higher is better; of equals the older is kept.
    """
    ordered = sorted(_committed(directory), key=_age)
    kept = set(ordered[-keep:])
    scored = [folder for folder in ordered if _step(folder) in scores]
    if scored:
        kept.add(max(scored, key=lambda folder: scores[_step(folder)]))
    removed = [folder for folder in ordered if folder not in kept]
    for folder in removed:
        # Renamed first: what is half removed must not look like a checkpoint.
        doomed = folder.rename(folder.with_name(f".{folder.name}.replaced"))
        shutil.rmtree(doomed)
        log.info("removed checkpoint %s", folder)
    return removed


def _committed(directory: Path) -> list[Path]:
    return [path for path in directory.glob("step-*") if NAME.fullmatch(path.name)]


def _age(folder: Path) -> tuple[int, int]:
    manifest = read_manifest(folder)
    return manifest.branch, manifest.step


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _remove_remains(directory: Path) -> None:
    """Of a save that was cut off."""
    for remains in (*directory.glob(".step-*.partial"), *directory.glob(".step-*.replaced")):
        log.warning("removed %s, which an interrupted save left behind", remains)
        shutil.rmtree(remains)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digest(folder: Path, path: Path) -> FileDigest:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return FileDigest(path=str(path.relative_to(folder)), bytes=path.stat().st_size, xxh3_128=digest.hexdigest())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _advice(folder: Path) -> str:
    return f"restore it from a copy, or remove {folder} to go on from the checkpoint before it, or from step 0"
