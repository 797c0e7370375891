"""`entrostat verify`: what a verifier makes of texts in a file, as a run would judge them, before it costs anything."""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entrostat import config as configs
from entrostat import responses, toml
from entrostat.actors.verifiers.custom import check_functions
from entrostat.actors.verifiers.judge import failed, name_of
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.protocol.errors import ConfigError, StationLost, TaskError
from entrostat.protocol.messages import STATUSES, Prompt, Status, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import Jsonl, ReasoningGym, TaskSettings
from entrostat.protocol.verifier_settings import AnyVerifier
from entrostat.responses import FIELDS, REQUIRED, Fault, Response
from entrostat.validate import nearest, problems

KINDS = ("math", "numeric", "exact", "choice", "format", "code")
LOOK_AHEAD = 1024  # lines read before the first of them is judged
LOOK_AHEAD_BYTES = 64 << 20
WAIT_SECONDS = 0.5
PROGRESS_SECONDS = 0.5
EXAMPLES = 3  # of each status
SHOWN = 3  # faults that are named
SHORT = 60  # characters of an example's texts
NOBODY_READS = 141
USUAL_PROCESSES = 8  # at most, where none are named


class Pool(Protocol):
    """What is needed of the verifiers' pool."""

    @property
    def pending(self) -> int:
        """Submitted and not yet collected."""
        ...

    def submit(self, ticket: int, prompt: Prompt, text: str) -> None:
        """Queues a response."""
        ...

    def wait(self, seconds: float) -> bool:
        """Waits until there is something to collect, at most so long."""
        ...

    def collect(self) -> list[tuple[object, Verdict]]:
        """The verdicts there are, with their tickets."""
        ...


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A line and its verdict."""

    line: Response | Fault
    verdict: Verdict


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints for a line."""

    index: int
    reward: float
    status: Status
    detail: str
    answer: str
    seconds: float


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    file: Path
    verifier: str | None = None
    fields: Sequence[str] = ()
    overrides: Sequence[str] = ()
    config: Path | None = None
    task: int = 0
    answer_after: str | None = None
    processes: int | None = None
    deadline_seconds: float | None = None
    as_json: bool = False


def run(options: Options) -> int:
    """Judges every line; prints a table, or a line of JSON for each.

    Returns:
        0 if all were judged, 2 if some could not be, 141 if nobody reads on (`| head`), as a shell has it.

    Raises:
        BadInput: the verifier, the fields or the file won't do.
    """
    try:
        return _run(options)
    except BrokenPipeError:
        # What is still to be written at the end must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _run(options: Options) -> int:
    task, settings = find(options)
    fields = field_map(options.fields, task)
    mark = options.answer_after
    if mark is None:
        mark = task.answer_after if options.config is not None and not isinstance(task, ReasoningGym) else ""
    check_file(options.file)
    check_functions([task])
    summary = Summary()
    progress = Progress(options.file, sys.stderr)
    with closing(VerifierPool(settings, [task])) as pool, closing(progress):
        for judged in judge(pool, responses.read(options.file, fields, mark)):
            summary.observe(judged)
            progress.observe(judged)
            if options.as_json:
                # Whoever reads them sees each line at once.
                print(line_of(judged), flush=True)
    if not summary.lines:
        raise TaskError(f"{options.file} is empty: expected one JSON object a line")
    if not options.as_json:
        show(Console(), f"{options.file}, judged by {name_of(task.verifier)}", summary)
    return _end(options.file, summary)


# ── what to judge with ───────────────────────────────────────────────────────────────────────────────────────────────


def find(options: Options) -> tuple[TaskSettings, VerifierSettings]:
    """The task whose verifier judges, and how it runs.

    Raises:
        ConfigError: neither or both of --verifier and --config are given, or what they name is wrong.
    """
    if (options.verifier is None) == (options.config is None):
        raise ConfigError(
            "verify takes either --verifier NAME or --config RUN.toml: entrostat verify answers.jsonl --verifier math"
        )
    task: TaskSettings
    if options.verifier is not None:
        task = Jsonl(path=str(options.file), verifier=named(options.verifier, options.overrides))
        settings = VerifierSettings(processes=min(USUAL_PROCESSES, os.cpu_count() or 1))
    else:
        assert options.config is not None
        config = configs.load(options.config, options.overrides)
        if not 0 <= options.task < len(config.tasks):
            raise ConfigError(f"--task {options.task}: {options.config} has {len(config.tasks)} tasks, counted from 0")
        task, settings = config.tasks[options.task], config.verifier
    if options.processes is not None:
        settings = msgspec.structs.replace(settings, processes=options.processes)
    if options.deadline_seconds is not None:
        settings = msgspec.structs.replace(settings, deadline_seconds=options.deadline_seconds)
    return task, settings


