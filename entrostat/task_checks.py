"""What can be said of tasks before they are read: how many prompts at the most, and what can't be meant."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from entrostat.actors.tasks import jsonl, parquet
from entrostat.protocol.task_settings import HuggingFace, Jsonl, Parquet, ReasoningGym, RowSettings, TaskSettings
from entrostat.protocol.verifier_settings import Code, GymScorer, parts_of
from entrostat.toml import Place
from entrostat.validate import Problem

if TYPE_CHECKING:
    from entrostat.config import RunConfig

PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".json")
TEXT_TABLES = (".csv", ".tsv")
PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")

Placed = tuple[Place, TaskSettings]  # a task, and where in the TOML it stands


def of_tasks(config: "RunConfig") -> Iterator[Problem]:
    """All that is wrong with a run's tasks, alone or together."""
    if not config.tasks:
        yield Problem(("tasks",), "is empty; expected at least one [[tasks]] section")
        return
    placed: list[Placed] = [(("tasks", index), task) for index, task in enumerate(config.tasks)]
    placed += [(("evaluation", "tasks", index), task) for index, task in enumerate(config.evaluation.tasks)]
    for place, task in placed:
        yield from task_problems(task, place)
    yield from _splits(placed)
    yield from _code_times(config, placed)
    yield from _weights(config)
    prompts = prompt_count(config.tasks)
    if prompts and config.batch.prompts > prompts:
        yield Problem(
            ("batch", "prompts"),
            f"= {config.batch.prompts} prompts in each optimizer step, but the tasks hold {prompts}: lower it, or take "
            "more problems",
        )


def prompt_count(tasks: Sequence[TaskSettings]) -> int | None:
    """How many prompts the tasks hold together at the most; None if that can't be said without reading one of them."""
    counts = [_count(task) for task in tasks]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def table_of(task: RowSettings) -> str:
    """The table a task reads: a path or a dataset's name."""
    return task.dataset if isinstance(task, HuggingFace) else task.path


def task_problems(task: TaskSettings, place: Place) -> Iterator[Problem]:
    """What is wrong with one task at `place`."""
    if "{question}" not in task.template:
        yield Problem(
            (*place, "template"), f"= {task.template!r} has no {{question}} in it: every prompt would be the same"
        )
    if task.chat_options and not task.chat:
        yield Problem((*place, "chat_options"), "are for the chat template: set chat = true, or leave them out")
    if isinstance(task, ReasoningGym):
        return
    if any(isinstance(one, GymScorer) for one in parts_of(task.verifier)):
        yield Problem(
            (*place, "verifier"),
            "reasoning_gym scores what the library generated, and this task reads a table: name another one",
        )
    if task.part == "test" and task.test_share == 0:
        yield Problem((*place, "test_share"), '= 0 holds nothing out, but part = "test" asks for what is held out')
    if isinstance(task, HuggingFace):
        if Path(task.dataset).is_file():
            yield Problem((*place, "dataset"), f'= {task.dataset} is a file: set kind = "jsonl" or "parquet", and path')
        return
    if wrong := _wrong_ending(task):
        yield Problem((*place, "path"), f"= {task.path} {wrong}")
    elif isinstance(task, Jsonl) and jsonl.count_rows(task) == 0:
        yield Problem((*place, "path"), f"= {task.path} is empty; expected one JSON object a line")


def _weights(config: "RunConfig") -> Iterator[Problem]:
    """Weights are shares of the whole: it takes all of them to say one."""
    for index, task in enumerate(config.evaluation.tasks):
        if task.weight:
            yield Problem(
                ("evaluation", "tasks", index, "weight"),
                f"= {task.weight:g}, but an evaluation samples every problem equally often: leave it out",
            )
    weights = [task.weight for task in config.tasks]
    if not any(weights):
        return
    if not all(weights):
        yield Problem(
            ("tasks", weights.index(0.0), "weight"),
            "is 0 or missing, and another task has one: give every task its weight, or none",
        )
        return
    prompts = prompt_count(config.tasks)
    for index, weight in enumerate(weights):
        if prompts is not None and prompts * weight < sum(weights):
            yield Problem(
                ("tasks", index, "weight"),
                f"= {weight:g} of {sum(weights):g} together is less than one of the {prompts} turns of an epoch: raise "
                "it, or leave the task out",
            )


def _code_times(config: "RunConfig", tasks: Sequence[Placed]) -> Iterator[Problem]:
    """Programs whose tests may take longer than the process that runs them has."""
    deadline = config.verifier.deadline_seconds
    for place, task in tasks:
        for one in parts_of(task.verifier):
            if isinstance(one, Code) and one.total_seconds >= deadline:
                yield Problem(
                    (*place, "verifier", "total_seconds"),
                    f"= {one.total_seconds:g} is not below [verifier] deadline_seconds = {deadline:g}: a slow program "
                    "would cost its verifier process",
                )


def _splits(tasks: Sequence[Placed]) -> Iterator[Problem]:
    """Parts of one table that are cut in two ways, so that questions would be in both."""
    cut: dict[tuple[str, ...], RowSettings] = {}
    for place, task in tasks:
        if isinstance(task, ReasoningGym) or task.part == "all":
            continue
        whole = task.split if isinstance(task, HuggingFace) else ""
        first = cut.setdefault((table_of(task), whole), task)
        for setting in ("seed", "test_share"):
            ours, theirs = getattr(task, setting), getattr(first, setting)
            if ours != theirs and task.part != first.part:
                yield Problem(
                    (*place, setting),
                    f"= {ours:g}, but another task cuts its part from the same table with {setting} = {theirs:g}: "
                    "questions would be in both parts",
                )


def _count(task: TaskSettings) -> int | None:
    match task:
        case ReasoningGym():
            return task.size
        case Jsonl():
            rows = jsonl.count_rows(task)
        case Parquet():
            rows = parquet.count_rows(task)
        case HuggingFace():
            rows = None
    return min(rows, task.limit) if rows is not None and task.limit else rows


def _wrong_ending(task: Jsonl | Parquet) -> str:
    ending = Path(task.path).suffix.lower()
    if ending in PACKED:
        return "is packed: unpack it"
    if ending in TEXT_TABLES:
        return 'is a table as text: put it in a folder of its own and set kind = "huggingface", dataset = the folder'
    if isinstance(task, Jsonl) and ending in PARQUET:
        return 'is a Parquet file: set kind = "parquet"'
    if isinstance(task, Parquet) and ending in JSON_LINES:
        return 'is a JSONL file: set kind = "jsonl"'
    return ""
