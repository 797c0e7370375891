"""A run in which a station hangs ends by name, in time, and leaves nothing behind."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil

from entrostat.rows import read_metrics

STALL_SECONDS = 6
SETTINGS = (
    "run.steps=500",
    f"run.stall_seconds={STALL_SECONDS}",
    "rollout.lease_seconds=3",
    "verifier.deadline_seconds=3",
    "evaluation.tasks=[]",
)
START_SECONDS = 120  # the machine may be busy


def test_a_learner_that_hangs_ends_the_run_with_a_report_that_names_it(repository: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    config = str(repository / "deploy/runs/simulated.toml")
    command = [sys.executable, "-m", "entrostat", "train", config, "--run", str(run), *sets]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        below: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + START_SECONDS
            while len(read_metrics(run / "metrics.jsonl")) < 2:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            below = psutil.Process(process.pid).children(recursive=True)
            (learner,) = [one for one in below if one.name().startswith("ray::LearnerAct")]
            learner.suspend()
            began = time.monotonic()
            _, said = process.communicate(timeout=STALL_SECONDS + 30)
            assert process.returncode == 3, said
            assert time.monotonic() - began < STALL_SECONDS + 30
            _, alive = psutil.wait_procs(below, timeout=3.0)
            assert not alive
        finally:
            process.kill()
            for one in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
    assert f"the learner is suspended (process {learner.pid} " in said
    assert "Traceback" not in said
    text = (run / "stall.txt").read_text()
    assert f"the learner, process {learner.pid} on" in text
    assert "the kernel says: stopped" in text
    assert "with the learner" in text
    for station in ("the controller", "the sample buffer", "rollout actor 0"):
        assert f"── {station}, process" in text, text
