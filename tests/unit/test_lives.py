"""A run directory is in one life at a time, and an earlier life's processes write nothing there."""

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from entrostat import directory as directories
from entrostat import sinks
from entrostat.learner import checkpoint
from entrostat.learner.trainer import Trainer
from entrostat.protocol import lives
from entrostat.protocol.errors import RunDirectoryError, StationLost
from entrostat.protocol.messages import PolicyVersion
from tests.made_rows import evaluation_row, metrics_row
from tests.tiny_policy import make_group, make_order, make_policy, make_prompts, make_stations

WRITER = """
import sys
from entrostat.protocol.lives import Writer
held = Writer(sys.argv[1], 0, "the learner")
print("held", flush=True)
sys.stdin.read()
"""


OUTLIVE = lives.outlive


def silent(text: str) -> None:
    del text


@contextmanager
def writing(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that may write into the run directory."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def begin(directory: directories.RunDirectory, above: int = 0) -> int:
    directory.end_life(silent)
    return directory.begin_life(above)


def test_every_life_has_a_branch_of_its_own(tmp_path: Path) -> None:
    made = directories.create(tmp_path / "a", "", keep_earlier=False)
    assert made.branch == 0
    made.close()
    for branch in (1, 2, 3):
        again = directories.reopen(tmp_path / "a")
        assert begin(again) == again.branch == branch
        again.close()
    assert lives.read_branch(tmp_path / "a") == 3


def test_a_branch_is_above_those_that_a_checkpoint_or_a_row_speaks_of(tmp_path: Path) -> None:
    made = directories.create(tmp_path / "a", "", keep_earlier=False)
    assert begin(made, above=6) == 7
    made.close()


def test_a_run_of_an_earlier_release_has_a_first_life(tmp_path: Path) -> None:
    directories.create(tmp_path / "a", "", keep_earlier=False).close()
    (tmp_path / "a/branch").unlink()
    (tmp_path / "a/writers").unlink(missing_ok=True)
    again = directories.reopen(tmp_path / "a")
    assert begin(again, above=2) == 3
    again.close()


def test_a_branch_that_is_no_number_is_named(tmp_path: Path) -> None:
    directories.create(tmp_path / "a", "", keep_earlier=False).close()
    (tmp_path / "a/branch").write_text("one\n")
    with pytest.raises(RunDirectoryError, match=r"a/branch holds 'one\\n', expected a number"):
        directories.reopen(tmp_path / "a")


def test_no_life_begins_while_a_process_of_the_one_before_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories.create(tmp_path / "a", "", keep_earlier=False).close()
    said: list[str] = []
    with writing(tmp_path / "a") as process:
        with pytest.raises(RunDirectoryError, match=rf"held .*: the learner \(process {process.pid}\).*kill -9"):
            lives.outlive(tmp_path / "a", said.append, seconds=0.2)
        assert said == [
            f"waiting for the processes of the run before to end: the learner (process {process.pid})",
        ]
        monkeypatch.setattr(lives, "outlive", lambda path, say: OUTLIVE(path, say, 0.2))
        with pytest.raises(RunDirectoryError, match=f"process {process.pid}"):
            directories.create(tmp_path / "a", "", keep_earlier=True)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
    OUTLIVE(tmp_path / "a", said.append, 10.0).close()  # as soon as it has ended
    directories.create(tmp_path / "a", "", keep_earlier=True).close()


def test_between_two_lives_no_process_gets_to_write(tmp_path: Path) -> None:
    made = directories.create(tmp_path / "a", "", keep_earlier=False)
    made.end_life(silent)
    with pytest.raises(StationLost, match="a new life begins"):
        lives.Writer(tmp_path / "a", 0, "the learner", seconds=0.1)
    made.begin_life()
    with pytest.raises(StationLost, match=r"newer life of this run has begun in .*a \(branch 1\).*of branch 0"):
        lives.Writer(tmp_path / "a", 0, "the learner")
    lives.Writer(tmp_path / "a", 1, "the learner").close()
    made.close()


def test_a_writer_of_an_earlier_life_is_kept_out_by_the_branch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    made = directories.create(tmp_path / "a", "", keep_earlier=False)
    rows = sinks.JsonLines(made)
    old = lives.Writer(tmp_path / "a", 0, "the learner")
    old.check()
    rows.step(metrics_row(1))
    again = directories.reopen(tmp_path / "a")
    begin(again)
    with pytest.raises(StationLost, match="newer life"):
        old.check()
    with pytest.raises(StationLost, match="newer life"):
        rows.step(metrics_row(2))
    with pytest.raises(StationLost, match="newer life"):
        rows.evaluation(evaluation_row(1, 0.5))
    assert made.metrics.read_bytes().count(b"\n") == 1
    assert not made.evaluations.read_bytes()
    (tmp_path / "a/run.json").write_text("{}")
    made.close()
    assert (tmp_path / "a/run.json").exists()  # it is the newer life's
    assert "can't be locked" in caplog.text
    old.close()
    rows.close()
    again.close()


def test_a_directory_that_was_made_anew_is_not_the_writers(tmp_path: Path) -> None:
    directories.create(tmp_path / "a", "", keep_earlier=False).close()
    old = lives.Writer(tmp_path / "a", 0, "the learner")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(StationLost, match="moved, removed or made anew"):
        old.check()
    directories.create(tmp_path / "a", "", keep_earlier=False).close()
    lives.Writer(tmp_path / "a", 0, "another").close()
    with pytest.raises(StationLost, match="moved, removed or made anew"):
        old.check()
    old.close()


def test_a_process_does_not_hand_its_right_down(tmp_path: Path) -> None:
    directories.create(tmp_path / "a", "", keep_earlier=False).close()
    held = lives.Writer(tmp_path / "a", 0, "the learner")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        held.close()
        lives.outlive(tmp_path / "a", silent, seconds=5.0).close()
        child.kill()


@pytest.mark.parametrize("refused", [0, 1], ids=["before anything is written", "before it is named"])
def test_a_checkpoint_of_an_earlier_life_is_not_committed(tmp_path: Path, refused: int) -> None:
    answers = [refused != 0, refused != 1]

    def fence() -> None:
        if not answers.pop(0):
            raise StationLost("a newer life of this run has begun")

    other = tmp_path / ".step-5.partial"
    other.mkdir()
    with pytest.raises(StationLost, match="newer life"):
        checkpoint.commit(tmp_path / "step-5", branch=0, step=5, write=lambda partial: None, fence=fence)
    assert not (tmp_path / "step-5").exists()
    assert other.exists()


def test_a_learner_of_an_earlier_life_writes_no_samples_and_no_checkpoint(tmp_path: Path) -> None:
    made = directories.create(tmp_path / "a", "", keep_earlier=False)
    writer = lives.Writer(made.path, 0, "the learner")
    stations = make_stations(make_policy(tmp_path / "policy"), made.path, samples_per_step=2)
    trainer = Trainer(
        stations, make_prompts(), PolicyVersion(branch=0, step=0), shared_memory=tmp_path, fence=writer.check
    )
    groups = [make_group(i) for i in range(4)]
    trainer.train(make_order(groups, trainer.version), groups, wait=0.0, fetch=0.0)
    assert (made.path / "samples/step-1.jsonl").exists()
    (made.path / "branch").write_text("1\n")  # as if there were no locks
    with pytest.raises(StationLost):
        trainer.save(made.checkpoints / "step-1", np.zeros(3, np.uint8))()
    assert not made.checkpoints.exists()
    with pytest.raises(StationLost):
        trainer.train(make_order(groups, trainer.version), groups, wait=0.0, fetch=0.0)
    assert not (made.path / "samples/step-2.jsonl").exists()
    trainer.close()
    writer.close()
    made.close()
