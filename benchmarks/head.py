"""What entropy costs in the head: time against the products alone, and memory against all logits at once.

`python -m benchmarks.head` writes `results/head/table.md`. Times are ratios of ways that take turns in one process, the
median over rounds with their quartiles; memory is the process's high-water mark beyond the inputs, a process a way.
"""

import os
from typing import Any

import numpy as np

from benchmarks import own_process
from benchmarks.cells import RESULTS, cell, table
from benchmarks.head_ways import CHUNK_TOKENS, DROP_FRACTION, WAYS

NAME = "head"
CODE = (
    "benchmarks/gpu_head.py",
    "benchmarks/head_run.py",
    "benchmarks/head_ways.py",
    "learner/head.py",
    "learner/rows.py",
    "learner/rows_torch.py",
)
WIDTH, VOCABULARY = 1024, 151_936
# tokens, precision, rounds
SIZES = ((512, "float32", 7), (2048, "float32", 3), (512, "bfloat16", 3), (2048, "bfloat16", 2))
SELECTED, SELECTIONS = 64, 9  # rows of logits that are cut, and rounds
PEAKS = 3  # processes whose median peak counts: an allocator keeps now more, now less
QUARTILES = (25, 50, 75)
# Of each comparison: the way, what it is held against, and the most that it may take: of time, and of memory.
GOALS = (
    ("inside, clamped", "inside, log-prob only", 1.25, 1.1),
    ("plain, clamped", "plain, log-prob only", 1.25, 1.1),
    ("inside, clamped", "unfused", 0.95, 0.15),
    ("inside, clamped", "three products", 1.3, None),
    ("plain, clamped", "three products", 1.6, None),
)
LONG = 2048  # tokens from which on the goal for memory against all logits holds


def measured(what: str, ways: list[str], tokens: int, dtype: str, repeats: int, turn: int = 0) -> Any:
    """A cell: seconds of ways in turn, or one way's peak of memory, the first time or another."""
    config = {"what": what, "ways": ways, "tokens": tokens, "dtype": dtype, "repeats": repeats, "width": WIDTH}
    config |= {"vocabulary": VOCABULARY, "threads": len(os.sched_getaffinity(0))}
    name = f"{what}-{tokens}-{dtype}" + (f"-{ways[0].replace(', ', '-').replace(' ', '_')}" if what == "peak" else "")
    config |= {"turn": turn} if turn else {}

    def compute() -> dict[str, Any]:
        print(f"{name} begins", flush=True)
        run = own_process.run(name, "benchmarks.head_run", config, lambda source, told: [source, told])
        return {"found": run}

    return cell(NAME, name, config, CODE, compute)["found"]


def heads() -> str:
    """The head's table."""
    lines = []
    for tokens, dtype, repeats in SIZES:
        seconds = measured("seconds", list(WAYS), tokens, dtype, repeats)
        held = {name for way, against, _, goal in GOALS if goal for name in (way, against)}
        peaks = {
            way: float(np.median([measured("peak", [way], tokens, dtype, 1, turn) for turn in range(PEAKS)]))
            for way in sorted(held)
        }
        for way, against, time_goal, memory_goal in GOALS:
            memory = "–"
            if memory_goal:
                applies = against != "unfused" or tokens >= LONG
                memory = f"{peaks[way] / peaks[against]:.2f}" + (f" (≤ {memory_goal:g})" if applies else "")
            shown = f"{ratio(seconds[way], seconds[against])} (≤ {time_goal:g})"
            lines.append((f"{tokens}, {dtype}", way, against, shown, memory))
    return table(("tokens", "way", "against", "time, median and quartiles", "memory"), lines)


def selections() -> str:
    """What finding the dropped tokens takes, each of torch's ways over ours."""
    seconds = measured("selection", ["ours"], SELECTED, "float32", SELECTIONS)
    lines = [(name, ratio(taken, seconds["ours"])) for name, taken in seconds.items() if name != "ours"]
    return table(("way", "time over ours, median and quartiles"), lines)


def ratio(ones: list[float], others: list[float]) -> str:
    """Of the same rounds, the median with its quartiles."""
    low, middle, high = np.percentile(np.array(ones) / np.array(others), QUARTILES)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Measures what is missing, and writes the table."""
    threads = len(os.sched_getaffinity(0))
    sizes = f"D = {WIDTH}, V = {VOCABULARY}, chunks of {CHUNK_TOKENS} tokens, {threads} threads"
    title = f"Head, {sizes}; in round brackets the goal."
    cuts = f"Selection of the {1 - DROP_FRACTION:.0%} that are kept, {SELECTED} rows of float32 logits."
    path = RESULTS / NAME / "table.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{title}\n\n{heads()}\n\n{cuts}\n\n{selections()}\n")
    print(f"the table is {path}")


if __name__ == "__main__":
    main()
