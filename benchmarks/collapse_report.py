"""From the cells of `benchmarks/collapse.py` to its tables."""

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.cells import RESULTS, table
from benchmarks.collapse_rows import FRONTIER_SEEDS, SAMPLES, Row, Task, frontier, rows, tracking_rows, tuning_rows

Float64 = NDArray[np.float64]
Results = Mapping["Cell", dict[str, Any]]

MARGIN = 0.02  # of pass@k: "not worse": the interval stays above its negative; fixed beforehand
TRANSIENT = 0.4  # share of the steps before tracking counts
LAST = 0.2  # share of the steps that make the reward at the end
FIRST = 3  # steps that make the H_0 of all rows here
BLOCK = 10  # steps: batch noise is no tracking error
DRAWS = 4000
INTERVAL = (2.5, 97.5)  # percentiles
# Of the methods: what each row was held against, which is no other row's.
ERROR = "error against the law's own target (a band: beyond its edges, over its middle)"
NOTHING = "–"  # of a row without a target, and the verdict on a single seed


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a table."""

    task: Task
    row: Row
    seed: int

    @property
    def name(self) -> str:
        """Its file's."""
        return f"{self.task.name}-{self.row.name}-{self.seed}"


def pass_at_k(correct: Float64, samples: int, k: int) -> Float64:
    """Unbiased: `1 − C(n − c, k) / C(n, k)` per prompt (arXiv 2107.03374)."""
    return np.array([1.0 - comb(samples - int(c), k) / comb(samples, k) for c in correct])


def scores(result: dict[str, Any], levels: Sequence[str], k: int) -> Float64:
    """`[prompts]` pass@k of the levels' prompts."""
    chosen = np.isin(result["levels"], levels)
    return pass_at_k(np.asarray(result["correct"], np.float64)[chosen], SAMPLES, k)


def relative_entropy(result: dict[str, Any]) -> Float64:
    """`[steps]` H̃/H_0, H_0 the mean of the first steps' for every law, however it measures its own."""
    entropy = np.asarray(result["entropy"], np.float64)
    relative: Float64 = entropy / entropy[:FIRST].mean()
    return relative


def own_ratios(row: Row, result: dict[str, Any]) -> Float64 | None:
    """`[steps]` H̃ over what the row's law holds it to in that step, or over its band's middle; None without either.

    A target that falls counts as it falls. NaN before H_0 is known.
    """
    entropy = np.asarray(result["entropy"], np.float64)
    if row.band:
        return entropy / (sum(row.band) / 2.0)
    targets = np.asarray(result.get("target") or [None], np.float64)
    return None if np.isnan(targets).all() else entropy / targets


def half_width(row: Row) -> float:
    """Of what the row's law leaves alone, over its middle: 0 for a target."""
    low, high = row.band or (1.0, 1.0)
    return (high - low) / (high + low)


def tracking(ratios: Float64, half_width: float = 0.0) -> float:
    """Mean over blocks of steps after the transient of `max(0, |mean(H̃/H*) − 1| − half_width)`."""
    kept = ratios[int(TRANSIENT * len(ratios)) :]
    blocks = kept[: len(kept) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)
    return float(np.maximum(np.abs(blocks - 1.0) - half_width, 0.0).mean())


def held(ratios: Float64) -> float:
    """Mean after the transient."""
    return float(ratios[int(TRANSIENT * len(ratios)) :].mean())


def final_reward(result: dict[str, Any]) -> float:
    """Mean over the last steps."""
    return float(np.mean(result["reward"][-int(LAST * len(result["reward"])) :]))


def bootstrapped(values: Float64) -> tuple[float, float, float]:
    """Mean and percentile interval of `[seeds]` or, resampling seeds and then prompts, of `[seeds, prompts]`."""
    draw = np.random.default_rng(0)
    means = np.empty(DRAWS)
    for i in range(DRAWS):
        some = values[draw.integers(len(values), size=len(values))]
        if some.ndim == 2:
            some = some[:, draw.integers(some.shape[1], size=some.shape[1])]
        means[i] = some.mean()
    low, high = np.percentile(means, INTERVAL)
    return float(values.mean()), float(low), float(high)


def of_row(task: Task, row: Row, results: Results) -> list[dict[str, Any]]:
    """The results of a task's row."""
    return [result for one, result in results.items() if (one.task.name, one.row.name) == (task.name, row.name)]


def methods_table(task: Task, results: Results) -> str:
    """Every row of a task."""
    header = ("method", "seeds", "reward", "pass@1", "pass@8", "harder pass@1", "harder pass@8", "H̃/H_0", ERROR)
    lines: list[Sequence[str]] = []
    for row in rows(task):
        found = of_row(task, row, results)
        if not found:
            continue
        columns = [np.array([final_reward(one) for one in found])]
        columns += [
            np.stack([scores(one, levels, k) for one in found])
            for levels in (task.trained, (task.harder,))
            for k in (1, 8)
        ]
        columns.append(np.array([held(relative_entropy(one)) for one in found]))
        lines.append((row.title, str(len(found)), *(_shown(column) for column in columns), _error(row, found)))
    return table(header, lines)


