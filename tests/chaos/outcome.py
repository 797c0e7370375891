"""What came of a fault, with its times."""

from collections.abc import Sequence

import msgspec
import numpy as np

from entrostat.rows import MetricsRow

WINDOW_SECONDS = 60.0  # after the signal: a pause that begins later has another cause
PAUSE = 3.0  # times the median step: a longer time between two steps is a pause


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One signal, or one command, and what the steps show of it."""

    again_seconds: float  # until training is productive again: the end of the pause, or the next step where none is
    pause_seconds: float  # the longest time between two steps around it, less the median; 0 where none stands out
    repeated: int  # steps that were made again


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One repetition of a fault."""

    exit_codes: list[int]
    said: list[str]
    hits: list[Hit]
    step_seconds: float  # the median
    found: dict[str, object]  # what else was seen, by what it is


def median_step(rows: Sequence[MetricsRow]) -> float:
    """Seconds between two steps, without those that something held up."""
    times = [row.unix_seconds for row in rows]
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def hit(rows: Sequence[MetricsRow], at: float, last_step: int, until: float = float("inf")) -> Hit:
    """What the rows of the whole run show of a signal.

    Args:
        rows: at the end.
        at: when it was sent, Unix time.
        last_step: that had its row then.
        until: when the next one was sent.
    """
    usual = median_step(rows)
    after = [row for row in rows if row.unix_seconds > at]
    first = after[0]
    again, pause = first.unix_seconds - at, 0.0
    for row in after:
        if row.unix_seconds > until:
            break  # whatever held that one up, it may be the next signal
        before = max((one.unix_seconds for one in rows if one.unix_seconds < row.unix_seconds), default=at)
        began = max(before, at - usual)
        gap = row.unix_seconds - began
        if began < at + WINDOW_SECONDS and gap > PAUSE * usual and gap > pause + usual:
            again, pause = row.unix_seconds - at, gap - usual
    return Hit(again_seconds=again, pause_seconds=pause, repeated=max(0, last_step + 1 - first.step))


def resumed(rows: Sequence[MetricsRow], branch: int, at: float, last_step: int) -> Hit:
    """What the rows of the moment show of a resume: a later one may void them.

    Args:
        rows: so far.
        branch: the new one.
        at: when what stopped the run happened, or the command to go on was given, Unix time.
        last_step: that had its row when the run was stopped.
    """
    first = next(row for row in rows if row.branch == branch)
    seconds = first.unix_seconds - at
    return Hit(again_seconds=seconds, pause_seconds=seconds, repeated=max(0, last_step + 1 - first.step))
