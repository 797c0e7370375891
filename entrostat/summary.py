"""`summary.json`: what a run came to, in one small object."""

from pathlib import Path

import msgspec
import numpy as np

from entrostat.directory import write_atomically
from entrostat.rows import EvaluationRow, MetricsRow, pass_rates
from entrostat.scores import Estimate, bounded, gain
from entrostat.screen import duration

WINDOW_STEPS = 10  # rewards and entropies of the first and last so many steps are averaged


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards and entropies are means of the first and last ten steps; `seconds` counts from the command's start.

    pass@k are over the fixed evaluation prompts of the trained levels; None where no evaluation was asked for.
    """

    steps: int
    seconds: float
    first_step_seconds: float
    reward_first: float
    reward_last: float
    pass_at_1_before: float | None
    pass_at_1_after: float | None
    pass_at_8_before: float | None
    pass_at_8_after: float | None
    entropy_first_nats: float
    entropy_last_nats: float
    clamped_entropy_last_nats: float
    target_nats: float | None
    coefficient_last: float
    tokens: int
    tokens_per_second: float
    max_mismatch_nats: float
    max_staleness: int
    memory_peak_gib: float
    actor_restarts: int
    levels_before: dict[str, tuple[float, float | None]]  # pass@1, pass@8
    levels_after: dict[str, tuple[float, float | None]]
    restarts: int = 0  # of the whole run, after a station was lost
    # 95 % intervals; of the gain paired by prompt. None where no evaluation has them.
    pass_at_1_interval_before: tuple[float, float] | None = None
    pass_at_1_interval_after: tuple[float, float] | None = None
    pass_at_1_gain: Estimate | None = None


def summarise(
    rows: list[MetricsRow],
    evaluations: list[EvaluationRow],
    *,
    seconds: float,
    first_step_seconds: float,
    actor_restarts: int,
    restarts: int = 0,
) -> Summary:
    """A run's rows as one object; there is at least one."""
    first, last = rows[:WINDOW_STEPS], rows[-WINDOW_STEPS:]
    before = next((row for row in evaluations if row.step == 0), None)
    after = next((row for row in reversed(evaluations) if row.step == rows[-1].step), None)
    tokens = sum(row.tokens for row in rows)
    return Summary(
        steps=rows[-1].step,
        seconds=seconds,
        first_step_seconds=first_step_seconds,
        reward_first=float(np.mean([row.reward for row in first])),
        reward_last=float(np.mean([row.reward for row in last])),
        pass_at_1_before=before.pass_at_1 if before else None,
        pass_at_1_after=after.pass_at_1 if after else None,
        pass_at_8_before=before.pass_at_8 if before else None,
        pass_at_8_after=after.pass_at_8 if after else None,
        entropy_first_nats=float(np.mean([row.entropy_nats for row in first])),
        entropy_last_nats=float(np.mean([row.entropy_nats for row in last])),
        clamped_entropy_last_nats=float(np.mean([row.clamped_entropy_nats for row in last])),
        target_nats=rows[-1].target_nats,
        coefficient_last=rows[-1].coefficient,
        tokens=tokens,
        tokens_per_second=tokens / sum(row.step_seconds for row in rows),
        max_mismatch_nats=max(row.mismatch_nats for row in rows),
        max_staleness=max(row.staleness_max for row in rows),
        memory_peak_gib=max(row.memory_gib for row in rows),
        actor_restarts=actor_restarts,
        levels_before=_levels(before),
        levels_after=_levels(after),
        restarts=restarts,
        pass_at_1_interval_before=_interval(before),
        pass_at_1_interval_after=_interval(after),
        pass_at_1_gain=_gain(before, after),
    )


def write(summary: Summary, path: Path) -> None:
    """Writes it for people: indented, whole or not at all."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")


def sentences(summary: Summary) -> list[str]:
    """The summary as a person would tell it."""
    lines = [
        f"{summary.steps} optimizer steps in {duration(summary.seconds)}, the first after "
        f"{summary.first_step_seconds:.0f} s; {summary.tokens_per_second:,.0f} tokens/s",
        f"reward    {summary.reward_first:.3f} → {summary.reward_last:.3f}",
    ]
    for k, before, after in (
        (1, summary.pass_at_1_before, summary.pass_at_1_after),
        (8, summary.pass_at_8_before, summary.pass_at_8_after),
    ):
        if before is not None and after is not None:
            lines.append(f"pass@{k}    {before:.3f} → {after:.3f}{_certainty(summary) if k == 1 else ''}")
    for level, (at_1, _) in summary.levels_after.items():
        if level in summary.levels_before:
            lines.append(f"  {level}: pass@1 {summary.levels_before[level][0]:.3f} → {at_1:.3f}")
    target = "" if summary.target_nats is None else f" (target {summary.target_nats:.4f})"
    # A simulated engine computes nothing that could be compared.
    agree = f"engine and learner agree to {summary.max_mismatch_nats:.1e} nats; " if summary.max_mismatch_nats else ""
    lines += [
        f"entropy   H {summary.entropy_first_nats:.4f} → {summary.entropy_last_nats:.4f} nats, "
        f"H̃ {summary.clamped_entropy_last_nats:.4f}{target}, coefficient {summary.coefficient_last:.4f}",
        f"{agree}staleness at most {summary.max_staleness}; memory at most {summary.memory_peak_gib:.1f} GiB",
    ]
    if summary.restarts:
        lines.append(f"restarts  {summary.restarts}, each after a station was lost: logs/driver.log says which")
    return lines


def _certainty(summary: Summary) -> str:
    """What the intervals say of the two scores, and of the rise between them."""
    before, after, gain = summary.pass_at_1_interval_before, summary.pass_at_1_interval_after, summary.pass_at_1_gain
    if before is None or after is None:
        return ""
    text = f" (95 % {before[0]:.3f}–{before[1]:.3f} → {after[0]:.3f}–{after[1]:.3f}"
    if gain is None or gain.low is None or gain.high is None:
        return f"{text})"
    verdict = "" if gain.low > 0.0 or gain.high < 0.0 else ", so it may be chance"
    return f"{text}; {gain.mean:+.3f}, {gain.low:+.3f} to {gain.high:+.3f} by prompt{verdict})"


def _interval(row: EvaluationRow | None) -> tuple[float, float] | None:
    if row is None or not row.correct:
        return None
    found = bounded(pass_rates(row))
    return None if found.low is None or found.high is None else (found.low, found.high)


def _gain(before: EvaluationRow | None, after: EvaluationRow | None) -> Estimate | None:
    if before is None or after is None or not before.correct or len(before.correct) != len(after.correct):
        return None
    if before.asked != after.asked:
        return None  # other prompts
    return gain(pass_rates(before), pass_rates(after))


def _levels(row: EvaluationRow | None) -> dict[str, tuple[float, float | None]]:
    return {} if row is None else {level.level: (level.pass_at_1, level.pass_at_8) for level in row.levels}
