"""What the control plane costs: the share of a step in controller, protocol and Ray together, and its parts alone.

    python -m benchmarks.overhead                    # every cell that is missing, then the tables
    python -m benchmarks.overhead --part tables      # the tables, from the cells that are there
    python -m benchmarks.overhead --quick            # shorter runs, printed and not kept

A step is 32 groups of 16 samples of 2,048 tokens and lasts 10 s: asynchronous, while the learner learns for 10 s; and
on-policy, 5 s of sampling and 5 s of learning. What samples and learns does next to nothing
(`benchmarks/overhead_stations.py`), everything between is the product's.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from benchmarks import own_process, page
from benchmarks.beside_trl_cells import OUR_CODE
from benchmarks.cells import RESULTS, ROOT, cell, machine, place, table
from benchmarks.older_cells import older, result_in
from benchmarks.overhead_system import TOML, Request, run

log = logging.getLogger("overhead")

NAME = "overhead"
TABLES = "tables"
CODE = tuple(f"benchmarks/overhead_{name}.py" for name in ("alone", "stations", "system"))
STEP_SECONDS = 10.0
SHARE_GOAL = 0.02
RATE_GOAL, BYTES_GOAL, MEMORY_GOAL = 20_000, 2e9, 400e6
PARTS = ("controller", "buffer", "actor", "learner", "driver", "Ray", "others")
ALONE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("state_machine", {}),
    ("journaled", {}),
    ("decoding", {}),
    ("prompts", {"prompts": 10_000_000}),
)
Result = dict[str, Any]
Job = tuple[str, Result, tuple[str, ...], Callable[[], Result]]


def jobs(steps: int) -> list[Job]:
    """Every cell: its name, what it depends on, and what makes it."""
    asynchronous = Request(staleness=2, groups_seconds=8.0, learn_seconds=10.0, first=4, steps=steps)
    on_policy = Request(staleness=0, groups_seconds=5.0, learn_seconds=5.0, first=2, steps=steps)
    made: list[Job] = []
    for name, request in (("asynchronous", asynchronous), ("on-policy", on_policy)):
        config = {**msgspec.to_builtins(request), "toml": (ROOT / TOML).read_text()}
        code = (*CODE, "benchmarks/paced_learner.py", *OUR_CODE)
        made.append((name, config, code, partial(run, request)))
    for name, more in ALONE:
        made.append((name, {"part": name, **more}, (*CODE, *OUR_CODE), partial(alone, {"part": name, **more})))
    return made


def alone(request: Result) -> Result:
    """A part, in a process of its own."""
    found: Result = own_process.run(
        request["part"], "benchmarks.overhead_alone", request, lambda source, target: [source, target]
    )
    return found


def seconds(values: Sequence[float]) -> str:
    """Median and range, milliseconds."""
    low, middle, high = (1000.0 * float(value) for value in (min(values), np.median(values), max(values)))
    return f"{middle:.0f} ms ({low:.0f}–{high:.0f})"


def path_table(found: Mapping[str, Result]) -> str:
    """The critical path of both ways."""
    rows = []
    if "asynchronous" in found:
        told = found["asynchronous"]["to_the_learner"]
        rows.append(
            ["asynchronous", "a step's end → the next groups in the learner's hands", seconds(told), share(told)]
        )
    if "on-policy" in found:
        one = found["on-policy"]
        parts = (
            ("to_the_actor", "a step's end → the actor's first request under its weights"),
            ("last_group", "the last group → all groups in the learner's hands"),
        )
        rows += [["on-policy", text, seconds(one[name]), share(one[name])] for name, text in parts]
        both = [sum(pair) for pair in zip(*(one[name] for name, _ in parts), strict=False)]
        rows.append(["on-policy", "together", seconds(both), share(both)])
    return table(["", "critical path", "a step", f"of {STEP_SECONDS:g} s (≤ {SHARE_GOAL:.0%})"], rows)


def share(values: Sequence[float]) -> str:
    """The median's share of a step of ten seconds."""
    return f"{float(np.median(values)) / STEP_SECONDS:.2%}"


def processor_table(found: Mapping[str, Result]) -> str:
    """Processor time by station, for a step of ten seconds."""
    rows = []
    for name in ("asynchronous", "on-policy"):
        if name not in found:
            continue
        used = {part: found[name]["processor"].get(part, 0.0) for part in PARTS}
        scale = STEP_SECONDS / found[name]["step_seconds"]
        total = scale * sum(used.values())
        cells = [f"{1000.0 * scale * used[part]:.0f}" for part in PARTS]
        rows.append([name, *cells, f"{1000.0 * total:.0f}", f"{total / STEP_SECONDS:.2%}"])
    header = ["processor time, ms a step", *PARTS, "all", f"of one core in {STEP_SECONDS:g} s"]
    return table(header, rows)


def alone_table(found: Mapping[str, Result]) -> str:
    """Each part beside its goal."""
    rows = []
    for name, what, goal in (
        ("state_machine", "state machine, one core", f"≥ {RATE_GOAL:,} reports/s"),
        ("journaled", "the same with its journal", "–"),
    ):
        if one := found.get(name):
            rows.append([what, goal, f"{one['reports'] / one['seconds']:,.0f} reports/s"])
    if one := found.get("decoding"):
        size = one["bytes"]
        for what, goal in (("decode", f"≥ {BYTES_GOAL / 1e9:g} GB/s"), ("encode", "–")):
            shown = f"{size / float(np.median(one[what])) / 1e9:.1f} GB/s"
            copied = "" if what == "encode" else ", without a copy" if one["shared"] else ", COPIED"
            rows.append([f"{what} of a group, {size:,} bytes", goal, shown + copied])
    if one := found.get("prompts"):
        shown = f"{one['bytes'] / 1e6:.0f} MB, made in {one['seconds']:.1f} s"
        rows.append([f"state of {one['prompts']:,} prompts", f"≤ {MEMORY_GOAL / 1e6:g} MB", shown])
    return table(["alone", "goal", "measured"], rows)


def tables(found: Mapping[str, Result], outdated: int = 0) -> str:
    """All tables of what there is; they say how many of the cells other code than today's made."""
    text = ["# What the control plane costs\n", f"{machine()}.\n"]
    if outdated:
        text += [f"Of {len(found)} cells {outdated} are of code before today's: `make bench-overhead` renews them.\n"]
    text += [f"{made(found)}\n" for made in (path_table, processor_table, alone_table)]
    return "\n".join(text)


def main(given: Sequence[str] | None = None) -> int:
    """Measures what is missing, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", help="these cells alone; tables: none")
    parser.add_argument("--quick", action="store_true", help="shorter runs, printed and not kept")
    chosen = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    todo = jobs(4 if chosen.quick else 12)
    found: dict[str, Result] = {}
    failures = 0
    for name, config, code, compute in todo:
        if chosen.part and name not in chosen.part:
            continue
        log.info("%s", name)
        try:
            found[name] = compute() if chosen.quick else cell(NAME, name, config, code, compute)
        except RuntimeError as error:
            failures += 1
            log.error("%s: %s", name, error)
    if chosen.quick:
        print(tables(found))
        return 1 if failures else 0
    outdated = 0
    for name, config, code, _ in todo:
        path = place(NAME, name, config, code)
        file = path if path.is_file() else older(path, config)
        if file is not None:
            found[name] = result_in(file)
            outdated += file != path
    (RESULTS / NAME).mkdir(parents=True, exist_ok=True)
    text = tables(found, outdated)
    (RESULTS / NAME / "table.md").write_text(text)
    page.put(NAME, text.partition("\n\n")[2])  # without its title
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
