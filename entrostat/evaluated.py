"""What `entrostat eval` says in the end: one object, a table, and what is wrong with the verdicts."""

from collections.abc import Iterable

import msgspec
from rich.console import Console
from rich.table import Table

from entrostat.evaluation_job import Job
from entrostat.protocol.errors import EntrostatError
from entrostat.rows import EvaluationRow, LevelScore
from entrostat.scores import Estimate, Scores
from entrostat.screen import FAILURES, duration

FAILED = ("timeout", "error")  # the verifier's failures, whatever the response was


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """`entrostat eval --json`. Every score is `{"mean": …, "low": …, "high": …}`, with its 95 % interval over prompts.

    `scores` are over the prompts of the levels that the run trains on, or over all where there are none of these.
    """

    model: str
    branch: int
    step: int  # of a run's checkpoint; 0 of any other model
    temperature: float
    max_tokens: int
    seed: int
    prompts: int  # that `scores` are over
    samples: int  # of each prompt
    responses: int  # of all prompts
    tokens: int  # of all responses
    seconds: float  # from the first prompt to the last verdict, loading apart
    tokens_per_second: float
    pass_at_1: float
    scores: Scores
    levels: tuple[LevelScore, ...]


class Warnings(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with the verdicts."""

    lines: tuple[str, ...]
    worthless: bool  # not one response was judged


def evaluated(job: Job, row: EvaluationRow, tokens: int) -> Evaluated:
    """The evaluation as one object."""
    if row.scores is None:
        raise EntrostatError("an evaluation was counted without its scores")
    return Evaluated(
        model=job.model,
        branch=job.version.branch,
        step=job.version.step,
        temperature=job.config.evaluation.temperature,
        max_tokens=job.config.rollout.max_response_tokens,
        seed=job.config.run.seed,
        prompts=row.prompts,
        samples=row.samples,
        responses=len(job.prompts) * row.samples,
        tokens=tokens,
        seconds=row.seconds,
        tokens_per_second=tokens / row.seconds if row.seconds else 0.0,
        pass_at_1=row.pass_at_1,
        scores=row.scores,
        levels=row.levels,
    )


def show(console: Console, found: Evaluated) -> None:
    """A column for each level, and one for all that count together."""
    parts = [(level, level.scores) for level in found.levels if level.scores is not None]
    columns = [(level.level if level.trained else f"{level.level} (not trained on)", scores) for level, scores in parts]
    if len(parts) > 1:
        columns.append(("all" if all(level.trained for level, _ in parts) else "trained levels", found.scores))
    every = [scores for _, scores in columns]
    console.print(
        f"{found.model}: {found.samples} samples of each prompt", markup=False, highlight=False, soft_wrap=True
    )
    table = Table()
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")

    def add(name: str, cells: Iterable[str], style: str = "") -> None:
        table.add_row(name, *cells, style=style)

    add("prompts", (str(scores.prompts) for scores in every))
    for k in found.scores.pass_at:
        add(f"pass@{k}", (_cell(scores.pass_at.get(k), 3) for scores in every), "bold" if k == 1 else "")
    for k in sorted({k for scores in every for k in scores.majority_at if k > 1}):
        add(f"maj@{k}", (_cell(scores.majority_at.get(k), 3) for scores in every))
    add("reward", (_cell(scores.reward, 3) for scores in every))
    add("tokens a response", (_cell(scores.tokens, 1) for scores in every))
    add("nats a token", (_cell(scores.entropy_nats, 4) for scores in every))
    add("truncated", (f"{scores.truncated:.1%}" for scores in every))
    for status in FAILURES:
        if any(scores.statuses.get(status, 0) for scores in every):
            add(status, (str(scores.statuses.get(status, 0)) for scores in every), "red")
    console.print(table)
    console.print(
        f"±, [ ]: 95 % over prompts. {found.responses:,} responses, {found.tokens:,} tokens in "
        f"{duration(found.seconds)}: {found.tokens_per_second:,.0f} tokens/s",
        highlight=False,
        soft_wrap=True,
    )


def warnings(found: Evaluated, alarm_share: float) -> Warnings:
    """What a reader of the scores must know of the verdicts; failures of a verifier look like wrong answers."""
    counts: dict[str, int] = {}
    for level in found.levels:
        for name, count in level.scores.statuses.items() if level.scores is not None else ():
            counts[name] = counts.get(name, 0) + count
    total = sum(counts.values())
    failed = sum(counts.get(name, 0) for name in FAILED)
    unjudged = {name: counts.get(name, 0) for name in FAILURES if counts.get(name, 0)}
    told = ", ".join(f"{count} {name}" for name, count in unjudged.items())
    advice = "read some with --out FILE: each line has the verdict's detail"
    if failed == total:
        return Warnings(
            lines=(f"every verdict is a failure of the verifier ({told}): the scores say nothing; {advice}",),
            worthless=True,
        )
    if failed or sum(unjudged.values()) > alarm_share * total:
        return Warnings(lines=(f"of {total} verdicts {told}, and they count as wrong; {advice}",), worthless=False)
    return Warnings(lines=(), worthless=False)


def _cell(estimate: Estimate | None, digits: int) -> str:
    """`0.551 ±0.021`; the two ends where they are not equally far."""
    if estimate is None:
        return "–"
    mean = f"{estimate.mean:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return mean
    down, up = estimate.mean - estimate.low, estimate.high - estimate.mean
    if f"{down:.{digits}f}" == f"{up:.{digits}f}":
        return f"{mean} ±{up:.{digits}f}"
    return f"{mean} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
