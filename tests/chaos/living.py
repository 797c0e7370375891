"""A run as a user starts it, in a process of its own, and ways to hurt the processes below it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import psutil

from entrostat.protocol import wire
from entrostat.rows import MetricsRow, read_metrics

START_SECONDS = 240.0
POLL_SECONDS = 0.05
TITLE_LETTERS = 15  # of a process's title, which the kernel cuts
SILENT = re.compile(r"\x1b|\s|$|step \d+/|saving step|starting vLLM|evaluat")
RUN = re.compile(r"(?<=\s)/\S*?/run(?=[/\s]|$)")
LONGEST = 400  # characters of a quoted line
SUMMARY = re.compile(r"\d+ optimizer steps in ")
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}

ACTOR, CONTROLLER, BUFFER, LEARNER = (
    "ray::RolloutActor",
    "ray::ControllerActor",
    "ray::BufferActor",
    "ray::LearnerActor",
)
ENGINE = "VLLM::EngineCore"


class Living:
    """A run under way; nothing of it is left when this is closed.

    Args:
        folder: where its output goes, and the run itself as `run` unless `arguments` say otherwise.
        arguments: of `entrostat train`.
        settings: KEY=VALUE overrides.
        run: the run's directory.
    """

    def __init__(
        self, folder: Path, *arguments: str, settings: Sequence[str] = (), run: Path | None = None, name: str = "first"
    ) -> None:
        self.run = run or folder / "run"
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        sets = [word for setting in settings for word in ("--set", setting)]
        self.began = time.time()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "entrostat", "train", *arguments, *sets],
                stdout=out,
                stderr=err,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> "Living":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.process.wait()

    @property
    def rows(self) -> list[MetricsRow]:
        """Its metrics so far."""
        return read_metrics(self.run / "metrics.jsonl")

    @property
    def step(self) -> int:
        """The last one with a row; 0 before the first."""
        return max((row.step for row in self.rows), default=0)

    def see(self) -> None:
        """Remembers every process below the driver."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in psutil.Process(self.process.pid).children(recursive=True):
                self._seen[one.pid] = one

    @property
    def below(self) -> list[psutil.Process]:
        """Every process that was seen below the driver, and lives."""
        self.see()
        return [one for one in self._seen.values() if one.is_running()]

    @property
    def said(self) -> list[str]:
        """What stood on the screen besides the steps, up to the summary, a line that only counts on once."""
        lines: dict[str, str] = {}
        for line in self._out.read_text().splitlines() + self._err.read_text().splitlines():
            if SUMMARY.match(line):
                break
            if not SILENT.match(line):
                lines.setdefault(re.sub(r"\d+", "", line), shorten(line))
        return list(lines.values())

    def stations(self, title: str) -> list[psutil.Process]:
        """The living processes of that title, oldest first."""
        found = []
        for one in self.below:
            with contextlib.suppress(psutil.NoSuchProcess):
                if one.name()[:TITLE_LETTERS] == title[:TITLE_LETTERS] and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return sorted(found, key=lambda one: one.create_time())

    def wait(self, happened: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Waits for it.

        Raises:
            TimeoutError: it did not happen in time, or the run ended before.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"waited for {what}; code {self.process.poll()}, step {self.step}, said {self.said}")
            time.sleep(POLL_SECONDS)

    def wait_step(self, step: int, seconds: float = START_SECONDS) -> None:
        """Waits until that step has its row."""
        self.wait(lambda: self.step >= step, f"step {step}", seconds)

    def wait_more(self, steps: int) -> None:
        """Waits for so many steps more than there are."""
        self.wait_step(self.step + steps)

    def end(self, seconds: float = START_SECONDS) -> int:
        """Waits for its end; the exit code."""
        self.see()  # whoever lives now must be gone afterwards
        return self.process.wait(seconds)

    def left(self, seconds: float = 5.0) -> list[str]:
        """Titles of the processes that outlive the run."""
        _, alive = psutil.wait_procs(self.below, timeout=seconds)
        return [one.name() for one in alive]

    def kill(self) -> None:
        """Kills the driver and everything below it."""
        below = self.below
        self.process.kill()
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def shorten(line: str) -> str:
    """A line of the screen, without the places of one machine."""
    text = RUN.sub("RUN", line)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def send(process: psutil.Process, what: signal.Signals = signal.SIGKILL) -> float:
    """Sends a signal; when, Unix time."""
    process.send_signal(what)
    return time.time()


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """Holds a process still."""
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def tear(segment: Path) -> int:
    """Adds half a record to a journal's segment, as a process does that dies while it writes; its bytes."""
    half = bytes(wire.first_frame(memoryview(segment.read_bytes())))
    half = half[: len(half) // 2]
    with segment.open("ab") as file:
        file.write(half)
    return len(half)


def locks_in_shared_memory(process: int) -> int:
    """How many files of /dev/shm the process has locked: an actor holds the version it serves, and the one it loads."""
    device = Path("/dev/shm").stat().st_dev
    place = f" {process} {os.major(device):02x}:{os.minor(device):02x}:"
    return Path("/proc/locks").read_text().count(place)
