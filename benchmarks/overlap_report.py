"""From the cells of `benchmarks/overlap.py` to its tables: values in, text out."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks.beside_trl_sides import Course
from benchmarks.cells import table
from benchmarks.overlap_cells import REWARD_STALENESS, STALENESS, Pace, Steady

GOAL = 1.7  # times the synchronous throughput, at 1:1
LAST_STEPS = 10  # whose mean is the reward at the end
Result = Mapping[str, Any]


def run(turn: Result, staleness: int) -> Steady:
    """A run of a turn."""
    return msgspec.convert(turn[str(staleness)], Steady)


def rate(one: Steady) -> float:
    """Optimizer steps a minute."""
    return 60.0 / float(np.mean(one.step))


def idle(one: Steady) -> float:
    """The share of a step that the learner waits."""
    return sum(one.wait) / sum(one.step)


def balance(turns: Sequence[Result]) -> float:
    """Generation over learning, in the synchronous runs: what the learner waits over what it does."""
    found = [run(turn, 0) for turn in turns]
    return float(sum(sum(one.wait) for one in found) / sum(sum(one.learn) for one in found))


def throughput_table(paces: Sequence[tuple[Pace, Sequence[Result]]]) -> str:
    """Each pace at each staleness, beside the synchronous run of the same turn: medians, and the range of turns."""
    rows = []
    for pace, turns in paces:
        measured = balance(turns)
        for staleness in STALENESS:
            runs = [run(turn, staleness) for turn in turns]
            ratios = [rate(one) / rate(run(turn, 0)) for one, turn in zip(runs, turns, strict=True)]
            rows.append(
                [
                    f"{pace.name} ({measured:.2f})",
                    str(staleness),
                    spread([rate(one) for one in runs], ".1f"),
                    spread([sum(one.tokens) / sum(one.step) for one in runs], ".0f"),
                    spread(ratios, ".2f") if staleness else "1",
                    spread([100.0 * idle(one) for one in runs], ".0f") + " %",
                    f"{np.mean([np.mean(one.age) for one in runs]):.1f}",
                    str(sum(one.stale for one in runs)),
                ]
            )
    header = [
        "generation : learning (measured)",
        "staleness allowed",
        "steps a minute",
        "tokens/s",
        "over staleness 0",
        "learner idle",
        "mean age",
        "leases too late",
    ]
    return table(header, rows)


def reward_table(seeds: Mapping[int, Result]) -> str:
    """Rewards after as many samples, asynchronous and synchronous; a verdict where there are several seeds."""
    rows, ends = [], {staleness: list[float]() for staleness in REWARD_STALENESS}
    for seed, result in sorted(seeds.items()):
        row = [str(seed)]
        for staleness in REWARD_STALENESS:
            course = msgspec.convert(result[str(staleness)], Course)
            ends[staleness].append(float(np.mean(course.reward[-LAST_STEPS:])))
            seconds = float(np.median(course.step_seconds(LAST_STEPS)))
            row += [f"{np.mean(course.reward):.3f}", f"{ends[staleness][-1]:.3f}", f"{seconds:.2f}"]
        rows.append(row)
    header = ["seed"]
    for staleness in REWARD_STALENESS:
        header += [f"staleness {staleness}: mean reward", f"last {LAST_STEPS} steps", "seconds a step"]
    lines = table(header, rows)
    if len(rows) < 2:
        return lines
    late, on_policy = (np.array(ends[staleness]) for staleness in REWARD_STALENESS)
    difference = float(late.mean() - on_policy.mean())
    widest = float(max(np.ptp(late), np.ptp(on_policy)))
    verdict = "not worse beyond it" if difference >= -widest else "worse beyond it"
    return (
        f"{lines}\n\nLast {LAST_STEPS} steps, asynchronous less synchronous: {difference:+.3f}; "
        f"the seeds of one kind spread over {widest:.3f}: {verdict}."
    )


def spread(values: Sequence[float], digits: str) -> str:
    """The median, and the range where there are several."""
    middle = format(float(np.median(values)), digits)
    return middle if len(values) < 2 else f"{middle} ({min(values):{digits}}–{max(values):{digits}})"
