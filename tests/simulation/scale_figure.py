"""How time and memory grow with actors and with prompts: docs/scale.json and docs/scale.png.

`python -m tests.simulation.scale_figure`: each size in a process of its own, because a peak of memory never falls.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

SECONDS = 1800.0  # for one size
ACTORS = (1, 10, 100, 1000)
PROMPTS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
LARGE_STEPS = 10_000
SMALL_STEPS = 300
PLAIN_ACTORS, PLAIN_PROMPTS = 100, 100_000
MEMORY_BUDGET_MB = 400.0
DOCS = Path(__file__).resolve().parents[2] / "docs"

Row = dict[str, Any]  # a `Measured`, as JSON


def measured(actors: int, prompts: int, steps: int) -> Row:
    """One size."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measured.json"
        sizes = ["--actors", str(actors), "--prompts", str(prompts), "--steps", str(steps), "--to", str(file)]
        command = [sys.executable, "-m", "tests.simulation.scale", *sizes]
        subprocess.run(command, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
        row: Row = json.loads(file.read_text(encoding="utf-8"))
    print(f"{actors:>5} actors, {prompts:>10,} prompts, {steps:>6,} steps: {row['wall_seconds']:.1f} s", flush=True)
    return row


def draw(rows: dict[str, list[Row]], file: Path) -> None:
    """Three panels: an event's time by actors, by prompts, and memory by prompts."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    for axis, by, label in ((axes[0], "actors", "rollout actors"), (axes[1], "prompts", "prompts")):
        found = rows[by]
        cost = [1e6 * row["controller_seconds"] / row["events"] for row in found]
        axis.plot([row[by] for row in found], cost, "o-")
        axis.set(xscale="log", xlabel=label, ylabel="controller, µs per event", ylim=(0, None))
    found = rows["prompts"]
    for kind, label in (("held_mb", "at the end"), ("peak_mb", "peak, at the start")):
        axes[2].plot([row["prompts"] for row in found], [max(row[kind], 1.0) for row in found], "o-", label=label)
    axes[2].legend(loc="center left")
    axes[2].axhline(MEMORY_BUDGET_MB, linestyle="--", color="grey")
    axes[2].text(1e3, MEMORY_BUDGET_MB * 1.1, "budget at 10 million prompts")
    axes[2].set(xscale="log", yscale="log", xlabel="prompts", ylabel="memory, MB")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> int:
    """Measures all sizes, writes table and picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.scale_figure", description=__doc__)
    parser.add_argument("--folder", type=Path, default=DOCS)
    parser.add_argument("--only-draw", action="store_true", help="the picture, from the table that is there")
    options = parser.parse_args()
    table = options.folder / "scale.json"
    if not options.only_draw:
        rows = {
            "actors": [measured(actors, PLAIN_PROMPTS, SMALL_STEPS) for actors in ACTORS],
            "prompts": [measured(PLAIN_ACTORS, prompts, SMALL_STEPS) for prompts in PROMPTS],
            "large": [measured(max(ACTORS), PLAIN_PROMPTS, LARGE_STEPS)],
        }
        table.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(json.loads(table.read_text(encoding="utf-8")), options.folder / "scale.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
