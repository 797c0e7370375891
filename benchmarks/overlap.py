"""What asynchrony wins: our own loop at several bounds of staleness, beside the same loop on-policy.

    python -m benchmarks.overlap                    # every cell that is missing, then the tables
    python -m benchmarks.overlap --part reward      # one part
    python -m benchmarks.overlap --part tables      # the tables, from the cells that are there
    python -m benchmarks.overlap --quick            # a small version, printed and not kept

Throughput: one actor and one learner, real processes; decoding has a GPU's pace (a floor per step, a most of tokens a
second, which one batch fills), responses have a heavy tail, and the learner's steps last a set time. A turn runs every
staleness, one after the other. Reward: the quickstart with vLLM, asynchronous and on-policy, for as many samples.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import get_args

from benchmarks import overlap_report as report
from benchmarks import page
from benchmarks.cells import RESULTS, cell, machine, place
from benchmarks.older_cells import older, result_in
from benchmarks.overlap_cells import PACES, QUICK, Part, Plan, Result, jobs

log = logging.getLogger("overlap")

NAME = "overlap"
TABLES = "tables"


def tables(plan: Plan, found: Mapping[str, Result], outdated: int = 0) -> str:
    """All tables of what there is; they say how many of the cells other code than today's made."""
    text = [f"# Asynchronous beside synchronous\n\n{machine()}.\n"]
    if outdated:
        text += [f"Of {len(found)} cells {outdated} are of code before today's: `make bench-overlap` renews them.\n"]
    turns = {
        pace: [found[name] for turn in range(1, plan.turns + 1) if (name := _turn(pace.name, turn)) in found]
        for pace in PACES
    }
    if any(turns.values()):
        text += [
            "## Throughput\n",
            f"Medians and ranges of turns; the goal is {report.GOAL:g} at 1:1.\n",
            report.throughput_table([(pace, made) for pace, made in turns.items() if made]),
        ]
    rewards = {seed: found[f"reward-{seed}"] for seed in plan.seeds if f"reward-{seed}" in found}
    if rewards:
        text += ["\n## Reward after as many samples, quickstart\n", report.reward_table(rewards)]
    return "\n".join(text) + "\n"


def _turn(pace: str, turn: int) -> str:
    return f"{pace.replace(':', '-')}-turn-{turn}"


def main(given: Sequence[str] | None = None) -> int:
    """Measures what is missing, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=(*get_args(Part), TABLES), help="these alone")
    parser.add_argument("--most", type=int, default=0, metavar="N", help="stop after so many new cells; 0: never")
    parser.add_argument("--quick", action="store_true", help="a small version, printed and not kept")
    chosen = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    plan = QUICK if chosen.quick else Plan()
    found: dict[str, Result] = {}
    failures = new = 0
    for job in jobs(plan):
        missing = chosen.quick or not place(NAME, job.name, job.config, job.code).is_file()
        if (chosen.part and job.part not in chosen.part) or not missing or 0 < chosen.most <= new:
            continue
        log.info("%s", job.name)
        new += 1
        try:
            found[job.name] = job.compute() if chosen.quick else cell(NAME, job.name, job.config, job.code, job.compute)
        except RuntimeError as error:
            failures += 1
            log.error("%s: %s", job.name, error)
    if chosen.quick:
        print(tables(plan, found))
        return 1 if failures else 0
    kept, outdated = there(plan)
    (RESULTS / NAME).mkdir(parents=True, exist_ok=True)
    text = tables(plan, kept, outdated)
    (RESULTS / NAME / "table.md").write_text(text)
    page.put(NAME, text.partition("\n\n")[2].replace("## ", "### "))  # without its title
    return 1 if failures else 0


def there(plan: Plan) -> tuple[dict[str, Result], int]:
    """The cells that are kept, the newest where only other code made them, and how many are such."""
    found: dict[str, Result] = {}
    outdated = 0
    for job in jobs(plan):
        path = place(NAME, job.name, job.config, job.code)
        file = path if path.is_file() else older(path, job.config)
        if file is not None:
            found[job.name] = result_in(file)
            outdated += file != path
    return found, outdated


if __name__ == "__main__":
    sys.exit(main())
