"""The pictures of `benchmarks/collapse.py`: entropy, reward, and the frontier of the two, one picture a task."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.collapse_report import (
    BLOCK,
    FIRST,
    Float64,
    Results,
    held,
    of_frontier,
    of_row,
    relative_entropy,
    scores,
)
from benchmarks.collapse_rows import PAIRED, Task, frontier, rows

RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)  # marked on axes of H̃/H_0
COLOURS = 10  # of matplotlib's cycle; rows beyond them are dashed, their dots crosses
WIDTH, HEIGHT, DOTS = 15.0, 4.6, 90  # inches, inches, per inch


def draw(task: Task, results: Results, path: Path) -> None:
    """Writes the picture."""
    mpl.use("Agg")
    figure, (entropy, reward, against) = plt.subplots(1, 3, figsize=(WIDTH, HEIGHT), layout="constrained")
    for index, row in enumerate(rows(task)):
        found = of_row(task, row, results)
        if not found:
            continue
        bold, again = row.name in PAIRED, index >= COLOURS
        style: dict[str, Any] = {"color": f"C{index % COLOURS}", "ls": "--" if again else "-"}
        for axes, curves in (
            (entropy, [relative_entropy(one) for one in found]),
            (reward, [np.asarray(one["reward"], np.float64) for one in found]),
        ):
            axes.plot(*_smooth(np.mean(curves, axis=0)), lw=2.0 if bold else 0.9, label=row.title, **style)
        for one in found:
            against.plot(*_point(task, one), "x" if again else "o" if bold else ".", color=style["color"], alpha=0.5)
        if row.name == "flagship":
            _mark_target(entropy, found)
    _join(against, task, results)
    entropy.set(xlabel="optimizer step", ylabel="H̃ / H_0", title=f"{task.name}: entropy; dots: the flagship's target")
    entropy.set_yscale("log")
    reward.set(xlabel="optimizer step", ylabel="reward", title="reward of the batches")
    against.set(xlabel="H̃ / H_0 held after the transient", ylabel="pass@1, trained levels", title="one point a run")
    against.set_xscale("log")
    for axis in (entropy.yaxis, against.xaxis):
        axis.set_major_locator(FixedLocator(RATIOS))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    figure.legend(*entropy.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=DOTS)
    plt.close(figure)


def _mark_target(axes: Axes, found: list[dict[str, Any]]) -> None:
    """The flagship's target as it stood in each step, over the same H_0 as the entropies."""
    targets = np.array([np.asarray(one["target"], np.float64) / np.mean(one["entropy"][:FIRST]) for one in found])
    axes.plot(targets.mean(axis=0), color="black", lw=0.8, ls=":")


def _join(axes: Axes, task: Task, results: Results) -> None:
    """A line through each way's means, from little entropy to much."""
    for (way, held_rows), (colour, marker) in zip(
        frontier(task).items(), (("black", "s"), ("grey", "D")), strict=False
    ):
        found = [some for row in held_rows if (some := of_frontier(task, row, results))]
        if found:
            line = np.array([np.mean([_point(task, one) for one in some], axis=0) for some in found])
            axes.plot(*line.T, marker=marker, color=colour, lw=1.2, ms=4.0, label=way)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _point(task: Task, result: dict[str, Any]) -> tuple[float, float]:
    """H̃/H_0 held, and pass@1 on the trained levels."""
    return held(relative_entropy(result)), float(scores(result, task.trained, 1).mean())


def _smooth(curve: Float64) -> tuple[Float64, Float64]:
    """The steps in the middle of each window, and the windows' means."""
    window = min(BLOCK, len(curve))
    means = np.convolve(curve, np.full(window, 1.0 / window), mode="valid")
    return np.arange(len(means), dtype=np.float64) + (window - 1) / 2, np.asarray(means, np.float64)