def _error(row: Row, found: Sequence[dict[str, Any]]) -> str:
    """The tracking error of a row whose law has something to track."""
    ratios = [own_ratios(row, one) for one in found]
    errors = [tracking(one, half_width(row)) for one in ratios if one is not None]
    return _shown(np.array(errors)) if errors else NOTHING


def differences_table(task: Task, results: Results) -> str:
    """The flagship minus every other row, on the seeds both have; a single seed's interval is that of its prompts."""
    header = ("flagship minus", "seeds", "pass@1", "pass@8", "harder pass@1", "harder pass@8", "verdict")
    by = {(one.row.name, one.seed): result for one, result in results.items() if one.task.name == task.name}
    lines: list[Sequence[str]] = []
    for row in rows(task):
        seeds = [seed for name, seed in by if name == row.name and ("flagship", seed) in by]
        if row.name == "flagship" or not seeds:
            continue
        gaps = [
            bootstrapped(
                np.stack([scores(by["flagship", s], levels, k) - scores(by[row.name, s], levels, k) for s in seeds])
            )
            for levels in (task.trained, (task.harder,))
            for k in (1, 8)
        ]
        shown = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in gaps]
        lines.append((row.title, str(len(seeds)), *shown, _verdict(gaps[:2]) if len(seeds) > 1 else NOTHING))
    return table(header, lines)


def _verdict(gaps: Sequence[tuple[float, float, float]]) -> str:
    """Of pass@1 and pass@8 on the trained levels together."""
    if all(low > 0.0 for _, low, _ in gaps):
        return "better"
    if all(low > -MARGIN for _, low, _ in gaps):
        return "not worse"
    return "worse" if all(high < 0.0 for _, _, high in gaps) else "mixed"


def _shown(values: Float64) -> str:
    mean, low, high = bootstrapped(values)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if len(values) > 1 else f"{mean:.3f}"


def write_tables(tasks: Sequence[Task], results: Results, outdated: int = 0) -> None:
    """`table.md` beside the cells, which says how many of them other code than today's made."""
    parts: list[str] = []
    if outdated:
        parts += [
            f"Of {len(results)} runs {outdated} are of code before today's: `make bench-collapse` makes them anew.",
            "",
        ]
    for task in tasks:
        count = sum(one.task.name == task.name for one in results)
        if not count:
            continue
        parts += [f"### {task.name}: {task.steps} steps, {count} runs", "", methods_table(task, results), ""]
        for made in (differences_table, frontier_table, tuning_table, tracking_table):
            parts += [made(task, results), ""]
    path = RESULTS / "collapse" / "table.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))


def frontier_table(task: Task, results: Results) -> str:
    """What came of the entropy held, each way from little to much."""
    header = ("held by", "seeds", "H̃/H_0 held", "pass@1", "pass@8", "reward")
    lines: list[Sequence[str]] = []
    for row in (row for way in frontier(task).values() for row in way):
        found = of_frontier(task, row, results)
        if found:
            columns = [np.array([held(relative_entropy(one)) for one in found])]
            columns += [np.stack([scores(one, task.trained, k) for one in found]) for k in (1, 8)]
            columns.append(np.array([final_reward(one) for one in found]))
            lines.append((row.title, str(len(found)), *map(_shown, columns)))
    return table(header, lines) if lines else ""


def of_frontier(task: Task, row: Row, results: Results) -> list[dict[str, Any]]:
    """The results of a row of the frontier, on the seeds that all of them have."""
    return of_row(task, row, {one: result for one, result in results.items() if one.seed in FRONTIER_SEEDS})


def tuning_table(task: Task, results: Results) -> str:
    """What each method was chosen by, on the tuning seed: the mean of pass@1 and pass@8 on the trained levels."""
    lines: list[Sequence[str]] = []
    for row in tuning_rows(task):
        for result in of_row(task, row, results):
            once, eight = (scores(result, task.trained, k).mean() for k in (1, 8))
            lines.append((row.title, f"{once:.3f}", f"{eight:.3f}", f"{(once + eight) / 2:.3f}"))
    return table(("tried", "pass@1", "pass@8", "mean"), lines) if lines else ""


def tracking_table(task: Task, results: Results) -> str:
    """How far from its target each law held the entropy, by delay; `[seeds]` means."""
    lines: list[Sequence[str]] = []
    for row in tracking_rows(task):
        found = [ratios for one in of_row(task, row, results) if (ratios := own_ratios(row, one)) is not None]
        if found:
            errors, means = np.array([tracking(one) for one in found]), np.array([held(one) for one in found])
            lines.append((row.title, str(row.lag), str(len(found)), _shown(errors), _shown(means)))
    return table(("law", "lag", "seeds", "error", "H̃/H*"), lines) if lines else ""
