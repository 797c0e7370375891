"""From the cells of `benchmarks/beside_trl.py` to its tables: values in, text out."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks.beside_trl_sides import Course
from benchmarks.cells import interval, table

GOAL = 0.25  # of TRL's time
LAST_STEPS = 10  # whose mean is the reward at the end
QUARTILES = (25, 50, 75)
Result = Mapping[str, Any]
SIDES = ("ours", "theirs")


def course(result: Result, side: str) -> Course:
    """A side's run in a cell."""
    return msgspec.convert(result[side], Course)


def ratios(result: Result, left_out: Mapping[str, int]) -> tuple[float, float]:
    """Our seconds per step over TRL's in one round: of the medians, and of the means."""
    ours, theirs = (course(result, side).step_seconds(left_out[side]) for side in SIDES)
    return float(np.median(ours) / np.median(theirs)), float(np.mean(ours) / np.mean(theirs))


def step_table(results: Sequence[Result], left_out: Mapping[str, int]) -> str:
    """Seconds per step of both sides, round by round, and their ratio."""
    rows = []
    for number, result in enumerate(results, start=1):
        courses = [course(result, side) for side in SIDES]
        seconds = [_quartiles(one.step_seconds(left_out[side])) for side, one in zip(SIDES, courses, strict=True)]
        firsts = [f"{one.first_step_seconds:.0f} s" for one in courses]
        rows.append((str(number), *seconds, *(f"{ratio:.2f}" for ratio in ratios(result, left_out)), *firsts))
    header = ("round", "Entrostat, s", "TRL, s", "ratio of medians", "of means", "Entrostat's first step", "TRL's")
    medians, means = zip(*(ratios(result, left_out) for result in results), strict=True)
    return f"{table(header, rows)}\n\nRatio of medians {_range(medians)} (goal ≤ {GOAL:g}), of means {_range(means)}."


def reward_table(results: Mapping[int, Result], samples: int) -> str:
    """Both sides' end policies after equal wall time, seed by seed; the difference is paired by problem."""
    rows, higher, differences = [], 0, []
    for seed, result in sorted(results.items()):
        shares = {side: np.array(result[f"{side}_correct"]) / samples for side in SIDES}
        differences.append(shares["ours"] - shares["theirs"])
        higher += bool(differences[-1].mean() > 0.0)
        for side, name in zip(SIDES, ("Entrostat", "TRL"), strict=True):
            shown = interval_text(interval(differences[-1].tolist())) if side == "ours" else ""
            rows.append(
                (str(seed), name, *_fared(course(result, side)), interval_text(interval(shares[side].tolist())), shown)
            )
    header = ("seed", "", "steps", "time, s", "reward, last steps", "entropy, nats", "pass@1", "difference")
    together = interval_text(interval(np.mean(differences, axis=0).tolist()))
    counted = f"Entrostat's pass@1 is higher in {higher} of {len(results)} seeds"
    return f"{table(header, rows)}\n\n{counted}; difference over all {together}."


def ways_table(results: Mapping[str, Result], left_out: int) -> str:
    """What each way of TRL takes for a step; one that failed says why."""
    rows = []
    for name, result in results.items():
        if "failed" in result:
            rows.append((name, f"fails: `{result['failed']}`"))
        else:
            rows.append((name, _quartiles(course(result, "theirs").step_seconds(left_out))))
    return table(("way", "s per step"), rows)


def interval_text(found: tuple[float, float, float]) -> str:
    """`mean [low, high]`."""
    middle, low, high = found
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _fared(one: Course) -> tuple[str, ...]:
    ends = (np.mean(values[-LAST_STEPS:]) for values in (one.reward, one.entropy_nats))
    return str(len(one.reward)), f"{one.ended_seconds[-1]:.0f}", *(f"{value:.3f}" for value in ends)


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = np.percentile(values, QUARTILES)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _range(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
