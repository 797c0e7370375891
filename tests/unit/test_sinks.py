"""Rows are written once, and voided once: `metrics.jsonl` holds each optimizer step exactly once, in order."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator

from entrostat import directory as directories
from entrostat import job, sinks
from entrostat.protocol.errors import RunDirectoryError
from entrostat.protocol.messages import PolicyVersion
from entrostat.rows import read_evaluations, read_metrics
from tests.made_rows import evaluation_row, metrics_row


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[directories.RunDirectory]:
    """A run of six steps, evaluated at 0, 3 and 6."""
    made = directories.create(tmp_path / "a", "", keep_earlier=False)
    write(made, range(1, 7), (0, 3, 6))
    (made.path / "samples").mkdir()
    for step in range(1, 7):
        (made.path / f"samples/step-{step}.jsonl").write_text("")
    yield made
    made.close()


def write(directory: directories.RunDirectory, steps: range, evaluations: tuple[int, ...]) -> None:
    sink = sinks.JsonLines(directory)
    for step in steps:
        sink.step(metrics_row(step, branch=directory.branch))
    for step in evaluations:
        sink.evaluation(evaluation_row(step, 0.5))
    sink.close()


def tear(path: Path) -> None:
    """What a kill or a full disk leaves of a line."""
    with path.open("ab") as file:
        file.write(b'{"step": 7, "bra')


def steps(directory: directories.RunDirectory) -> list[int]:
    return [row.step for row in read_metrics(directory.metrics)]


def evaluated(directory: directories.RunDirectory) -> list[int]:
    return [row.step for row in read_evaluations(directory.evaluations)]


def test_what_comes_after_a_checkpoint_is_voided(directory: directories.RunDirectory) -> None:
    sinks.rewind(directory, 4)
    assert steps(directory) == [1, 2, 3, 4]
    assert evaluated(directory) == [0, 3]
    assert sorted(path.stem for path in (directory.path / "samples").iterdir()) == [f"step-{n}" for n in (1, 2, 3, 4)]


def test_a_row_that_was_cut_off_is_none_and_is_gone_after_a_rewind(directory: directories.RunDirectory) -> None:
    for path in (directory.metrics, directory.evaluations):
        tear(path)
    assert steps(directory) == [1, 2, 3, 4, 5, 6]
    assert evaluated(directory) == [0, 3, 6]
    sinks.rewind(directory, 6)
    write(directory, range(7, 9), (8,))
    assert steps(directory) == list(range(1, 9))
    assert evaluated(directory) == [0, 3, 6, 8]


def test_a_rewind_that_was_cut_off_between_its_files_is_done_by_the_next(
    directory: directories.RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = directories.write_atomically

    def killed(path: Path, content: bytes) -> None:
        if path == directory.evaluations:
            raise KeyboardInterrupt
        whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(sinks, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            sinks.rewind(directory, 2)
    assert (steps(directory), evaluated(directory)) == ([1, 2], [0, 3, 6])
    sinks.rewind(directory, 2)
    assert (steps(directory), evaluated(directory)) == ([1, 2], [0])


@pytest.mark.parametrize("name", ["metrics", "evaluations"])
def test_a_damaged_row_before_the_last_is_named_and_nothing_is_changed(
    directory: directories.RunDirectory, name: str
) -> None:
    path = directory.path / f"{name}.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:-5]
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes(), directory.metrics.read_bytes()
    with pytest.raises(RunDirectoryError, match=rf"a/{name}\.jsonl:2 is not a row"):
        job.branch_off(directory, PolicyVersion(branch=0, step=2), None)
    assert (path.read_bytes(), directory.metrics.read_bytes()) == before
    assert directory.branch == 0


def test_a_run_goes_on_above_every_branch_it_speaks_of(directory: directories.RunDirectory) -> None:
    assert job.branch_off(directory, PolicyVersion(branch=4, step=2), None).version == PolicyVersion(branch=5, step=2)
    write(directory, range(3, 5), ())
    (directory.path / "branch").write_text("0\n")
    directory.branch = 0
    assert job.branch_off(directory, PolicyVersion(branch=0, step=3), None).version == PolicyVersion(branch=6, step=3)


def test_steps_that_are_missing_are_told(directory: directories.RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    sinks.rewind(directory, 6)
    assert not caplog.text
    sinks.rewind(directory, 9)
    assert "not one row for each of the steps 1 to 9" in caplog.text


def test_tensorboard_shows_each_step_once_after_a_resume(directory: directories.RunDirectory) -> None:
    first = sinks.open_sinks(["tensorboard"], directory)
    for sink in first:
        for step in (1, 2, 3):
            sink.step(metrics_row(step, reward=0.1))
        sink.close()
    directory.end_life(print)
    directory.begin_life()
    second = sinks.open_sinks(["tensorboard"], directory, step=1)
    for sink in second:
        for step in (2, 3, 4):
            sink.step(metrics_row(step, reward=0.9))
        sink.close()
    shown = event_accumulator.EventAccumulator(str(directory.path / "tensorboard")).Reload().Scalars("reward")
    assert [event.step for event in shown] == [1, 2, 3, 4]
    assert [event.value for event in shown] == pytest.approx([0.1, 0.9, 0.9, 0.9])
