"""The step response's figure: how each law's entropy settles, one panel a lag."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.closed_loop import drive
from benchmarks.contenders import ANCHOR, CONTENDERS, Setting
from benchmarks.plant import Plant

LAGS = (0, 2, 4, 8)
ORDERS = 300
SEED = 7  # whose first orders measure H_0 well, so that all laws aim at the same
WIDTH, HEIGHT, DOTS = 12.0, 7.6, 100  # inches, inches, per inch: 1200 pixels wide
# Okabe and Ito's colours, told apart by eyes of every kind; the dashes help where lines cross.
LOOKS = {
    "bang_bang": ("#D55E00", (0, (5, 1.5))),
    "band": ("#0072B2", (0, (1, 1.2))),
    "anchored": ("#CC79A7", (0, (4, 1.2, 1, 1.2))),
    "pi": ("#009E73", (0, (7, 2, 1, 2))),
    "thermostat": ("#000000", "solid"),
}


def draw(path: Path, plant: Plant, best: dict[str, list[str]]) -> None:
    """Writes the figure; `best` names each law's variant at each lag from 0 on."""
    mpl.use("Agg")
    with plt.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, 2, figsize=(WIDTH, HEIGHT), sharex=True, sharey=True, layout="constrained")
        for axis, lag in zip(axes.flat, LAGS, strict=True):
            setting = Setting(plant, lag)
            axis.axhspan(0.9, 1.1, color="#E8E8E8", zorder=0)
            axis.axhline(1.0, color="#888888", linewidth=1.0, zorder=1)
            for law, (colour, dashes) in LOOKS.items():
                make = CONTENDERS[law][best[law][lag]]
                course = drive(make(setting), plant, lag=lag, orders=ORDERS, seed=SEED, target=setting.target)
                width = 2.4 if law == "thermostat" else 1.6
                axis.plot(np.exp(course.errors), color=colour, linestyle=dashes, linewidth=width, label=law)
            axis.set_title(f"lag {lag} orders", fontsize=12, loc="left")
            axis.set_ylim(0.4, 2.0)
            axis.set_xlim(0, ORDERS)
        for axis in axes[:, 0]:
            axis.set_ylabel("true entropy / target (ratio)")
        for axis in axes[1]:
            axis.set_xlabel("optimizer step (orders)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        title = (
            f"Simulated policy, batch noise {plant.noise:.0%}, target {ANCHOR:g} · H₀, one seed. "
            "Published laws: best of three rates. Grey: ±10 %"
        )
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.suptitle(title, fontsize=12)
        figure.savefig(path, dpi=DOTS)
        plt.close(figure)
