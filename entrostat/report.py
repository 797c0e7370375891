"""`report/`: a run's curves as PNG files and one self-contained page."""

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from entrostat.directory import write_atomically
from entrostat.protocol.errors import BadInput
from entrostat.protocol.messages import PhaseSeconds, Waits
from entrostat.report_scores import draw_interval, draw_scores, score_table
from entrostat.rows import EvaluationRow, MetricsRow, read_evaluations, read_metrics
from entrostat.screen import duration
from entrostat.summary import Summary, sentences

matplotlib.use("Agg")

SMOOTH_STEPS = 10
COLOURS = {"reward": "#2a6f97", "full": "#9a9a9a", "clamped": "#c1121f", "target": "#1b4332", "coefficient": "#6a4c93"}
PHASES = PhaseSeconds.__struct_fields__
WAITS = Waits.__struct_fields__


def write_report(directory: Path) -> Path:
    """Draws every plot of a run and the page that shows them.

    Args:
        directory: a run's, with a `metrics.jsonl` of at least one line.

    Returns:
        The page's path.
    """
    rows = read_metrics(directory / "metrics.jsonl")
    evaluations = read_evaluations(directory / "evaluations.jsonl")
    folder = directory / "report"
    folder.mkdir(exist_ok=True)
    plots = {
        "overview": ("The run at a glance", overview(rows, evaluations)),
        "reward": ("Reward: mean of each step's samples, and evaluations", _single(draw_reward, rows, evaluations)),
        **(
            {"scores": ("Evaluations: pass@k and maj@k with 95 % intervals", _single(draw_scores, evaluations))}
            if evaluations
            else {}
        ),
        "entropy": ("Entropy per response token, full and clamped", _single(draw_entropy, rows)),
        "levels": ("H̃ per response token, level by level", _single(draw_levels, rows)),
        "coefficient": ("Coefficient of the entropy bonus", _single(draw_coefficient, rows)),
        "difficulty": ("Prompts by expected pass rate", _single(draw_difficulty, rows)),
        "time": ("Where each step's time went", _single(draw_time, rows)),
        "waiting": ("What the learner waited for, as a share of the time", _single(draw_waiting, rows)),
        "freshness": (
            "Staleness of the groups, and drift between sampling and learning",
            _single(draw_freshness, rows),
        ),
    }
    for name, (_, figure) in plots.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    page = folder / "report.html"
    write_atomically(page, _page(directory, folder, {name: title for name, (title, _) in plots.items()}).encode())
    return page


def write_comparison(runs: Sequence[Path], picture: Path) -> None:
    """Draws the reward and the clamped entropy of several runs over one another.

    Args:
        runs: run directories; each is called by its folder's name.
        picture: a PNG file.

    Raises:
        BadInput: the picture's name does not end in .png.
    """
    if picture.suffix.lower() != ".png":
        raise BadInput(f"--picture is {picture}; expected a file name that ends in .png")
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        rows = read_metrics(run / "metrics.jsonl")
        steps, colour = _column(rows, "step"), f"C{number}"
        for axes, field in ((left, "reward"), (right, "clamped_entropy_nats")):
            values = _column(rows, field)
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axes.plot(steps, smooth(values), color=colour, linewidth=2, label=run.name)
        target = _column(rows, "target_nats")
        if np.isfinite(target).any():
            right.plot(steps, target, color=colour, linestyle="--", linewidth=1, label=f"{run.name}: target")
    _finish(left, "reward", low=0.0)
    _finish(right, "H̃, nats per token", low=0.0)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def overview(rows: list[MetricsRow], evaluations: list[EvaluationRow]) -> Figure:
    """The four curves a run is judged by."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
    draw_reward(top_left, rows, evaluations)
    draw_entropy(top_right, rows)
    draw_coefficient(bottom_left, rows)
    draw_difficulty(bottom_right, rows)
    return figure


def draw_reward(axes: Axes, rows: list[MetricsRow], evaluations: list[EvaluationRow]) -> None:
    """Reward by step, raw and smoothed, with the evaluations' pass@k."""
    steps, rewards = _column(rows, "step"), _column(rows, "reward")
    axes.plot(steps, rewards, color=COLOURS["reward"], alpha=0.3, linewidth=1)
    axes.plot(steps, smooth(rewards), color=COLOURS["reward"], linewidth=2, label="reward (10-step mean)")
    if evaluations:
        where = [row.step for row in evaluations]
        axes.plot(where, [row.pass_at_1 for row in evaluations], "o--", color="#e09f3e", label="pass@1, unseen prompts")
        draw_interval(axes, evaluations, "#e09f3e", lambda scores: scores.pass_at.get(1))
        if all(row.pass_at_8 is not None for row in evaluations):
            axes.plot(
                where, [row.pass_at_8 or 0.0 for row in evaluations], "s--", color="#540b0e", label="pass@8, the same"
            )
    _finish(axes, "reward", low=0.0)


def draw_entropy(axes: Axes, rows: list[MetricsRow]) -> None:
    """Both entropies with the target or band the law holds them at."""
    steps = _column(rows, "step")
    for name, field, label in (("full", "entropy_nats", "H"), ("clamped", "clamped_entropy_nats", "H̃, clamped")):
        values = _column(rows, field)
        axes.plot(steps, values, color=COLOURS[name], alpha=0.3, linewidth=1)
        axes.plot(steps, smooth(values), color=COLOURS[name], linewidth=2, label=label)
    target = _column(rows, "target_nats")
    if np.isfinite(target).any():
        axes.plot(steps, target, color=COLOURS["target"], linestyle="--", label="target")
    low, high = _column(rows, "low_nats"), _column(rows, "high_nats")
    if np.isfinite(low).any():
        axes.fill_between(steps, low, high, color=COLOURS["target"], alpha=0.12, label="band")
    _finish(axes, "nats per token", low=0.0)


