"""Tasks as they are named on the command line: `--task SPEC`, and `--set task.KEY=VALUE` for all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from entrostat import toml
from entrostat.protocol.errors import ConfigError
from entrostat.protocol.task_settings import TaskSettings
from entrostat.task_checks import task_problems
from entrostat.validate import problems

PREFIX = "task."
GYM_PROBLEMS = 200  # of a generated task, where no limit is given
FILES = {".jsonl": "jsonl", ".parquet": "parquet"}


def tasks_of(specs: Sequence[str], overrides: Sequence[str], limit: int = 0) -> tuple[TaskSettings, ...]:
    """The tasks that are named.

    Args:
        specs: FILE.jsonl, FILE.parquet, `reasoning_gym:DATASET`, `huggingface:NAME` or `huggingface:NAME:SPLIT`.
        overrides: `task.KEY=VALUE`, for every task.
        limit: problems of each; 0: all there are, `GYM_PROBLEMS` of a generated task.

    Raises:
        ConfigError: a spec is none of these, or a key does not fit a task.
    """
    return tuple(_task(spec, overrides, limit) for spec in specs)


def _task(spec: str, overrides: Sequence[str], limit: int) -> TaskSettings:
    table = _table(spec, limit)
    for text in overrides:
        toml.override({"task": table}, text)
    found = problems(TaskSettings, table)
    if not found:
        task: TaskSettings = msgspec.convert(table, TaskSettings)
        found = list(task_problems(task, ()))
        if not found:
            return task
    listed = "\n".join(f"  {'.'.join(str(key) for key in problem.place)}: {problem.message}" for problem in found)
    raise ConfigError(f"--task {spec} can't be used, with what --set task.KEY=VALUE says of it:\n{listed}")


def _table(spec: str, limit: int) -> dict[str, Any]:
    kind, colon, rest = spec.partition(":")
    if colon and kind == "reasoning_gym" and rest:
        return {"kind": kind, "dataset": rest, "size": limit or GYM_PROBLEMS}
    if colon and kind == "huggingface" and rest:
        name, _, split = rest.partition(":")
        folder = Path(name).expanduser()
        return {
            "kind": kind,
            "dataset": str(folder.absolute()) if folder.is_dir() else name,
            "split": split or "test",
            "limit": limit,
        }
    path = Path(spec).expanduser()
    if path.suffix.lower() in FILES:
        return {"kind": FILES[path.suffix.lower()], "path": str(path.absolute()), "limit": limit}
    raise ConfigError(
        f"--task {spec} names no task: expected FILE.jsonl, FILE.parquet, reasoning_gym:DATASET, huggingface:NAME or "
        "huggingface:NAME:SPLIT; fields and verifier follow as --set task.answer=KEY, --set task.verifier.kind=numeric"
    )
