"""Whole runs, as a user starts them: the real engine for three steps, the simulated one for the rest."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
from tensorboard.backend.event_processing import event_accumulator

from entrostat.learner import checkpoint
from entrostat.rows import read_evaluations, read_metrics
from entrostat.summary import Summary

DEADLINE_SECONDS = 240


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "entrostat", *arguments]


def entrostat(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )


def sets(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def train(folder: Path, *arguments: str) -> str:
    done = entrostat(folder, "train", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def under_way(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A simulated run in `folder/run` that has made three steps; it is killed where the test leaves it running."""
    with subprocess.Popen(
        command("train", *arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while len(read_metrics(folder / "run/metrics.jsonl")) < 3:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def real_run(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three optimizer steps with vLLM, Ray, the learner and weights."""
    folder = tmp_path_factory.mktemp("real")
    train(
        folder,
        str(repository / "deploy/runs/quickstart.toml"),
        *(
            "--run",
            "run",
            "--set",
            "run.name=three-steps",
            "--set",
            "run.steps=3",
            "--set",
            "batch.prompts=8",
            "--set",
            "evaluation.samples=2",
        ),
    )
    return folder / "run"


def test_the_real_loop_trains_three_steps(real_run: Path) -> None:
    rows = read_metrics(real_run / "metrics.jsonl")
    assert [row.step for row in rows] == [1, 2, 3]
    for row in rows:
        assert 0.0 <= row.reward <= 1.0
        assert row.entropy_nats >= row.clamped_entropy_nats > 0.0
        assert row.tokens > 0
        assert row.gradient_norm > 0.0
        assert row.staleness_max <= 2
    assert len({row.entropy_nats for row in rows}) == 3


def test_vllm_and_the_learner_agree(real_run: Path) -> None:
    summary = msgspec.json.decode((real_run / "summary.json").read_bytes(), type=Summary)
    assert 0.0 < summary.max_mismatch_nats <= 1e-4
    # What was sampled under the first weights is scored under the same weights by the first step.
    assert read_metrics(real_run / "metrics.jsonl")[0].drift_max_nats <= 1e-4


def test_it_evaluates_before_and_after(real_run: Path) -> None:
    rows = read_evaluations(real_run / "evaluations.jsonl")
    assert [row.step for row in rows] == [0, 3]
    assert all(row.prompts == 200 for row in rows)
    assert {level.level for level in rows[0].levels if not level.trained} == {"6 terms"}


def test_eval_repeats_what_the_run_measured_digit_by_digit(real_run: Path) -> None:
    done = entrostat(real_run.parent, "eval", "run", "--json", "--out", "out.jsonl")
    assert done.returncode == 0, done.stderr
    found, row = json.loads(done.stdout), json.loads((real_run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert found["step"] == row["step"] == 3
    assert found["scores"] == row["scores"]
    assert found["levels"] == row["levels"]
    assert len((real_run.parent / "out.jsonl").read_text().splitlines()) == 300 * 2


def test_the_run_directory_is_complete(real_run: Path) -> None:
    names = {path.name for path in real_run.iterdir()}
    assert {"config.toml", "metrics.jsonl", "summary.json", "report", "checkpoints", "samples", "logs"} <= names
    assert "run.json" not in names  # it is no longer alive
    assert not list(Path("/dev/shm").glob("entrostat-three-steps-*"))
    assert (real_run / "report/report.html").stat().st_size > 100_000


def test_its_checkpoint_is_whole_and_loads_as_a_model(real_run: Path) -> None:
    newest = checkpoint.newest(real_run / "checkpoints")
    assert newest is not None
    assert checkpoint.verify(newest).step == 3
    assert (newest / "policy/model.safetensors").exists()


def test_its_samples_can_be_read(real_run: Path) -> None:
    done = entrostat(real_run.parent, "samples", "run", "--step", "2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"reward \d", done.stdout)
    assert "nats/token" in done.stdout
    wrong = entrostat(real_run.parent, "samples", "run", "--status", "wrong").stdout
    assert "correct, reward" not in wrong


def test_resuming_a_finished_run_says_so(real_run: Path) -> None:
    before = (real_run / "metrics.jsonl").read_bytes()
    assert "is finished" in train(real_run.parent, "--resume", "run")
    assert (real_run / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_goes_on_with_more_steps(real_run: Path) -> None:
    train(real_run.parent, "--resume", "run", "--set", "run.steps=4")
    rows = read_metrics(real_run / "metrics.jsonl")
    assert [(row.step, row.branch) for row in rows] == [(1, 0), (2, 0), (3, 0), (4, 1)]


def test_a_damaged_checkpoint_is_refused(real_run: Path) -> None:
    newest = checkpoint.newest(real_run / "checkpoints")
    assert newest is not None
    file = newest / "policy/model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = (real_run / "metrics.jsonl").read_bytes()
    done = entrostat(real_run.parent, "train", "--resume", "run", "--set", "run.steps=6")
    file.write_bytes(content)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert (real_run / "metrics.jsonl").read_bytes() == before


def test_the_simulated_run_makes_twenty_steps_in_a_minute(repository: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    train(tmp_path, str(repository / "deploy/runs/simulated.toml"), "--run", "run")
    assert time.monotonic() - began < 60
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert len(rows) >= 20
    assert max(row.staleness_max for row in rows) <= 1


def test_on_policy_means_no_group_is_older_than_its_order(repository: Path, tmp_path: Path) -> None:
    settings = ["run.steps=4", "rollout.max_staleness=0", "evaluation.tasks=[]"]
    train(tmp_path, str(repository / "deploy/runs/simulated.toml"), "--run", "run", *sets(settings))
    assert [row.staleness_max for row in read_metrics(tmp_path / "run/metrics.jsonl")] == [0, 0, 0, 0]


def test_a_sink_gets_the_same_numbers(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = ["run.steps=3", 'monitor.sinks=["tensorboard","wandb"]', "evaluation.tasks=[]"]
    train(tmp_path, str(repository / "deploy/runs/simulated.toml"), "--run", "run", *sets(settings))
    events = event_accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    rewards = [event.value for event in events.Scalars("reward")]
    assert rewards == pytest.approx([row.reward for row in read_metrics(tmp_path / "run/metrics.jsonl")])
    assert list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))


def test_ctrl_c_saves_and_the_run_goes_on(repository: Path, tmp_path: Path) -> None:
    config = str(repository / "deploy/runs/simulated.toml")
    with under_way(tmp_path, config, "--run", "run", "--set", "run.steps=500") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
    assert "--resume" in said
    steps = len(read_metrics(tmp_path / "run/metrics.jsonl"))
    assert (tmp_path / f"run/checkpoints/step-{steps}").is_dir()
    train(tmp_path, "--resume", "run", "--set", f"run.steps={steps + 2}")
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row.step for row in rows] == list(range(1, steps + 3))
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == steps + 2


def test_a_killed_actor_is_replaced_and_training_goes_on(repository: Path, tmp_path: Path) -> None:
    config = str(repository / "deploy/runs/simulated.toml")
    # With two actors training goes on meanwhile, and the replacement must get the weights of now.
    settings = ["run.steps=30", "evaluation.tasks=[]", "rollout.lease_seconds=3", "rollout.actors=2"]
    with under_way(tmp_path, config, "--run", "run", *sets(settings)) as process:
        below = psutil.Process(process.pid).children(recursive=True)
        actors = [one for one in below if one.name().startswith("ray::RolloutAct")]
        assert len(actors) == 2
        actors[0].kill()
        said, errors = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 0, said + errors
    assert [row.step for row in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, 31))
    assert json.loads((tmp_path / "run/summary.json").read_text())["actor_restarts"] == 1


def test_two_ranks_train_and_the_run_goes_on_with_one(repository: Path, tmp_path: Path) -> None:
    config = str(repository / "deploy/runs/simulated.toml")
    settings = ["run.steps=3", "evaluation.tasks=[]", "learner.ranks=2"]
    train(tmp_path, config, "--run", "run", *sets(settings))
    saved = checkpoint.newest(tmp_path / "run/checkpoints")
    assert saved is not None
    assert {file.name for file in (saved / "optimizer").iterdir()} >= {".metadata", "__0_0.distcp", "__1_0.distcp"}
    train(tmp_path, "--resume", "run", *sets(["run.steps=5"]))
    train(tmp_path, "--resume", "run", *sets(["run.steps=7", "learner.ranks=1"]))
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [(row.step, row.branch) for row in rows] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (7, 2)]


def test_a_rank_of_the_learner_that_dies_ends_the_run_by_name(repository: Path, tmp_path: Path) -> None:
    config = str(repository / "deploy/runs/simulated.toml")
    settings = ["run.steps=500", "evaluation.tasks=[]", "learner.ranks=2"]
    with under_way(tmp_path, config, "--run", "run", *sets(settings)) as process:
        below = psutil.Process(process.pid).children(recursive=True)
        (follower,) = [one for one in below if one.name().startswith("ray::FollowerAc")]
        began = time.monotonic()
        follower.kill()
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1, said
    assert "rank 1 of the learner died" in said
    assert time.monotonic() - began < 60


def test_a_run_killed_before_its_summary_is_finished_by_resuming(real_run: Path) -> None:
    (real_run / "summary.json").unlink()
    rows = read_metrics(real_run / "metrics.jsonl")
    said = train(real_run.parent, "--resume", "run")
    assert "is finished" not in said
    assert (real_run / "summary.json").exists()
    assert read_metrics(real_run / "metrics.jsonl") == rows


def test_a_resume_with_another_law_is_refused(real_run: Path) -> None:
    done = entrostat(
        real_run.parent, "train", "--resume", "run", "--set", "run.steps=6", "--set", "entropy.law.kind=fixed"
    )
    assert done.returncode == 2, done.stderr
    assert "law the run was started with" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_fails_before_its_first_step_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    config = str(repository / "deploy/runs/simulated.toml")
    done = entrostat(tmp_path, "train", config, "--run", "run", "--set", "learner.device=cuda")
    assert done.returncode == 2, done.stderr
    assert "no GPU" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_address_where_no_cluster_answers_is_refused_at_once(repository: Path, tmp_path: Path) -> None:
    config = str(repository / "deploy/runs/simulated.toml")
    done = entrostat(tmp_path, "train", config, "--run", "run", "--address", "127.0.0.1:9")
    assert done.returncode == 2
    assert "no Ray cluster answers at 127.0.0.1:9" in done.stderr
    assert not (tmp_path / "run").exists()