def named(name: str, overrides: Sequence[str]) -> AnyVerifier:
    """The verifier of that kind, or of the user's function `module:function`, with keys overridden.

    Raises:
        ConfigError: there is no such kind, or it has no such key.
    """
    if ":" in name:
        table: dict[str, Any] = {"kind": "custom", "function": name}
    elif name in KINDS:
        table = {"kind": name}
    elif name in ("weighted", "reasoning_gym"):
        raise ConfigError(f"--verifier {name} needs a task's settings: name a run with --config RUN.toml [--task N]")
    else:
        question = nearest(name, list(KINDS))
        raise ConfigError(f"--verifier {name}: there is none of that name; {question} Or your own, as module:function")
    for text in overrides:
        toml.override(table, text)
    found = problems(AnyVerifier, table)
    if found:
        said = "; ".join(f"{'.'.join(map(str, problem.place))} {problem.message}" for problem in found)
        raise ConfigError(f"--verifier {name}: {said}")
    return msgspec.convert(table, AnyVerifier)  # type: ignore[no-any-return]


def field_map(given: Sequence[str], task: TaskSettings) -> dict[str, str]:
    """Which key of a line holds what.

    Raises:
        ConfigError: a field is not written as ROLE=KEY, or its role is none.
    """
    fields = {"answer": task.answer if not isinstance(task, ReasoningGym) else "answer", "response": "response"}
    if isinstance(task, ReasoningGym):
        fields["entry"] = "entry"
    for text in given:
        role, equals, key = text.partition("=")
        if not equals or not key or role not in FIELDS:
            raise ConfigError(
                f"--field {text}: expected {' or '.join(f'{one}=KEY' for one in REQUIRED)}, KEY as the file names it "
                "(also prompt=KEY and entry=KEY, for a verifier that looks at them)"
            )
        fields[role] = key
    return fields


def check_file(path: Path) -> None:
    """Sees that there is something to read before processes are started.

    Raises:
        TaskError: there is no such file, or it is empty.
    """
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise TaskError(f"{path} {what}: expected a file with one JSON object a line")
    if path.is_file() and not path.stat().st_size:
        raise TaskError(f"{path} is empty: expected one JSON object a line")


# ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def judge(pool: Pool, lines: Iterator[Response | Fault]) -> Iterator[Judged]:
    """Every line with its verdict, in the lines' order, each as soon as it and those before it are known.

    So many lines are read ahead that one that takes its whole deadline holds up only its own process, and no more.

    Raises:
        StationLost: no process can be started, or a verdict is missing.
    """
    waiting: deque[Response | Fault] = deque()
    verdicts: dict[object, Verdict] = {}
    ahead, rest = 0, True
    while rest or waiting:
        while rest and len(waiting) < LOOK_AHEAD and ahead < LOOK_AHEAD_BYTES:
            line = next(lines, None)
            if line is None:
                rest = False
                break
            waiting.append(line)
            if isinstance(line, Fault):
                verdicts[line.index] = failed(line.reason)
            else:
                ahead += line.bytes
                pool.submit(line.index, line.prompt, line.text)
        while waiting and waiting[0].index in verdicts:
            line = waiting.popleft()
            ahead -= line.bytes if isinstance(line, Response) else 0
            yield Judged(line=line, verdict=verdicts.pop(line.index))
        if pool.pending:
            pool.wait(WAIT_SECONDS)
            verdicts.update(pool.collect())
        elif waiting:
            raise StationLost(
                f"the verifiers have nothing left to judge, and gave no verdict on line {waiting[0].index + 1}"
            )


def line_of(judged: Judged) -> str:
    """A verdict as a line of JSON."""
    verdict = judged.verdict
    line = Line(
        index=judged.line.index,
        reward=verdict.reward,
        status=verdict.status,
        detail=verdict.detail,
        answer=verdict.answer,
        seconds=round(verdict.seconds, 6),
    )
    return msgspec.json.encode(line).decode()


# ── what is said of it ───────────────────────────────────────────────────────────────────────────────────────────────


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


def _end(file: Path, summary: Summary) -> int:
    """Says which lines couldn't be judged; the exit code."""
    if not summary.faults:
        return 0
    more = (
        f", and {summary.faults - len(summary.first_faults)} more" if summary.faults > len(summary.first_faults) else ""
    )
    print(
        f"entrostat: {summary.faults} of {summary.lines} lines of {file} can't be judged: "
        f"{'; '.join(summary.first_faults)}{more}",
        file=sys.stderr,
    )
    return 2
