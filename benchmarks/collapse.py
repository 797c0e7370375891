"""Reward, pass@k and entropy of every method on two tasks, over seeds: the tables that say what control is good for.

    python -m benchmarks.collapse                 # every cell that is missing, then tables and pictures
    python -m benchmarks.collapse --only tables   # from the cells that are there

Every run of ours is made by the product's actor, controller and learner, with a plain torch engine in vLLM's place
(`benchmarks/loop.py`), with equal steps and samples. The second half is about tracking alone: the law at delays of 1, 4
and 8 orders, beside bang-bang and beside TRL's own trainer (`benchmarks/trl_run.py`), which has no delay and no such
mode.
"""

import argparse
import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import own_process
from benchmarks.cells import ROOT, cell, place
from benchmarks.collapse_figure import draw
from benchmarks.collapse_report import Cell, write_tables
from benchmarks.collapse_rows import (
    FRONTIER_SEEDS,
    PAIRED,
    PAIRED_SEEDS,
    SAMPLES,
    SEEDS,
    TASKS,
    TRACKED,
    TRACKING_SEEDS,
    TUNING_SEED,
    Task,
    frontier_rows,
    rows,
    tracking_rows,
    tuning_rows,
)
from benchmarks.collapse_run import RunRequest
from benchmarks.older_cells import older, result_in, take_over
from entrostat import config as configs

log = logging.getLogger("collapse")

BENCHMARK = "collapse"
# What a run's result depends on besides its configuration: all mathematics and decisions, and nothing of processes.
NO_MATHEMATICS = (
    *("remote", "telemetry", "ipc", "nccl", "shared_memory", "segment", "checkpoint", "samples", "buffer", "weights"),
    *("probe", "engine", "engine_setup", "flat_buffer", "nccl_buffer", "handles", "simulated", "weight_plugin"),
    *("pool", "process", "worker", "frames", "tally"),
)
CODE = (
    "benchmarks/collapse_run.py",
    "benchmarks/countdown/score.py",
    "benchmarks/decoder.py",
    "benchmarks/loop.py",
    "benchmarks/torch_engine.py",
    "protocol/entropy_settings.py",
    "protocol/learner_settings.py",
    "protocol/messages.py",
    "protocol/moments.py",
    "protocol/settings.py",
    *(
        str(file.relative_to(ROOT))
        for folder in ("controller", "learner", "actors", "actors/tasks", "actors/verifiers")
        for file in sorted((ROOT / folder).glob("*.py"))
        if file.stem not in NO_MATHEMATICS
    ),
)
PARTS = ("methods", "frontier", "tuning", "tracking")
# The flagship's law alone: no other row's run calls it.
FLAGSHIP_CODE = ("controller/response.py", "controller/thermostat.py")
TRL_CODE = ("benchmarks/trl_environment.py", "benchmarks/trl_request.py", "benchmarks/trl_run.py")


def request(one: Cell) -> RunRequest:
    """The run of one of our cells."""
    overrides = [f"run.steps={one.task.steps}", *one.task.overrides, *one.row.overrides]
    samples = SAMPLES if one.row.scored else 0
    return RunRequest(task=one.task.toml, overrides=overrides, seed=one.seed, lag=one.row.lag, samples=samples)


def trl_request(one: Cell) -> dict[str, Any]:
    """The run of one of TRL's cells: the same policy, problems, batch and rate."""
    config = configs.load(ROOT / one.task.toml, [f"run.seed={one.seed}", *one.task.overrides])
    return {
        "model": os.path.relpath(config.model.path, ROOT),
        "tasks": msgspec.to_builtins(config.tasks),
        "seed": one.seed,
        "steps": one.task.steps,
        "prompts": config.batch.prompts,
        "samples": config.rollout.samples_per_prompt,
        "max_response_tokens": config.rollout.max_response_tokens,
        "lr": config.learner.lr,
        "betas": config.learner.betas,
        "entropy": {"target": round(one.task.target, 4), "delta": one.row.trl_delta},
    }


def result_of(one: Cell) -> dict[str, Any]:
    """The cell's result, made in a process of its own if it is not there.

    Raises:
        RuntimeError: the run failed or took too long.
    """

    def compute() -> dict[str, Any]:
        log.info("%s begins", one.name)
        if one.row.trl_delta:
            made = own_process.run(
                one.name, "benchmarks.trl_run", asked, lambda source, told: ["--config", source, "--out", told]
            )
            found: dict[str, Any] = {"entropy": [step["entropy_nats"] for step in made["steps"]]}
            found |= {"target": [asked["entropy"]["target"]] * len(found["entropy"])}
            found |= {"reward": [step["reward"] for step in made["steps"]], "initial_entropy": None}
        else:
            found = own_process.run(one.name, "benchmarks.collapse_run", asked, lambda source, told: [source, told])
        log.info("%s is done", one.name)
        return found

    asked = asked_of(one)
    config, code = _key(one)
    return cell(BENCHMARK, one.name, config, code, compute)


