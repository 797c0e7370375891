"""Runs as a user starts them, to be watched and killed; on the simulated engine unless a setting says otherwise."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from entrostat.rows import read_metrics

DEADLINE_SECONDS = 240
SETTINGS = ("run.steps=500", "checkpoint.every_steps=4", "rollout.engine.tokens_per_second=20000")


def command(*arguments: str, settings: tuple[str, ...] = ()) -> list[str]:
    sets = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "entrostat", "train", *arguments, *sets]


def train(folder: Path, *arguments: str, settings: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments, settings=settings),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def entrostat(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Another command."""
    return subprocess.run(
        [sys.executable, "-m", "entrostat", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@contextmanager
def under_way(
    folder: Path, *arguments: str, until: int = 1, settings: tuple[str, ...] = SETTINGS
) -> Iterator["subprocess.Popen[str]"]:
    """A run in `folder/run` that has written the row of the step `until`."""
    with subprocess.Popen(
        command(*arguments, settings=settings), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait(lambda: until in steps(folder / "run"), process)
            yield process
        finally:
            process.kill()


def wait(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(run: Path) -> list[int]:
    return [row.step for row in read_metrics(run / "metrics.jsonl")]


def branches(run: Path) -> list[int]:
    return [row.branch for row in read_metrics(run / "metrics.jsonl")]


def station(process: "subprocess.Popen[str]", name: str) -> psutil.Process:
    below = psutil.Process(process.pid).children(recursive=True)
    (found,) = [one for one in below if one.name().startswith(f"ray::{name}")]
    return found


def killed(process: "subprocess.Popen[str]") -> None:
    """Everything of a run dies at once, as when a machine loses its power."""
    driver = psutil.Process(process.pid)
    for one in (driver, *driver.children(recursive=True)):
        one.kill()
    process.wait(DEADLINE_SECONDS)
