"""`entrostat verify`: what a verifier makes of texts in a file, as a run would judge them, before it costs anything."""

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import msgspec
from rich.console import Console

from entrostat import config as configs
from entrostat import responses, toml
from entrostat.actors.verifiers.custom import check_functions
from entrostat.actors.verifiers.judge import failed, name_of
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.protocol.errors import ConfigError, StationLost, TaskError
from entrostat.protocol.messages import Prompt, Status, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import Jsonl, ReasoningGym, TaskSettings
from entrostat.protocol.verifier_settings import AnyVerifier
from entrostat.responses import FIELDS, REQUIRED, Fault, Response
from entrostat.validate import nearest, problems
from entrostat.verdicts import Judged, Progress, Summary, show

KINDS = ("math", "numeric", "exact", "choice", "format", "code")
LOOK_AHEAD = 1024  # lines read before the first of them is judged
LOOK_AHEAD_BYTES = 64 << 20
WAIT_SECONDS = 0.5
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
        0 if all were judged, 1 if the verifier failed on all of them, 2 if some could not be read, 141 if nobody reads
        on (`| head`), as a shell has it.

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
    options = msgspec.structs.replace(options, file=file_of(options.file))
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


def file_of(path: Path) -> Path:
    """What is read: `-` is the standard input."""
    return Path("/dev/stdin") if path == Path("-") else path


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


def _end(file: Path, summary: Summary) -> int:
    """Says which lines couldn't be judged; the exit code."""
    if not summary.faults and summary.counts["error"] == summary.lines:
        print(
            f"entrostat: the verifier failed on every line of {file}, so nothing was judged: its detail says why",
            file=sys.stderr,
        )
        return 1
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
