"""A run's evaluations in its report: pass@k and maj@k over the steps, and a table with the intervals."""

import html
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.axes import Axes

from entrostat.rows import EvaluationRow
from entrostat.scores import Estimate, Scores

COLOURS = ("#e09f3e", "#c1121f", "#540b0e")  # of pass@1 and up to two more
VOTED = "#2a6f97"


def draw_scores(axes: Axes, evaluations: Sequence[EvaluationRow]) -> None:
    """pass@k for the least, a middle and the largest k, and maj@k for the largest, each with its interval."""
    steps = [row.step for row in evaluations]
    told = [row.scores for row in evaluations if row.scores is not None]
    tried = sorted({k for scores in told for k in scores.pass_at})
    if not tried:
        axes.plot(steps, [row.pass_at_1 for row in evaluations], "o-", color=COLOURS[0], label="pass@1")
    for colour, k in zip(
        COLOURS, dict.fromkeys([*tried[:1], *tried[len(tried) // 2 :][:1], *tried[-1:]]), strict=False
    ):
        _draw(axes, evaluations, colour, f"pass@{k}", partial(_passed, k))
    voted = sorted({k for scores in told for k in scores.majority_at if k > 1})
    if voted:
        _draw(axes, evaluations, VOTED, f"maj@{voted[-1]}", lambda scores: scores.majority_at.get(voted[-1]))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share of the unseen prompts")
    axes.set_ylim(0.0, 1.0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def draw_interval(
    axes: Axes, evaluations: Sequence[EvaluationRow], colour: str, chosen: Callable[[Scores], Estimate | None]
) -> None:
    """Whiskers from the lower to the upper end of each evaluation's interval, where it has one."""
    for row in evaluations:
        found = None if row.scores is None else chosen(row.scores)
        if found is not None and found.low is not None and found.high is not None:
            axes.vlines(row.step, found.low, found.high, color=colour, alpha=0.6)


def score_table(evaluations: Sequence[EvaluationRow]) -> str:
    """The evaluations as an HTML table, one line for each; empty without any that has intervals."""
    rows = [(row, row.scores) for row in evaluations if row.scores is not None]
    if not rows:
        return ""
    tried = sorted({k for _, scores in rows for k in scores.pass_at})
    voted = sorted({k for _, scores in rows for k in scores.majority_at if k > 1})
    names = ["step", *(f"pass@{k}" for k in tried), *(f"maj@{k}" for k in voted), "tokens", "nats a token", "truncated"]
    lines = [
        [
            str(row.step),
            *(_cell(scores.pass_at.get(k), ".3f") for k in tried),
            *(_cell(scores.majority_at.get(k), ".3f") for k in voted),
            _cell(scores.tokens, ".1f"),
            _cell(scores.entropy_nats, ".4f"),
            f"{scores.truncated:.1%}",
        ]
        for row, scores in rows
    ]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    prompts = rows[-1][0].prompts
    return (
        f"<h2>Evaluations</h2>\n<p>{prompts} unseen prompts, {rows[-1][0].samples} samples of each; "
        f"in small the 95 % intervals over prompts.</p>\n<table><tr>{head}</tr>\n{body}</table>"
    )


def _passed(k: int, scores: Scores) -> Estimate | None:
    return scores.pass_at.get(k)


def _draw(
    axes: Axes,
    evaluations: Sequence[EvaluationRow],
    colour: str,
    label: str,
    chosen: Callable[[Scores], Estimate | None],
) -> None:
    points = [(row.step, found.mean) for row in evaluations if row.scores is not None and (found := chosen(row.scores))]
    axes.plot([step for step, _ in points], [mean for _, mean in points], "o-", color=colour, label=label)
    draw_interval(axes, evaluations, colour, chosen)


def _cell(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:{form}}"
    return f"{estimate.mean:{form}} <small>{estimate.low:{form}}–{estimate.high:{form}}</small>"
