"""The toy MDP's tables, what they say in words, and its plot."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.cells import interval, table
from benchmarks.toy_mdp_ascent import Ascent, Bonus, Problem, stationary_reward
from benchmarks.toy_mdp_study import final

DOTS_PER_INCH = 100
SIZE_INCHES = (12.0, 8.4)
# Okabe and Ito's orange for the full bonus; the clamped ones from light to dark blue, told apart by their dashes too.
LINES: dict[float, tuple[str, str]] = {
    0.0: ("#D55E00", "-"),
    0.25: ("#9ecae1", "-"),
    0.33: ("#6baed6", "--"),
    0.5: ("#3182bd", "-."),
    0.9: ("#08519c", ":"),
    0.99: ("#000000", "-"),
}
MATTERS = 0.02  # reward: smaller gains are taken for none
FEW, MANY = 2, 10  # optimal actions: the paper says that a plain bonus fails below 5 and helps with 10–15

WHY = """\
**Why.** In the end a bonus with coefficient λ costs up to λ·log(|A|/n) of reward, and clamping puts (1 − p)·|A| in
|A|'s place: p = 1/3 takes log 1.5 off log 10⁵, so only a large p moves the border. On the way there it matters how
fast the tail moves. Under plain ascent a logit moves in proportion to its action's probability, so the tail hardly
moves with or without clamping: every bonus leaves the trap by lowering the trap's own logit, and whether an optimal
action is then drawn in time, and kept, is luck that grows with n and with the room that λ leaves. Adam divides by the
gradient's size, as it does in training: the full bonus then lifts each of the 10⁵ actions as fast as the few good
ones and the mass spreads over all of them, so that it is bearable only with a small λ, with which the search is a
matter of chance and of n. Dropped actions stay where they are. The smallest third holds next to no mass in either
case, so p = 1/3 acts like the full bonus; p = 0.99 bears a large λ, because the search stays among 1000 actions, and
finds the optimal ones if they are among them. Where two bonuses act alike, what separates them in a table is chance,
also in the choice of λ."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A study's results by number of optimal actions and by drop fraction; None: no bonus."""

    title: str
    problem: Problem
    ascent: Ascent
    coefficients: Sequence[float]  # that were tried
    seeds: Sequence[int]
    results: Mapping[int, Mapping[float | None, Mapping[str, Any]]]

    def gains(self, count: int, drop: float) -> list[float]:
        """The final reward over that without a bonus, by seed."""
        pairs = zip(self.results[count][drop]["curves"], self.results[count][None]["curves"], strict=True)
        return [final(with_bonus) - final(without) for with_bonus, without in pairs]

    def helped(self, drop: float) -> list[int]:
        """The numbers of optimal actions for which the interval of the gain lies above `MATTERS`."""
        return [count for count in self.results if interval(self.gains(count, drop))[1] > MATTERS]

    def harmed(self, drop: float) -> list[int]:
        """The numbers of optimal actions for which the interval of the gain lies below −`MATTERS`."""
        return [count for count in self.results if interval(self.gains(count, drop))[2] < -MATTERS]

    def better_than_full(self, drop: float) -> list[int]:
        """The numbers of optimal actions for which the interval of the reward over the full bonus's lies above."""
        return [
            count
            for count in self.results
            if interval(np.subtract(self.gains(count, drop), self.gains(count, 0.0)).tolist())[1] > MATTERS
        ]

    def drops(self) -> list[float]:
        """The bonuses: 0 for the full one, the drop fraction for a clamped one."""
        return [drop for drop in next(iter(self.results.values())) if drop is not None]


def text(studies: Sequence[Measured], check: Mapping[str, Any], coefficient: float) -> str:
    """The Markdown fragment."""
    parts = [_setup(studies[0]), _stationary(check, coefficient), WHY]
    for study in studies:
        parts.append(f"**{study.title}** ({_setting(study)}).")
        parts.append(_gains(study))
        parts.append(_findings(study))
    return "\n\n".join(parts) + "\n"


