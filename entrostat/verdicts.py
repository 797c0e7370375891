"""What `entrostat verify` says of the verdicts: counts and examples by status, and how far it is."""

import time
from collections import Counter
from pathlib import Path
from typing import TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entrostat.protocol.messages import STATUSES, Status, Verdict
from entrostat.responses import Fault, Response

PROGRESS_SECONDS = 0.5
EXAMPLES = 3  # of each status
SHOWN = 3  # faults that are named
SHORT = 60  # characters of an example's texts


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A line and its verdict."""

    line: Response | Fault
    verdict: Verdict


class Summary:
    """Counts, rewards, times and a few examples by status."""

    def __init__(self) -> None:
        self.lines = 0
        self.faults = 0
        self.first_faults: list[str] = []
        self.counts: Counter[Status] = Counter()
        self.rewards: dict[Status, float] = dict.fromkeys(STATUSES, 0.0)  # their sums
        self.seconds: dict[Status, float] = dict.fromkeys(STATUSES, 0.0)
        self.examples: dict[Status, list[Judged]] = {status: [] for status in STATUSES}

    def observe(self, judged: Judged) -> None:
        """Counts one line."""
        self.lines += 1
        if isinstance(judged.line, Fault):
            self.faults += 1
            if len(self.first_faults) < SHOWN:
                self.first_faults.append(judged.line.reason)
        status = judged.verdict.status
        self.counts[status] += 1
        self.rewards[status] += judged.verdict.reward
        self.seconds[status] += judged.verdict.seconds
        if len(self.examples[status]) < EXAMPLES:
            self.examples[status].append(judged)


class Progress:
    """How far it is, on a terminal."""

    def __init__(self, file: Path, stream: TextIO) -> None:
        self._stream = stream if stream.isatty() else None
        self._bytes = file.stat().st_size if file.is_file() else 0
        self._done = self._lines = 0
        self._began = self._said = time.monotonic()

    def observe(self, judged: Judged) -> None:
        """One more line."""
        self._lines += 1
        self._done += judged.line.bytes if isinstance(judged.line, Response) else 0
        now = time.monotonic()
        if self._stream is not None and now - self._said >= PROGRESS_SECONDS:
            self._said = now
            share = f"{self._done / self._bytes:.0%}, " if self._bytes else ""
            self._stream.write(f"\r{share}{self._lines:,} lines, {self._lines / (now - self._began):,.0f} a second ")
            self._stream.flush()

    def close(self) -> None:
        """Takes the line away."""
        if self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def show(console: Console, title: str, summary: Summary) -> None:
    """A table by status, and examples of each."""
    table = Table(title=title, title_justify="left")
    for column in ("status", "lines", "share", "mean reward", "ms a line"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for status in STATUSES:
        row = _row(summary.counts[status], summary, summary.rewards[status], summary.seconds[status])
        table.add_row(status, *row)
    rewards, seconds = sum(summary.rewards.values()), sum(summary.seconds.values())
    table.add_row("all", *_row(summary.lines, summary, rewards, seconds), style="bold")
    console.print(table)
    for status in STATUSES:
        for judged in summary.examples[status]:
            console.print(_example(status, judged), soft_wrap=True)


def _row(count: int, summary: Summary, rewards: float, seconds: float) -> tuple[str, str, str, str]:
    share = f"{count / summary.lines:.2%}"
    return (
        (f"{count:,}", share, f"{rewards / count:.3f}", f"{1000 * seconds / count:.2f}")
        if count
        else ("0", share, "–", "–")
    )


def _example(status: Status, judged: Judged) -> Text:
    line, verdict = judged.line, judged.verdict
    if isinstance(line, Fault):
        return Text(f"{status:<10} {line.reason}")
    answer = line.prompt.answer
    said = f"{status:<10} line {line.index + 1}: expected {_short(answer)}, read {_short(verdict.answer) or 'nothing'}"
    response = line.text.strip()
    # The answer stands at the end.
    end = f"…{_short(response[-SHORT:])}" if len(response) > SHORT else _short(response)
    return Text(f"{said} in {end}{f' ({verdict.detail})' if verdict.detail else ''}")


def _short(text: str) -> str:
    plain = "".join(character if character.isprintable() else " " for character in text)
    return plain if len(plain) <= SHORT else f"{plain[:SHORT]}…"
