"""What a person sees while a run goes: a live view on a terminal, plain lines anywhere else."""

import sys
import time
from collections import deque
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from entrostat.rows import EvaluationRow, MetricsRow
from entrostat.scores import Estimate

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 60
FAILURES = ("unparsable", "timeout", "error")  # statuses that are no judgement


class Screen(Protocol):
    """Told of everything worth showing."""

    def say(self, text: str) -> None:
        """A line that stays."""
        ...

    def waiting(self, text: str) -> None:
        """What the run waits for just now."""
        ...

    def step(self, row: MetricsRow) -> None:
        """An optimizer step ended."""
        ...

    def evaluation(self, row: EvaluationRow) -> None:
        """An evaluation ended."""
        ...

    def close(self) -> None:
        """Gives the terminal back."""
        ...


def open_screen(total_steps: int, name: str) -> Screen:
    """The live view where there is a terminal, plain lines otherwise."""
    console = Console(file=sys.stdout)  # whatever stdout becomes meanwhile
    return LiveScreen(console, total_steps, name) if console.is_terminal else PlainScreen(console, total_steps)


def step_line(row: MetricsRow, total_steps: int, seconds_left: float) -> str:
    """One step as one line."""
    target = f" target {row.target_nats:.3f}" if row.target_nats is not None else ""
    return (
        f"step {row.step}/{total_steps}  reward {row.reward:.3f}  pass {row.pass_rate:.3f}  "
        f"H {row.entropy_nats:.3f}  H̃ {row.clamped_entropy_nats:.3f}{target}  λ {row.coefficient:.4f}  "
        f"stale {row.staleness_mean:.1f}  {row.tokens_per_second:,.0f} tok/s  {duration(seconds_left)} left"
    )


def evaluation_line(row: EvaluationRow) -> str:
    """One evaluation as one line."""
    at_8 = f"  pass@8 {row.pass_at_8:.3f}" if row.pass_at_8 is not None else ""
    levels = ", ".join(f"{level.level} {level.pass_at_1:.2f}" for level in row.levels)
    around, majority, failed = "", "", ""
    if row.scores is not None:
        around = f" {interval(row.scores.pass_at.get(1))}".rstrip()
        most = max(row.scores.majority_at, default=1)
        majority = f"  maj@{most} {row.scores.majority_at[most].mean:.3f}" if most > 1 else ""
        failures = {name: row.scores.statuses.get(name, 0) for name in FAILURES}
        failed = "".join(f"; {count} verdicts are {name}" for name, count in failures.items() if count)
    return (
        f"evaluation at step {row.step}: pass@1 {row.pass_at_1:.3f}{around}{at_8}{majority} on {row.prompts} prompts "
        f"({levels}){failed}"
    )


def interval(estimate: Estimate | None) -> str:
    """`(0.290–0.330)`, and nothing where there is no interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"({estimate.low:.3f}–{estimate.high:.3f})"


def duration(seconds: float) -> str:
    """`75` → `1m15s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Pace:
    """Estimates the time left from the last steps, so that a slow start is soon forgotten."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._seconds: deque[float] = deque(maxlen=20)

    def left(self, row: MetricsRow) -> float:
        """Seconds until the last step, after this one."""
        self._seconds.append(row.step_seconds)
        return (self._total - row.step) * sum(self._seconds) / len(self._seconds)


class PlainScreen:
    """A line per event."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._total = total_steps
        self._pace = Pace(total_steps)
        self._waiting = ""

    def say(self, text: str) -> None:
        """Prints it."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def waiting(self, text: str) -> None:
        """Prints it once, not again while it stays the same."""
        if text != self._waiting:
            self._waiting = text
            self.say(text)

    def step(self, row: MetricsRow) -> None:
        """Prints the step's line."""
        self._waiting = ""
        self.say(step_line(row, self._total, self._pace.left(row)))

    def evaluation(self, row: EvaluationRow) -> None:
        """Prints the evaluation's line."""
        self.say(evaluation_line(row))

    def close(self) -> None:
        """Nothing to give back."""


class LiveScreen:
    """A panel that is redrawn in place, with the course of the numbers that matter."""

    def __init__(self, console: Console, total_steps: int, name: str) -> None:
        self._total = total_steps
        self._name = name
        self._pace = Pace(total_steps)
        self._rows: deque[MetricsRow] = deque(maxlen=HISTORY)
        self._left = 0.0
        self._since = time.monotonic()
        self._waiting = "starting"
        self._live = Live(self._panel(), console=console, auto_refresh=False, transient=False)
        self._live.start()

    def say(self, text: str) -> None:
        """Prints above the panel."""
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def waiting(self, text: str) -> None:
        """Shows it in the panel's foot."""
        self._waiting = text
        self._draw()

    def step(self, row: MetricsRow) -> None:
        """Redraws the panel."""
        self._rows.append(row)
        self._left = self._pace.left(row)
        self._waiting = ""
        self._draw()

    def evaluation(self, row: EvaluationRow) -> None:
        """Prints above the panel."""
        self.say(evaluation_line(row))

    def close(self) -> None:
        """Leaves the last panel standing."""
        self._live.stop()

    def _draw(self) -> None:
        self._live.update(self._panel(), refresh=True)

    def _panel(self) -> Panel:
        elapsed = duration(time.monotonic() - self._since)
        title = f"[b]entrostat[/b] {self._name}"
        if not self._rows:
            return Panel(Text(f"{self._waiting}  ({elapsed})"), title=title)
        row = self._rows[-1]
        table = Table.grid(padding=(0, 2))
        for label, value, course in self._lines(row):
            table.add_row(Text(label, style="dim"), Text(value, style="bold"), Text(course, style="cyan"))
        bar = Table.grid(expand=True)  # a bar by itself ends no line
        bar.add_row(ProgressBar(total=self._total, completed=row.step))
        foot = f"step {row.step}/{self._total} · {elapsed} gone · {duration(self._left)} left"
        if self._waiting:
            foot += f" · {self._waiting}"
        return Panel(Group(table, bar, Text(foot, style="dim")), title=title)

    def _lines(self, row: MetricsRow) -> list[tuple[str, str, str]]:
        target = "" if row.target_nats is None else f"  target {row.target_nats:.3f}"
        band = "" if row.low_nats is None or row.high_nats is None else f"  band {row.low_nats:.3f}–{row.high_nats:.3f}"
        return [
            ("reward", f"{row.reward:.3f}  pass {row.pass_rate:.3f}", sparkline([r.reward for r in self._rows])),
            ("H", f"{row.entropy_nats:.4f} nats", sparkline([r.entropy_nats for r in self._rows])),
            (
                "H̃",
                f"{row.clamped_entropy_nats:.4f} nats{target}{band}",
                sparkline([r.clamped_entropy_nats for r in self._rows]),
            ),
            ("coefficient", f"{row.coefficient:.5f}", sparkline([r.coefficient for r in self._rows])),
            ("staleness", f"{row.staleness_mean:.2f} versions, at most {row.staleness_max}", ""),
            ("speed", f"{row.tokens_per_second:,.0f} tokens/s, {row.step_seconds:.2f} s a step", ""),
        ]


def sparkline(values: list[float]) -> str:
    """The course of some numbers in one line of blocks, lowest to highest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)