def plot(studies: Sequence[Measured], path: Path) -> None:
    """Reward gained over no bonus against steps: a row for each study, a column for each number of optimal actions."""
    counts = list(studies[0].results)
    figure, grid = plt.subplots(
        len(studies), len(counts), figsize=SIZE_INCHES, sharey="row", sharex="row", layout="constrained", squeeze=False
    )
    for study, row in zip(studies, grid, strict=True):
        for count, axes in zip(counts, row, strict=True):
            _panel(axes, study, count)
            axes.set_title(f"{count} optimal of 10⁵" if study is studies[0] else "", fontsize=10)
        row[0].set_ylabel(f"{study.title.replace(', ', chr(10), 2)}\n\nreward gained over none", fontsize=9)
        row[len(row) // 2].set_xlabel("steps", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=10)
    figure.savefig(path, dpi=DOTS_PER_INCH)
    plt.close(figure)


def _panel(axes: Axes, study: Measured, count: int) -> None:
    results = study.results[count]
    without = np.array(results[None]["curves"])
    steps = np.linspace(0, study.ascent.steps, without.shape[1])
    axes.axhline(0.0, color="0.6", linewidth=1.0)
    for drop in study.drops():
        gained = (np.array(results[drop]["curves"]) - without).mean(axis=0)
        colour, dashes = LINES[drop]
        axes.plot(steps, gained, color=colour, linestyle=dashes, linewidth=1.8 if drop else 3.5, label=_name(drop))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _gains(study: Measured) -> str:
    header = ["optimal actions", "none: reward", *(f"{_name(drop)}: gain" for drop in study.drops())]
    rows = []
    for count, results in study.results.items():
        none = np.mean([final(curve) for curve in results[None]["curves"]])
        cells = [
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(*interval(study.gains(count, drop)))
            + f" λ {results[drop]['coefficient']:g}"
            for drop in study.drops()
        ]
        rows.append([str(count), f"{none:.2f}", *cells])
    return table(header, rows)


def _findings(study: Measured) -> str:
    """Where each bonus helps, harms and beats the full one, and whether that is the paper's ordering."""
    said = [f"{_name(drop)}: {_effect(study, drop)}" for drop in study.drops()]
    findings = f"Number of optimal actions for which the interval lies beyond ±{MATTERS:g}. " + "; ".join(said) + "."
    counts = set(study.results)
    if not {FEW, MANY} <= counts:
        return findings
    full = set(study.helped(0.0))
    ordered = full >= {count for count in counts if count >= MANY} and not any(count <= FEW for count in full)
    throughout = [_name(drop) for drop in study.drops() if drop and set(study.helped(drop)) == counts]
    return findings + (
        f" That the full bonus helps from {MANY} on and not up to {FEW}, as the paper says, "
        f"{'shows' if ordered else 'does not show'}; clamped bonuses that help throughout: "
        f"{', '.join(throughout) or 'none'}."
    )


def _effect(study: Measured, drop: float) -> str:
    helped, harmed = _listed(study.helped(drop)), _listed(study.harmed(drop))
    beats = f", beats the full one at {_listed(study.better_than_full(drop))}" if drop else ""
    return f"helps at {helped}, harms at {harmed}{beats}"


def _setup(study: Measured) -> str:
    problem = study.problem
    return (
        f"`python -m benchmarks.toy_mdp`: one state, {problem.actions} actions, n of them optimal (reward 1), one trap "
        f"(reward {problem.trap_reward:g}) that holds {problem.trap_mass:.0%} of the start's mass, 0 for the others. "
        f"The tail's logits are normal (deviation {problem.spread:g} nats); the optimal actions start with the logit "
        f"of rank {problem.optimal_rank * problem.actions:.0f}. The paper names |A|, n and the ordering; start, "
        "rewards, λ, p and optimiser are chosen here. Gain: the reward of the last tenth of the steps over that "
        "without a bonus on the same seed, mean and 95 % bootstrap interval over the seeds; λ is each bonus's best on "
        "other seeds, from the same grid for all."
    )


def _stationary(check: Mapping[str, Any], coefficient: float) -> str:
    """The closed form's table."""
    header = ["optimal actions", *(_name(drop) for drop in check["drops"])]
    rows = [
        [str(count), *(f"{reward:.3f}" for reward in rewards)]
        for count, rewards in zip(check["counts"], check["rewards"], strict=True)
    ]
    borders = [_border(Bonus(coefficient=coefficient, drop_fraction=drop)) for drop in check["drops"]]
    rows.append(["worth more than the trap from", *map(str, borders)])
    caption = (
        f"**Where a bonus with λ = {coefficient:g} ends**: reward at π ∝ exp(r/λ) over the kept actions; natural "
        f"ascent from the start ends within {check['error']:.0e} of it. Staying in the trap is worth "
        f"{Problem().trap_reward:g}."
    )
    return caption + "\n\n" + table(header, rows)


def _border(bonus: Bonus) -> int:
    """The fewest optimal actions, of 10⁵, with which the bonus ends above the trap."""
    return next(n for n in itertools.count(1) if stationary_reward(Problem(optimal=n), bonus) > Problem().trap_reward)


def _setting(study: Measured) -> str:
    ascent = study.ascent
    drawn = f", {ascent.samples} actions drawn per step" if ascent.gradient == "sampled" else ""
    grid = ", ".join(f"{coefficient:g}" for coefficient in study.coefficients)
    rank = f"{study.problem.optimal_rank * study.problem.actions:.0f}"
    return (
        f"{ascent.steps} steps, rate {ascent.rate:g}{drawn}; optimal actions at rank {rank}; λ from {grid}; "
        f"seeds {study.seeds[0]}–{study.seeds[-1]}"
    )


def _name(drop: float) -> str:
    return f"clamped p = {drop:g}" if drop else "full"


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts)) or "none"
