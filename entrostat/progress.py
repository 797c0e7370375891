"""How far `entrostat eval` has come: a bar on a terminal, a plain line every ten seconds anywhere else. On stderr."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from entrostat.actors.evaluation import Progress

LINE_SECONDS = 10.0
BAR_SECONDS = 0.2


class Watch:
    """Told of the progress again and again; shows it now and then."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(file=sys.stderr) if console is None else console
        self._clock = clock
        self._began = clock()
        self._shown = self._began
        self._bar: Bar | None = None
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("prompts"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
                console=self._console,
                auto_refresh=False,
                transient=True,
            )

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self) -> None:
        """Sampling starts now."""
        self._began = self._shown = self._clock()
        if self._bar is not None:
            self._bar.start()

    def told(self, progress: Progress) -> None:
        """Shows it, unless that was done just now."""
        now = self._clock()
        if now - self._shown < (LINE_SECONDS if self._bar is None else BAR_SECONDS):
            return
        self._shown = now
        text = numbers(progress, now - self._began)
        if self._bar is None:
            self.say(f"{progress.sampled} of {progress.prompts} prompts, {text}")
            return
        if not self._bar.tasks:
            self._bar.add_task("", total=progress.prompts, told="")
        self._bar.update(self._bar.tasks[0].id, completed=progress.sampled, told=text, refresh=True)

    def close(self) -> None:
        """Gives the terminal back."""
        if self._bar is not None:
            self._bar.stop()


def numbers(progress: Progress, seconds: float) -> str:
    """What has come so far, in words."""
    rate = f"{progress.tokens / max(seconds, 1e-9):,.0f} tokens/s"
    so_far = f", pass@1 {progress.correct / progress.judged:.3f} so far" if progress.judged else ""
    failed = f", {progress.failed} verdicts failed" if progress.failed else ""
    return f"{rate}{so_far}{failed}"
