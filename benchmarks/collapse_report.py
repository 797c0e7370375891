"""From the cells of `benchmarks/collapse.py` to its tables and plots."""

from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.cells import RESULTS, ROOT, table
from benchmarks.collapse_rows import PAIRED, SAMPLES, Row, Task, rows, tracking_rows, tuning_rows

Float64 = NDArray[np.float64]
Results = Mapping["Cell", dict[str, Any]]

MARGIN = 0.02  # of pass@k: "not worse": the interval stays above its negative; fixed beforehand
TRANSIENT = 0.4  # share of the steps before tracking counts
LAST = 0.2  # share of the steps that make the reward at the end
BLOCK = 10  # steps: batch noise is no tracking error
DRAWS = 4000
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)  # marked on axes of H̃/H*
INTERVAL = (2.5, 97.5)  # percentiles


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


def ratios(task: Task, result: dict[str, Any]) -> Float64:
    """`[steps]` H̃/H*: of a law without a target, over the one that the flagship holds on this task."""
    usual = task.anchor * (result["initial_entropy"] or task.initial_entropy)
    targets = result.get("target") or [None] * len(result["entropy"])
    return np.array([h / (target or usual) for h, target in zip(result["entropy"], targets, strict=True)])


def tracking(ratios: Float64) -> float:
    """Mean over blocks of steps after the transient of `|mean(H̃/H*) − 1|`."""
    kept = ratios[int(TRANSIENT * len(ratios)) :]
    blocks = kept[: len(kept) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)
    return float(np.abs(blocks - 1.0).mean())


def held(ratios: Float64) -> float:
    """Mean H̃/H* after the transient."""
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


def methods_table(task: Task, results: Results) -> str:
    """Every row of a task."""
    header = ("method", "seeds", "reward", "pass@1", "pass@8", "harder pass@1", "harder pass@8", "H̃/H*", "error")
    lines: list[Sequence[str]] = []
    for row in rows(task):
        found = [result for one, result in results.items() if one.task.name == task.name and one.row.name == row.name]
        if not found:
            continue
        columns = [np.array([final_reward(one) for one in found])]
        columns += [
            np.stack([scores(one, levels, k) for one in found])
            for levels in (task.trained, (task.harder,))
            for k in (1, 8)
        ]
        columns.append(np.array([held(ratios(task, one)) for one in found]))
        columns.append(np.array([tracking(ratios(task, one)) for one in found]))
        lines.append((row.title, str(len(found)), *(_shown(column) for column in columns)))
    return table(header, lines)


def differences_table(task: Task, results: Results) -> str:
    """The flagship minus every other row, on the seeds both have."""
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
        lines.append((row.title, str(len(seeds)), *shown, _verdict(gaps[:2])))
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


def write_tables(tasks: Sequence[Task], results: Results) -> None:
    """`table.md` beside the cells, and a picture for each task in docs/."""
    parts: list[str] = []
    for task in tasks:
        count = sum(one.task.name == task.name for one in results)
        if not count:
            continue
        parts += [f"### {task.name}: {task.steps} steps, {count} runs", "", methods_table(task, results), ""]
        parts += [differences_table(task, results), "", tuning_table(task, results), ""]
        parts += [tracking_table(task, results), ""]
        draw(task, results, ROOT / "docs" / f"collapse-{task.name}.png")
    path = RESULTS / "collapse" / "table.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))


def tuning_table(task: Task, results: Results) -> str:
    """What each method was chosen by, on the tuning seed: the mean of pass@1 and pass@8 on the trained levels."""
    lines: list[Sequence[str]] = []
    for row in tuning_rows(task):
        for one, result in results.items():
            if one.task.name == task.name and one.row.name == row.name:
                once, eight = (scores(result, task.trained, k).mean() for k in (1, 8))
                lines.append((row.title, f"{once:.3f}", f"{eight:.3f}", f"{(once + eight) / 2:.3f}"))
    return table(("tried", "pass@1", "pass@8", "mean"), lines) if lines else ""


def tracking_table(task: Task, results: Results) -> str:
    """How far from its target each law held the entropy, by delay; `[seeds]` means."""
    lines: list[Sequence[str]] = []
    for row in tracking_rows(task):
        found = [result for one, result in results.items() if one.task.name == task.name and one.row.name == row.name]
        if found:
            errors = np.array([tracking(ratios(task, one)) for one in found])
            held_at = np.array([held(ratios(task, one)) for one in found])
            lines.append((row.title, str(row.lag), str(len(found)), _shown(errors), _shown(held_at)))
    return table(("law", "lag", "seeds", "error", "H̃/H*"), lines) if lines else ""


def draw(task: Task, results: Results, path: Path) -> None:
    """Entropy, reward and the frontier of the two."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, (entropy, reward, frontier) = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for index, row in enumerate(rows(task)):
        found = [result for one, result in results.items() if one.task.name == task.name and one.row.name == row.name]
        if not found:
            continue
        colour = f"C{index % 10}"
        bold = row.name in PAIRED
        style: dict[str, Any] = {"color": colour, "lw": 2.0 if bold else 0.9, "label": row.title}
        ratio = np.mean([ratios(task, one) for one in found], axis=0)
        entropy.plot(_smooth(ratio), **style)
        reward.plot(_smooth(np.mean([one["reward"] for one in found], axis=0)), **style)
        for one in found:
            frontier.plot(
                held(ratios(task, one)), scores(one, task.trained, 1).mean(), "o" if bold else ".", color=colour
            )
    entropy.axhline(1.0, color="black", lw=0.8, ls=":")
    entropy.set(xlabel="optimizer step", ylabel="H̃ / H*", title=f"{task.name}: entropy over the flagship's target")
    entropy.set_yscale("log")
    reward.set(xlabel="optimizer step", ylabel="reward", title="reward of the batches")
    frontier.set(xlabel="H̃ / H* held after the transient", ylabel="pass@1, trained levels", title="one point a run")
    frontier.set_xscale("log")
    for axis in (entropy.yaxis, frontier.xaxis):
        axis.set_major_locator(FixedLocator(RATIOS))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    figure.legend(*entropy.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _smooth(curve: Float64) -> Float64:
    window = min(BLOCK, len(curve))
    smoothed: Float64 = np.convolve(curve, np.full(window, 1.0 / window), mode="valid")
    return smoothed
