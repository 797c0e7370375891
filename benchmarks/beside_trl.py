"""Entrostat beside TRL's own GRPO trainer, on the same two cores: time for an optimizer step, reward after equal time.

    python -m benchmarks.beside_trl --cores 0,1                          # every cell that is missing, then the table
    python -m benchmarks.beside_trl --cores 0,1 --part reward --seed 2   # one pair
    python -m benchmarks.beside_trl --part tables                        # the table, from the cells that are there

Ours is `entrostat train deploy/runs/quickstart.toml` with Ray, vLLM, verifiers, weights handed over and the
quickstart's entropy control; only its evaluations are left out. TRL's has the same policy, problems, batch, samples,
rate and verifier, no entropy control, and the fastest of the ways in `benchmarks/trl_ways.py`. A step is the time from
the end of one optimizer step to the end of the next. The two sides of a cell run in turn.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from benchmarks import beside_trl_report as report
from benchmarks import trl_environment
from benchmarks.beside_trl_cells import CORES, QUICK, Job, Part, Plan, Result, jobs
from benchmarks.cells import RESULTS, cell, place
from benchmarks.older_cells import older, result_in
from benchmarks.trl_ways import FASTEST, WAYS

log = logging.getLogger("beside_trl")

NAME = "beside-trl"
TABLES = "tables"


def measure(job: Job, *, quick: bool) -> Result:
    """The cell's result; of the small version nothing is kept."""
    return job.compute() if quick else cell(NAME, job.name, job.config, job.code, job.compute)


def there(job: Job) -> Path | None:
    """The cell's file; else the newest that other code made."""
    path = place(NAME, job.name, job.config, job.code)
    return path if path.is_file() else older(path, job.config)


def chosen_jobs(plan: Plan, parts: Sequence[str] | None, seeds: Sequence[int] | None) -> list[Job]:
    """What is to be measured: of the parts and seeds named, or all."""
    return [
        job
        for job in jobs(plan)
        if (parts is None or job.part in parts) and (seeds is None or job.seed is None or job.seed in seeds)
    ]


def tables(plan: Plan, found: Mapping[str, Result], outdated: int = 0) -> str:
    """All tables of what there is; they say how many of the cells other code than today's made."""
    text = [f"# Entrostat beside TRL 1.16's GRPOTrainer\n\nBoth sides on the same {CORES} cores.\n"]
    if outdated:
        text += [f"Of {len(found)} cells {outdated} are of code before today's: `make bench-beside-trl` renews them.\n"]
    rounds = [result for name, result in found.items() if name.startswith("step-")]
    if rounds:
        text += ["## One optimizer step\n", report.step_table(rounds, plan.left_out)]
    pairs = {seed: found[f"reward-{seed}"] for seed in plan.seeds if f"reward-{seed}" in found}
    alone = {seed: pair | found.get(f"uncontrolled-{seed}", {}) for seed, pair in pairs.items()}
    alone = {seed: pair for seed, pair in alone.items() if f"uncontrolled-{seed}" in found}
    for title, chosen in (("with the quickstart's entropy control", pairs), ("without control", alone)):
        if chosen:
            text += [f"\n## Reward after {plan.seconds:.0f} s, start-up included, {title}\n"]
            text += [report.reward_table(chosen, plan.samples)]
    ways = {name: found[f"way-{index}"] for index, name in enumerate(WAYS) if f"way-{index}" in found}
    if ways:
        text += ["\n## TRL's ways\n"]
        text += [
            f"Above, TRL has “{FASTEST}”. A line that begins with … adds to it; memory is kept by the allocator.\n"
        ]
        text += [report.ways_table(ways, plan.their_first)]
    return "\n".join(text) + "\n"


def main(given: Sequence[str] | None = None) -> int:
    """Measures what is missing, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", help="the two that both sides get, such as 0,1; default: those this process has")
    parser.add_argument("--part", action="append", choices=(*get_args(Part), TABLES), help="these alone")
    parser.add_argument("--seed", action="append", type=int, help="these seeds alone")
    parser.add_argument("--quick", action="store_true", help="a small version, printed and not kept")
    chosen = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if chosen.cores:
        os.sched_setaffinity(0, {int(core) for core in chosen.cores.split(",")})
    if chosen.part != [TABLES]:
        cores = len(os.sched_getaffinity(0))
        if cores != CORES:
            parser.error(f"both sides get {CORES} cores, this process has {cores}: name them, --cores 0,1")
        trl_environment.prepare()
    plan = QUICK if chosen.quick else Plan()
    found: dict[str, Result] = {}
    failures = 0
    for job in chosen_jobs(plan, chosen.part, chosen.seed):
        log.info("%s", job.name)
        try:
            found[job.name] = measure(job, quick=chosen.quick)
        except RuntimeError as error:
            failures += 1
            log.error("%s: %s", job.name, error)
    if chosen.quick:
        print(tables(plan, found))
        return 1 if failures else 0
    files = {job.name: (file, job) for job in jobs(plan) if (file := there(job))}
    outdated = sum(file != place(NAME, name, job.config, job.code) for name, (file, job) in files.items())
    (RESULTS / NAME).mkdir(parents=True, exist_ok=True)
    text = tables(plan, {name: result_in(file) for name, (file, _) in files.items()}, outdated)
    (RESULTS / NAME / "table.md").write_text(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