def draw_levels(axes: Axes, rows: list[MetricsRow]) -> None:
    """H̃ of each level's responses, smoothed over the steps that had any."""
    for level in dict.fromkeys(level for row in rows for level in row.level_entropy_nats):
        having = [row for row in rows if level in row.level_entropy_nats]
        values = np.array([row.level_entropy_nats[level] for row in having])
        axes.plot([row.step for row in having], smooth(values), linewidth=2, label=level)
    _finish(axes, "nats per token", low=0.0)


def draw_coefficient(axes: Axes, rows: list[MetricsRow]) -> None:
    """The global coefficient by step."""
    axes.plot(_column(rows, "step"), _column(rows, "coefficient"), color=COLOURS["coefficient"], label="coefficient")
    _finish(axes, "nats⁻¹", low=0.0)


def draw_difficulty(axes: Axes, rows: list[MetricsRow]) -> None:
    """How many prompts stand in each tenth of expected pass rate, over time."""
    counts = np.array([row.difficulty for row in rows], dtype=float).T
    if counts.size:
        extent = (rows[0].step - 0.5, rows[-1].step + 0.5, 0.0, 1.0)
        image = axes.imshow(
            counts, aspect="auto", origin="lower", extent=extent, cmap="viridis", interpolation="nearest"
        )
        axes.figure.colorbar(image, ax=axes, label="prompts")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("expected pass rate")


def draw_time(axes: Axes, rows: list[MetricsRow]) -> None:
    """The learner's phases, stacked, under the whole step's time."""
    steps = _column(rows, "step")
    axes.stackplot(
        steps, [_column(rows, f"{phase}_seconds") for phase in PHASES], labels=[p.replace("_", " + ") for p in PHASES]
    )
    axes.plot(steps, _column(rows, "step_seconds"), color="black", linewidth=1, label="step, wall time")
    _finish(axes, "seconds", low=0.0)


def draw_waiting(axes: Axes, rows: list[MetricsRow]) -> None:
    """The learner's waits, stacked by cause, smoothed; an evaluation's time is beside the steps'."""
    causes = [cause for cause in WAITS if any(row.wait_cause_seconds.get(cause) for row in rows)]
    if causes:
        seconds = _column(rows, "step_seconds")
        waited = np.array([[row.wait_cause_seconds.get(cause, 0.0) for row in rows] for cause in causes])
        if "evaluation" in causes:
            seconds = seconds + waited[causes.index("evaluation")]
        together = smooth(seconds)
        axes.stackplot(
            _column(rows, "step"),
            [smooth(waits) / together for waits in waited],
            labels=[cause.replace("_", " ") for cause in causes],
        )
    axes.set_ylim(top=1.0)
    _finish(axes, "share of the time", low=0.0)


def draw_freshness(axes: Axes, rows: list[MetricsRow]) -> None:
    """Age of the groups in versions, and mean |Δ log-prob| on their tokens."""
    steps = _column(rows, "step")
    axes.plot(steps, _column(rows, "staleness_mean"), color=COLOURS["reward"], label="staleness, versions")
    _finish(axes, "versions", low=0.0)
    other = axes.twinx()
    other.plot(steps, _column(rows, "drift_mean_nats"), color=COLOURS["clamped"], linewidth=1)
    other.set_ylabel("mean |log π − log μ|, nats", color=COLOURS["clamped"])


def smooth(values: NDArray[np.float64], window: int = SMOOTH_STEPS) -> NDArray[np.float64]:
    """Trailing mean over `window` steps; over fewer at the start."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def _single(draw: Callable[..., None], *data: object) -> Figure:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    draw(figure.subplots(), *data)
    return figure


def _finish(axes: Axes, label: str, low: float) -> None:
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=low)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _column(rows: list[MetricsRow], name: str) -> NDArray[np.float64]:
    values = [getattr(row, name) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _page(directory: Path, folder: Path, titles: dict[str, str]) -> str:
    path = directory / "summary.json"
    told = (
        sentences(msgspec.json.decode(path.read_bytes(), type=Summary))
        if path.exists()
        else ["The run is not finished."]
    )
    rows = read_metrics(directory / "metrics.jsonl")
    seconds = sum(row.step_seconds for row in rows)
    effective = directory / "config.toml"
    config = effective.read_text(encoding="utf-8") if effective.exists() else ""
    figures = "\n".join(
        f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,'
        f'{base64.b64encode((folder / f"{name}.png").read_bytes()).decode()}">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for name, title in titles.items()
    )
    return PAGE.format(
        name=html.escape(directory.name),
        told=html.escape("\n".join(told)),
        steps=len(rows),
        seconds=duration(seconds),
        figures=figures,
        scores=score_table(read_evaluations(directory / "evaluations.jsonl")),
        config=html.escape(config),
    )


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Entrostat: {name}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
figure {{ margin: 2rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #666; font-size: 0.9rem; }}
table {{ border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }}
th, td {{ padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }} td small {{ color: #666; }}
pre {{ background: #f5f5f4; padding: 1rem; overflow-x: auto; font-size: 0.85rem; }}
</style>
<h1>{name}</h1>
<p>{steps} optimizer steps in {seconds} of training.</p>
<pre>{told}</pre>
{scores}
{figures}
<details><summary>Effective configuration</summary><pre>{config}</pre></details>
</html>
"""
