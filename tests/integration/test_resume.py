"""Runs that are killed, lose a station, or find their files damaged, and go on; all on the simulated engine."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from entrostat import config as configs
from entrostat import directory as directories
from entrostat import prompt_record
from entrostat.learner import checkpoint
from entrostat.rows import read_evaluations
from tests.real_runs import DEADLINE_SECONDS, SETTINGS, branches, command, station, steps, train, under_way, wait


@pytest.fixture
def config(repository: Path) -> str:
    return str(repository / "deploy/runs/simulated.toml")


def test_killed_twice_before_its_first_checkpoint_and_once_after_each_step_is_there_once(
    config: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = (*SETTINGS, "checkpoint.every_steps=500")
    with under_way(tmp_path, config, "--run", "run", until=2, settings=settings) as process:
        wait(lambda: bool(read_evaluations(run / "evaluations.jsonl")), process)
        process.kill()
    assert not (run / "checkpoints").exists()
    with under_way(tmp_path, "--resume", "run", settings=("checkpoint.every_steps=4",)) as process:
        wait(lambda: checkpoint.newest(run / "checkpoints") is not None, process)
        process.kill()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7')  # cut off by the kill
    done = train(tmp_path, "--resume", "run", settings=("run.steps=10",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(run) == list(range(1, 11))
    assert set(branches(run)) == {1, 2}
    assert branches(run) == sorted(branches(run))
    assert [row.step for row in read_evaluations(run / "evaluations.jsonl")] == [0, 10]
    assert (run / "branch").read_text() == "2\n"


def test_what_is_left_of_a_run_killed_while_it_starts_can_be_gone_on_with_or_kept(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        command(config, "--run", "run", settings=SETTINGS),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (run / "config.toml").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    refused = train(tmp_path, config, "--run", "run")
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    assert (run / prompt_record.FILE).is_file()
    shutil.copytree(run, tmp_path / "other")
    settings = ("run.steps=2", "evaluation.tasks=[]")
    done = train(tmp_path, "--resume", "other", settings=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert prompt_record.FILE not in done.stderr
    assert (steps(tmp_path / "other"), branches(tmp_path / "other")) == ([1, 2], [1, 1])
    done = train(tmp_path, config, "--run", "run", "--keep-earlier", settings=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (steps(run), branches(run)) == ([1, 2], [0, 0])
    assert len(list(tmp_path.glob("run-*"))) == 1


def test_a_learner_that_hangs_on_is_waited_for_and_named(config: str, tmp_path: Path) -> None:
    with under_way(tmp_path, config, "--run", "run", until=4) as process:
        wait(lambda: (tmp_path / "run/checkpoints/step-4").exists(), process)
        learner = station(process, "LearnerActor")
        others = [one for one in psutil.Process(process.pid).children(recursive=True) if one != learner]
        learner.suspend()
        try:
            process.kill()
            for one in others:  # Ray's own would end a process that was stopped
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            before = (tmp_path / "run/metrics.jsonl").read_bytes()
            began = time.monotonic()
            refused = train(tmp_path, "--resume", "run", settings=("run.steps=6",))
            assert refused.returncode == 2, refused.stderr
            assert "waiting for the processes of the run before" in refused.stderr
            assert f"the learner (process {learner.pid})" in refused.stderr.splitlines()[-1]
            assert 25 < time.monotonic() - began < 60
            assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
            assert (tmp_path / "run/branch").read_text() == "0\n"
        finally:
            os.kill(learner.pid, signal.SIGKILL)
    done = train(tmp_path, "--resume", "run", settings=("run.steps=6",))
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_a_run_that_may_goes_on_by_itself_when_its_learner_dies(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*SETTINGS, "run.steps=12", "run.restarts=2", "evaluation.tasks=[]")
    with under_way(tmp_path, config, "--run", "run", until=2, settings=settings) as process:
        station(process, "LearnerActor").kill()  # before the first checkpoint
        wait(lambda: 1 in branches(run) and (run / "checkpoints/step-4").exists(), process)
        station(process, "LearnerActor").kill()
        said, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, said + errors
    assert "going on from step 0, restart 1 of 2" in said
    assert "going on from its newest checkpoint, restart 2 of 2" in said
    assert steps(run) == list(range(1, 13))
    assert set(branches(run)) == {1, 2}
    assert json.loads((run / "summary.json").read_text())["restarts"] == 2
    assert "restart 2 of 2" in (run / "logs/driver.log").read_text()


def test_a_run_that_may_not_ends_and_says_how_to_go_on(config: str, tmp_path: Path) -> None:
    with under_way(tmp_path, config, "--run", "run", until=2) as process:
        station(process, "LearnerActor").kill()
        said, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1, said + errors
    assert "the learner died" in errors
    assert "go on from step 0 with: entrostat train --resume" in said


def test_the_advice_on_a_damaged_checkpoint_works(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("run.steps=8", "checkpoint.every_steps=4", "evaluation.tasks=[]")
    assert train(tmp_path, config, "--run", "run", settings=settings).returncode == 0
    damaged = run / "checkpoints/step-8/controller.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = (run / "metrics.jsonl").read_bytes()
    refused = train(tmp_path, "--resume", "run", settings=("run.steps=9",))
    assert refused.returncode == 2
    assert f"{damaged} has changed" in refused.stderr
    assert f"remove {damaged.parent} to go on from the checkpoint before it" in refused.stderr
    assert (run / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(damaged.parent)
    done = train(tmp_path, "--resume", "run", settings=("run.steps=9",))
    assert done.returncode == 0, done.stderr
    assert steps(run) == list(range(1, 10))
    assert branches(run) == [0] * 4 + [1] * 5


def test_what_may_not_change_is_refused_and_nothing_is_written(config: str, tmp_path: Path) -> None:
    begun = configs.load(config)
    directories.create(tmp_path / "run", configs.effective_toml(begun), keep_earlier=False).close()
    before = contents(tmp_path / "run")
    refused = train(tmp_path, "--resume", "run", settings=("run.steps=4", "run.seed=9", "rollout.temperature=0.9"))
    assert refused.returncode == 2
    assert "run.seed is 7, and can't become 9" in refused.stderr
    assert "rollout.temperature is 1.0, and can't become 0.9" in refused.stderr
    assert contents(tmp_path / "run") == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
