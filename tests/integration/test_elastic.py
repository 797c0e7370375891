"""A living run is given more actors and fewer, and goes on when one hangs: real processes, the simulated engine."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from entrostat.directory import RunInfo
from entrostat.rows import MetricsRow, read_metrics

DEADLINE_SECONDS = 90
# Slow enough that the actors always have something under way, and few enough groups at a time that all of them do.
SETTINGS = [
    *("run.steps=500", "evaluation.tasks=[]", "rollout.engine.tokens_per_second=1000", "rollout.groups_in_flight=4")
]


def entrostat(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "entrostat", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)


def rows(folder: Path) -> list[MetricsRow]:
    return read_metrics(folder / "run/metrics.jsonl")


def until(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not there():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@contextmanager
def under_way(repository: Path, folder: Path, *settings: str) -> Iterator["subprocess.Popen[str]"]:
    """A run in `folder/run` that has made two steps; interrupted where the test ends, and seen to save."""
    command = [sys.executable, "-m", "entrostat", "train", str(repository / "deploy/runs/simulated.toml")]
    sets = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    with subprocess.Popen(
        [*command, "--run", "run", *sets], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: process.poll() is not None or len(rows(folder)) >= 2, "no step was made")
            assert process.poll() is None, process.communicate()
            yield process
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=DEADLINE_SECONDS)
            assert process.returncode == 130, said
        finally:
            process.kill()


def actors_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    below = psutil.Process(process.pid).children(recursive=True)
    return [one for one in below if one.name().startswith("ray::RolloutAct")]


def view(folder: Path) -> tuple[dict[str, float], list[str]]:
    """What the controller exports, by name and outcome, and the stations it lists."""
    info = msgspec.json.decode((folder / "run/run.json").read_bytes(), type=RunInfo)
    with urllib.request.urlopen(info.targets, timeout=10) as answer:
        targets = json.loads(answer.read())
    with urllib.request.urlopen(info.targets.replace("/targets", "/metrics"), timeout=10) as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    stations = sorted(group["labels"]["station"] for group in targets)
    return {name: float(value) for name, value in lines}, stations


def ended(exported: dict[str, float], outcome: str) -> float:
    return exported[f'entrostat_leases_ended_total{{outcome="{outcome}"}}']


def assert_each_step_once(made: list[MetricsRow]) -> None:
    assert [row.step for row in made] == list(range(1, len(made) + 1))


def test_a_run_is_scaled_up_and_down_while_it_trains(repository: Path, tmp_path: Path) -> None:
    with under_way(repository, tmp_path, "rollout.lease_seconds=60", "rollout.drain_seconds=0.1") as process:
        up = entrostat(tmp_path, "scale", "run", "--actors", "3", "--wait", "40")
        assert up.returncode == 0, up.stderr
        assert up.stdout.startswith("1 → 3 rollout actors; they join when their engines are up")
        assert len(actors_of(process)) == 3
        until(lambda: rows(tmp_path)[-1].actors == 3, "no step of three actors")
        assert view(tmp_path)[1] == ["buffer", "controller", "learner", "rollout", "rollout", "rollout"]

        down = entrostat(tmp_path, "scale", "run", "--actors", "1", "--wait", "40")
        assert down.returncode == 0, down.stderr
        until(lambda: rows(tmp_path)[-1].actors == 1, "no step of one actor")
        until(lambda: len(actors_of(process)) == 1, "the others are still there")
        step = rows(tmp_path)[-1].step
        until(lambda: rows(tmp_path)[-1].step >= step + 2, "training does not go on")
        exported, stations = view(tmp_path)
        assert stations == ["buffer", "controller", "learner", "rollout"]
        token = (tmp_path / "run/token").read_text()
        refused = entrostat(tmp_path, "scale", "run", "--actors", "0")
    assert refused.returncode == 2
    assert "expected 1 to 1024" in refused.stderr
    assert ended(exported, "expired") == 0
    assert ended(exported, "lost") == 0
    assert exported["entrostat_late_reports_total"] == 0
    open_leases = exported["entrostat_leases_running"] + exported["entrostat_groups_ready"]
    all_ended = sum(value for name, value in exported.items() if name.startswith("entrostat_leases_ended_total"))
    assert exported["entrostat_leases_granted_total"] - all_ended - open_leases in (
        0,
        8,
    )  # an order is under way or not
    made = rows(tmp_path)
    assert_each_step_once(made)
    actors = [row.actors for row in made]
    assert sorted(actors[: actors.index(3)]) == actors[: actors.index(3)]
    logs = "".join(file.read_text() for file in (tmp_path / "run/logs").iterdir())
    assert token not in logs


@pytest.mark.parametrize("wakes", [False, True], ids=["for ever", "and wakes up"])
def test_an_actor_that_hangs_is_replaced_and_training_goes_on(repository: Path, tmp_path: Path, wakes: bool) -> None:
    with under_way(repository, tmp_path, "rollout.lease_seconds=3", "rollout.actors=2") as process:
        hung = actors_of(process)[0]
        hung.suspend()
        began = time.monotonic()
        log = tmp_path / "run/logs/driver.log"
        until(lambda: "hangs and is replaced" in log.read_text(), "it was not found")
        if wakes:
            hung.resume()
        until(lambda: not hung.is_running(), "the process that hung is still there")
        until(lambda: len(view(tmp_path)[1]) == 5, "it was not replaced")
        seconds = time.monotonic() - began
        step = rows(tmp_path)[-1].step
        until(lambda: rows(tmp_path)[-1].step >= step + 2, "training does not go on")
    assert 3.0 < seconds < 30.0
    made = rows(tmp_path)
    assert_each_step_once(made)
    assert made[-1].actors == 2


def test_a_run_that_has_ended_is_not_scaled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = entrostat(tmp_path, "scale", "run", "--actors", "2")
    assert done.returncode == 2
    assert "no run lives in run" in done.stderr