def asked_of(one: Cell) -> dict[str, Any]:
    """The request of a cell's run."""
    return trl_request(one) if one.row.trl_delta else dict(request(one))


def there(one: Cell) -> dict[str, Any] | None:
    """The cell's result, if it is there; else the newest that other code made."""
    path, config = place_of(one)
    made = path if path.is_file() else older(path, config)
    return result_in(made) if made else None


def outdated(cells: Iterable[Cell]) -> int:
    """How many of the cells today's code did not make. Of tuning, which only chose settings, any code will do."""
    return sum(one.seed != TUNING_SEED and not place_of(one)[0].is_file() for one in cells)


def place_of(one: Cell) -> tuple[Path, dict[str, Any]]:
    """Where a cell's file is or will be, and its configuration."""
    config, code = _key(one)
    return place(BENCHMARK, one.name, config, code), config


def _key(one: Cell) -> tuple[dict[str, Any], tuple[str, ...]]:
    asked = asked_of(one) | {"files": _files(one.task)}
    if one.row.trl_delta:
        return asked, TRL_CODE
    flagship = any('kind="thermostat"' in override for override in one.row.overrides)
    return asked, tuple(file for file in CODE if flagship or file not in FLAGSHIP_CODE)


@lru_cache
def _files(task: Task) -> str:
    """A digest of the task's TOML and of the policy it starts from."""
    toml = ROOT / task.toml
    policy = Path(configs.load(toml).model.path)
    digest = hashlib.sha256()
    for file in (toml, *sorted(policy.iterdir())):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def planned(tasks: Sequence[Task]) -> list[Cell]:
    """Every cell, the most telling first."""
    found: list[Cell] = []
    for task in tasks:
        for row in rows(task):
            seeds = PAIRED_SEEDS if row.name in PAIRED else SEEDS
            found += [Cell(task=task, row=row, seed=seed) for seed in seeds]
    found.sort(key=lambda one: (one.seed not in SEEDS, one.seed))
    for task in tasks:
        found += [Cell(task=task, row=row, seed=seed) for seed in FRONTIER_SEEDS for row in frontier_rows(task)]
        found += [Cell(task=task, row=row, seed=TUNING_SEED) for row in tuning_rows(task)]
        if task.name == TRACKED:
            found += [Cell(task=task, row=row, seed=seed) for seed in TRACKING_SEEDS for row in tracking_rows(task)]
    return found


def compute(cells: Sequence[Cell], processes: int) -> int:
    """Makes what is missing; returns how many cells failed."""
    cells = [one for one in cells if one.seed != TUNING_SEED or there(one) is None]
    take_over(cells, place_of, result_of, processes)
    failures = 0
    with ThreadPoolExecutor(processes) as pool:
        jobs = {one: pool.submit(result_of, one) for one in cells}
        for one, job in jobs.items():
            if error := job.exception():
                failures += 1
                log.error("%s: %s", one.name, error)
    return failures


def part(one: Cell) -> str:
    """Which of the benchmark's parts a cell is of."""
    if not one.row.scored:
        return "tracking"
    if one.seed == TUNING_SEED:
        return "tuning"
    return "frontier" if one.row in frontier_rows(one.task) else "methods"


def _asked(one: Cell, chosen: argparse.Namespace) -> bool:
    named = (not chosen.row or one.row.name in chosen.row) and (not chosen.seed or one.seed in chosen.seed)
    return named and chosen.part in (None, part(one))


def main() -> int:
    """Computes what is missing, then writes tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("runs", "tables"), help="leave the other out")
    parser.add_argument("--task", choices=sorted(TASKS), help="one task alone")
    parser.add_argument("--part", choices=PARTS, help="one part alone")
    parser.add_argument("--row", action="append", help="these rows alone")
    parser.add_argument("--seed", action="append", type=int, help="these seeds alone")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="runs beside each other")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    tasks = [TASKS[chosen.task]] if chosen.task else list(TASKS.values())
    cells = planned(tasks)
    failures = 0
    if chosen.only != "tables":
        wanted = [one for one in cells if _asked(one, chosen)]
        if any(one.row.trl_delta for one in wanted):
            from benchmarks import trl_environment

            trl_environment.prepare()
        failures = compute(wanted, chosen.processes)
    if chosen.only != "runs":
        results = {one: found for one in cells if (found := there(one))}
        write_tables(tasks, results, outdated(results))
        for task in tasks:
            if any(one.task.name == task.name for one in results):
                draw(task, results, ROOT / "docs" / f"collapse-{task.name}.png")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
