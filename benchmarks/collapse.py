"""Reward, pass@k and entropy of every method on two tasks, over seeds: the table that says what control is good for.

    python -m benchmarks.collapse                 # everything that is missing; goes on where it stopped
    python -m benchmarks.collapse --only tables   # only tables and plots, from the cells that are there

Every run is made by the product's own engine, controller and learner (`benchmarks/loop.py`), with equal steps and samples.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cells import ROOT, cell, place
from benchmarks.collapse_report import Cell, write_tables
from benchmarks.collapse_rows import PAIRED, PAIRED_SEEDS, SAMPLES, SEEDS, TASKS, Row, Task, rows
from benchmarks.collapse_run import RunRequest

log = logging.getLogger("collapse")

BENCHMARK = "collapse"
RUN_SECONDS = 3600  # at most for one run
# What a run's result depends on besides its configuration.
CODE = (
    "benchmarks/collapse_run.py",
    "benchmarks/loop.py",
    "controller/allocation.py",
    "controller/coefficient.py",
    "controller/difficulty.py",
    "controller/mix.py",
    "controller/thermostat.py",
    "learner/advantages.py",
    "learner/entropy.py",
    "learner/losses.py",
    "learner/update.py",
)


def request(task: Task, row: Row, seed: int) -> RunRequest:
    """The run of one cell."""
    overrides = [f"run.steps={task.steps}", *task.overrides, *row.overrides]
    return RunRequest(task=task.toml, overrides=overrides, seed=seed, lag=row.lag, samples=SAMPLES)


def computed(name: str, wanted: RunRequest) -> dict[str, Any]:
    """The cell's result, made in a process of its own if it is not there.

    Raises:
        RuntimeError: the run failed or took too long.
    """

    def compute() -> dict[str, Any]:
        log.info("%s begins", name)
        result = _in_own_process(name, wanted)
        log.info("%s is done", name)
        return result

    return cell(BENCHMARK, name, dict(wanted), CODE, compute)


def _in_own_process(name: str, wanted: RunRequest) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target, output = Path(folder, "run.json"), Path(folder, "result.json"), Path(folder, "output.txt")
        source.write_text(json.dumps(wanted))
        command = [sys.executable, "-m", "benchmarks.collapse_run", str(source), str(target)]
        with output.open("w") as stream:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=RUN_SECONDS,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(f"{name} was not done after {RUN_SECONDS} s") from error
        if code or not target.is_file():
            raise RuntimeError(f"{name} failed with exit code {code}: {output.read_text()[-2000:]}")
        result: dict[str, Any] = json.loads(target.read_bytes())
        return result


def planned(tasks: Sequence[Task]) -> list[Cell]:
    """Every cell of the tables, the most telling first."""
    found: list[Cell] = []
    for task in tasks:
        for row in rows(task):
            seeds = PAIRED_SEEDS if row.name in PAIRED else SEEDS
            found += [Cell(task=task, row=row, seed=seed) for seed in seeds]
    return sorted(found, key=lambda one: (one.seed not in SEEDS, one.seed))


def main() -> int:
    """Computes what is missing, then writes tables and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("runs", "tables"), help="leave the other out")
    parser.add_argument("--task", choices=sorted(TASKS), help="one task alone")
    parser.add_argument("--row", action="append", help="these rows alone")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="runs beside each other")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    tasks = [TASKS[chosen.task]] if chosen.task else list(TASKS.values())
    cells = [one for one in planned(tasks) if not chosen.row or one.row.name in chosen.row]
    failures: list[str] = []
    if chosen.only != "tables":
        with ThreadPoolExecutor(chosen.processes) as pool:
            jobs = [pool.submit(computed, one.name, request(one.task, one.row, one.seed)) for one in cells]
            for job in jobs:
                if error := job.exception():
                    failures.append(str(error))
                    log.error("%s", error)
    if chosen.only != "runs":
        write_tables(tasks, {one: found for one in cells if (found := _there(one))})
    return 1 if failures else 0


def _there(one: Cell) -> dict[str, Any] | None:
    """The cell's result, if it is there."""
    path = place(BENCHMARK, one.name, dict(request(one.task, one.row, one.seed)), CODE)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_bytes())["result"]
    return found


if __name__ == "__main__":
    sys.exit(main())
