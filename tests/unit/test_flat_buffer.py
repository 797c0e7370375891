"""What a reader holds is never written to, and what nobody holds is written again."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from entrostat.actors.flat_buffer import SharedFiles, damaged
from entrostat.learner import probe
from entrostat.learner.shared_memory import SharedMemoryPublisher
from entrostat.learner.weights import fill, layout, specs
from entrostat.protocol import buckets
from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.messages import PolicyVersion, SharedFile, WeightsManifest


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Learner:
    """A publisher of one tensor that holds its version's step everywhere."""

    def __init__(self, folder: Path) -> None:
        self.publisher = SharedMemoryPublisher("test", folder, threads=2)
        self.folder = folder

    def publish(self, step: int) -> WeightsManifest:
        tokens = [np.arange(3, dtype=np.int32)]
        found = probe.make_probe(tokens, [np.zeros(2, np.float32)], None, 1.0)
        tensors = {"weight": torch.full((1000,), float(step))}
        return self.publisher.publish(PolicyVersion(branch=0, step=step), tensors, found)

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.glob("entrostat-test-*/*") if path.name != "lock"}


def place(manifest: WeightsManifest) -> SharedFile:
    assert isinstance(manifest.location, SharedFile)
    return manifest.location


def inode(manifest: WeightsManifest) -> int:
    return Path(place(manifest).path).stat().st_ino


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[Learner]:
    made = Learner(tmp_path)
    yield made
    made.publisher.close()
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_written_over_the_oldest_and_stays_mapped_in_the_reader(learner: Learner) -> None:
    files, inodes, addresses = SharedFiles(), [], []
    for step in range(6):
        manifest = learner.publish(step)
        buffer = files.hold(place(manifest), manifest.bytes)
        assert not damaged(buffer, manifest.tensors)
        files.keep([place(manifest).path])
        inodes.append(inode(manifest))
        addresses.append(buffer.ctypes.data)
    assert inodes[2:] == inodes[:2] * 2
    assert len(set(addresses)) == len(set(inodes)) == 2


def test_what_a_reader_holds_is_left_alone_until_it_lets_go(learner: Learner) -> None:
    files = SharedFiles()
    held = learner.publish(0)
    buffer = files.hold(place(held), held.bytes)
    for step in range(1, 6):
        learner.publish(step)
        assert not damaged(buffer, held.tensors)
    assert learner.files == {"0.0", "0.4", "0.5"}
    files.keep([])
    learner.publish(6)
    learner.publish(7)
    assert learner.files == {"0.6", "0.7"}


def test_who_comes_too_late_for_a_version_is_told_so(learner: Learner) -> None:
    old = learner.publish(0)
    learner.publish(1)
    learner.publish(2)
    with pytest.raises(WeightsRefused, match="a newer version already"):
        SharedFiles().hold(place(old), old.bytes)


def test_a_file_that_is_being_written_is_refused(learner: Learner) -> None:
    manifest = learner.publish(0)
    writer = os.open(place(manifest).path, os.O_RDWR)
    fcntl.flock(writer, fcntl.LOCK_EX)
    with pytest.raises(WeightsRefused, match="a newer version already"):
        SharedFiles().hold(place(manifest), manifest.bytes)
    os.close(writer)
    SharedFiles().hold(place(manifest), manifest.bytes)


class Slow(SharedFiles):
    """Between its opening of a file and its lock, the learner publishes, and the name may be given to another file."""

    def __init__(self, learner: Learner, successor: Path | None) -> None:
        super().__init__()
        self.learner = learner
        self.successor = successor

    def _lock(self, descriptor: int) -> None:
        for step in (1, 2):
            self.learner.publish(step)
        if self.successor is not None:
            self.successor.write_bytes(bytes(10_000))
        super()._lock(descriptor)


@pytest.mark.parametrize("followed", [False, True])
def test_a_file_that_changed_its_version_between_opening_and_lock_is_refused_and_not_kept_locked(
    learner: Learner, followed: bool
) -> None:
    old = learner.publish(0)
    late = Slow(learner, Path(place(old).path) if followed else None)
    with pytest.raises(WeightsRefused, match="a newer version already"):
        late.hold(place(old), old.bytes)
    learner.publish(3)
    learner.publish(4)
    assert learner.files - {"0.0"} == {"0.3", "0.4"}


def test_a_file_shorter_than_its_manifest_is_refused_and_not_kept_locked(learner: Learner) -> None:
    manifest = learner.publish(0)
    with pytest.raises(WeightsRefused, match="cut short"):
        SharedFiles().hold(place(manifest), manifest.bytes + 1)
    learner.publish(1)
    learner.publish(2)
    assert learner.files == {"0.1", "0.2"}


def test_files_that_the_learner_removed_are_unmapped(learner: Learner) -> None:
    files = SharedFiles()
    manifest = learner.publish(0)
    files.hold(place(manifest), manifest.bytes)
    open_before = open_files()
    Path(place(manifest).path).unlink()
    files.keep([])
    assert open_files() == open_before - 2  # ours, and the mapping's own


READER = """
import sys, time
from entrostat.actors.flat_buffer import SharedFiles
from entrostat.protocol.messages import SharedFile

files = SharedFiles()
files.hold(SharedFile(host=sys.argv[1], path=sys.argv[2]), int(sys.argv[3]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_reader_that_is_killed_holds_nothing_any_more(learner: Learner) -> None:
    manifest = learner.publish(0)
    location = place(manifest)
    command = [sys.executable, "-c", READER, location.host, location.path, str(manifest.bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert (
                process.stdout.readline() == "held\n"
            )  # or an end, where it failed; pytest's own deadline is above it
            for step in (1, 2, 3):
                learner.publish(step)
            assert learner.files == {"0.0", "0.2", "0.3"}
        finally:
            process.kill()
    learner.publish(4)
    learner.publish(5)
    assert learner.files == {"0.4", "0.5"}


def test_damage_is_found_in_the_tensor_and_the_bucket_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 128)
    tied = torch.randn(100)
    places, size = layout({"a": torch.randn(200), "b": tied, "empty": torch.zeros(0), "c": tied})
    buffer = np.zeros(size, np.uint8)
    fill(torch.from_numpy(buffer), places, threads=2)
    found = specs(buffer, places, threads=2)
    assert [len(spec.checksums) for spec in found] == [7, 4, 1, 4]
    assert damaged(buffer, found, threads=2) == []
    buffer[found[1].offset + 130] ^= 1
    assert damaged(buffer, found) == ["b", "c"]
    assert damaged(buffer[: found[1].offset], found) == ["b", "empty", "c"]


def test_tensors_are_cast_on_their_way_into_the_buffer() -> None:
    weight = torch.randn(7, 5)
    places, size = layout({"a": weight, "b": weight, "c": weight}, {"b": torch.bfloat16, "c": torch.bfloat16})
    buffer = np.zeros(size, np.uint8)
    fill(torch.from_numpy(buffer), places)
    plain, cast, tied = specs(buffer, places)
    assert (plain.dtype, cast.dtype, cast.bytes) == ("float32", "bfloat16", 70)
    assert tied.offset == cast.offset != plain.offset
    served = torch.from_numpy(buffer[cast.offset : cast.offset + cast.bytes]).view(torch.bfloat16).view(7, 5)
    assert torch.equal(served, weight.bfloat16())
