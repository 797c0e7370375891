"""What an update of weights costs on one machine, in copies of its bytes.

`python -m benchmarks.weights` writes `benchmarks/results/weights/table.md`; `--quick` prints a small version and writes
nothing. The goal: from the learner's parameters to memory that the actor can read in at most three times one copy of
the bytes, checksums and the engine's reload apart.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from benchmarks import own_process, weights_reload
from benchmarks.cells import RESULTS, cell, machine, table
from benchmarks.weights_run import Request

NAME = "weights"
CODE = (
    "actors/flat_buffer.py",
    "benchmarks/weights_run.py",
    "learner/segment.py",
    "learner/shared_memory.py",
    "learner/weights.py",
    "protocol/buckets.py",
)
# A decoder of 0.49 B parameters: 0.92 GiB in bfloat16.
SIZES = {"layers": 24, "hidden": 896, "intermediate": 4864, "key_value": 128, "vocabulary": 151_936}
QUICK_SIZES = SIZES | {"layers": 4, "vocabulary": 20_000}
FIRST_USES = 2  # rounds in which a file is written for the first time
ROUNDS = {"reused": 12, "fresh": 7}
QUICK_ROUNDS = 5
CASES = (("fresh", 1), ("reused", 1), ("reused", 2))
GOAL = 3.0
RELOAD_CODE = (*CODE, "actors/engine.py", "actors/weight_plugin.py", "benchmarks/weights_reload.py")
# Half of the layers and a smaller vocabulary: the engine needs room beside the learner.
RELOADED = weights_reload.Request(layers=12, hidden=896, intermediate=4864, vocabulary=40_000, rounds=7)


def run(request: Request) -> dict[str, Any]:
    """The rounds of one case, in a process of its own."""
    name = f"{request.variant} files, {request.threads} threads"
    found: dict[str, Any] = own_process.run(
        name, "benchmarks.weights_run", msgspec.to_builtins(request), lambda source, target: [source, target]
    )
    return found


def reload(request: weights_reload.Request) -> dict[str, Any]:
    """The engine's part, in a process of its own."""
    found: dict[str, Any] = own_process.run(
        "the engine's reload",
        "benchmarks.weights_reload",
        msgspec.to_builtins(request),
        lambda source, target: [source, target],
    )
    return found


def reloaded(result: dict[str, Any]) -> str:
    """What a load takes besides the checksums: the reload itself, and the probe."""
    found: dict[str, list[float]] = {"reload": [], "probe": []}
    for one in result["rounds"]:
        copy = one["memcpy"]["cpu"]
        found["reload"].append((one["loaded"]["cpu"] - one["checked"]["cpu"] - one["scored"]["cpu"]) / copy)
        found["probe"].append(one["scored"]["cpu"] / copy)
    low, middle, high = np.percentile(found["reload"], [25, 50, 75])
    return (
        f"vLLM's own reload of {result['bytes'] / (1 << 30):.2f} GiB takes {middle:.1f} ({low:.1f}–{high:.1f}) copies "
        f"of these bytes, and its probe {np.median(found['probe']):.0f}, on a CPU, processor time.\n"
    )


def ratios(result: dict[str, Any], clock: str, part: Callable[[dict[str, Any], str], float], first: bool) -> str:
    """The median over the rounds of a part's time by that of the copy beside it, and the quartiles."""
    rounds = result["rounds"][:FIRST_USES] if first else result["rounds"][FIRST_USES:]
    found = [part(one, clock) / one["memcpy"][clock] for one in rounds]
    low, middle, high = np.percentile(found, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def update(one: dict[str, Any], clock: str) -> float:
    """From parameters to readable: publishing without its checksums, opening, and touching every page once."""
    if clock == "wall" and "phases" in one:
        written = float(one["phases"]["room"] + one["phases"]["copy"])
    else:
        written = one["published"][clock] - one["own_check"][clock]
    return float(written + one["opened"][clock] + one["touched"][clock])


def own_check(one: dict[str, Any], clock: str) -> float:
    """The learner's checksums."""
    return float(one["own_check"][clock])


def actor_check(one: dict[str, Any], clock: str) -> float:
    """The actor's."""
    return float(one["checked"][clock])


def text(results: Sequence[tuple[str, int, dict[str, Any]]]) -> str:
    """All cases as one table."""
    rows = [
        [
            f"{variant}, {threads} thread{'s' * (threads > 1)}",
            ratios(result, "cpu", update, False),
            ratios(result, "wall", update, False),
            ratios(result, "cpu", update, True),
            ratios(result, "cpu", own_check, False),
            ratios(result, "cpu", actor_check, False),
            f"{result['shared_bytes'] / result['bytes']:.2f}",
            f"{result['grown_bytes'] / result['bytes']:.3f}",
        ]
        for variant, threads, result in results
    ]
    header = [
        "files",
        "update, processor",
        "update, wall",
        "first uses, processor",
        "learner's checksums",
        "actor's checksums",
        "shared memory, versions",
        "learner's own memory, versions",
    ]
    size = results[0][2]["bytes"]
    return "\n".join(
        [
            f"# Publishing {size / (1 << 30):.2f} GiB of weights\n",
            "In units of one copy of the same bytes by one thread, made in turn with each update: medians, quartiles. "
            f"The goal is {GOAL:g}. {machine()}.\n",
            table(header, rows),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.weights", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version; prints, writes nothing")
    if parser.parse_args(arguments).quick:
        small = [Request(variant=v, threads=n, rounds=QUICK_ROUNDS, **QUICK_SIZES) for v, n in CASES]
        print(text([(request.variant, request.threads, run(request)) for request in small]))
        return
    results = []
    for variant, threads in CASES:
        request = Request(variant=variant, threads=threads, rounds=ROUNDS[variant], **SIZES)
        config: dict[str, Any] = msgspec.to_builtins(request)
        results.append((variant, threads, cell(NAME, f"{variant}-{threads}", config, CODE, partial(run, request))))
    config = msgspec.to_builtins(RELOADED)
    engine = cell(NAME, "reload", config, RELOAD_CODE, partial(reload, RELOADED))
    written = f"{text(results)}\n{reloaded(engine)}"
    (RESULTS / NAME / "table.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
