"""What can be said of tasks before they are read: how many prompts at the most, and what can't be meant."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from entrostat.actors.tasks import jsonl, parquet
from entrostat.protocol.task_settings import HuggingFace, Jsonl, Parquet, ReasoningGym, RowSettings, TaskSettings
from entrostat.toml import Place
from entrostat.validate import Problem

PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson", ".json")
TEXT_TABLES = (".csv", ".tsv")
PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")


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


def split_problems(tasks: Sequence[tuple[Place, TaskSettings]]) -> Iterator[Problem]:
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
