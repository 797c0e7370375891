"""A run's checkpoints: one under way at a time, kept and counted once it is whole, its failure told by name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from entrostat import directory as directories
from entrostat.cluster import Commit
from entrostat.directory import RunDirectory
from entrostat.learner import checkpoint, recorded
from entrostat.protocol.errors import EntrostatError, ResourceError, Stalled
from entrostat.protocol.messages import PolicyVersion
from entrostat.saving import Saving


class SlowDisk:
    """Makes a checkpoint once it is waited for, or as soon as it is let; fails as it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.let = False
        self.failure: EntrostatError | None = None

    def save(self, folder: Path) -> Commit:
        self.events.append(f"begun {folder.name}")
        return Commit(folder=folder, reference=None, deadline=0.0)

    def committed(self, commit: Commit, *, wait: bool, watch: bool = True) -> bool:
        if self.failure is not None:
            raise self.failure
        if not (wait or self.let):
            return False
        step = int(commit.folder.name.removeprefix("step-"))
        checkpoint.commit(commit.folder, branch=0, step=step, write=lambda partial: (partial / "a").touch())
        self.events.append(f"committed {commit.folder.name}{'' if watch else ' unwatched'}")
        return True


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    made = directories.create(tmp_path / "run", "", keep_earlier=False)
    yield made
    made.close()


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


@pytest.fixture
def saving(disk: SlowDisk, directory: RunDirectory) -> Saving:
    return Saving(disk, directory, keep=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_under_way_holds_nobody_up(disk: SlowDisk, saving: Saving) -> None:
    saving.collect(wait=False)
    saving.begin(1)
    saving.collect(wait=False)
    assert disk.events == ["begun step-1"]
    disk.let = True
    for _ in range(2):
        saving.collect(wait=False)
    assert disk.events == ["begun step-1", "committed step-1"]


def test_the_next_one_waits_for_the_one_before(disk: SlowDisk, saving: Saving) -> None:
    saving.begin(1)
    saving.begin(2)
    saving.begin(2)  # is there already, once it was waited for
    assert disk.events == ["begun step-1", "committed step-1", "begun step-2", "committed step-2"]


def test_older_ones_and_what_they_need_go_once_the_new_one_is_whole(
    disk: SlowDisk, saving: Saving, directory: RunDirectory
) -> None:
    for step in range(1, 4):
        recorded.write(directory.recorded, PolicyVersion(branch=0, step=step), [])
        saving.begin(step)
    assert names(directory.checkpoints) == ["step-1", "step-2"]
    assert len(names(directory.recorded)) == 3
    disk.let = True
    saving.collect(wait=False)
    assert names(directory.checkpoints) == ["step-2", "step-3"]
    assert names(directory.recorded) == ["0.2.groups", "0.3.groups"]


@pytest.mark.parametrize("failure", [ResourceError("the disk is full"), Stalled("the disk hangs")])
def test_a_failure_ends_the_run_by_name_once(disk: SlowDisk, saving: Saving, failure: EntrostatError) -> None:
    saving.begin(1)
    disk.failure = failure
    with pytest.raises(type(failure), match=str(failure)):
        saving.collect(wait=False)
    saving.settle()


def test_a_run_that_fails_lets_its_checkpoint_end_and_keeps_its_own_error(
    disk: SlowDisk, saving: Saving, caplog: pytest.LogCaptureFixture
) -> None:
    saving.begin(1)
    saving.settle()
    assert disk.events == ["begun step-1", "committed step-1 unwatched"]
    saving.begin(2)
    disk.failure = ResourceError("the disk is full")
    saving.settle()
    assert "the disk is full" in caplog.text
