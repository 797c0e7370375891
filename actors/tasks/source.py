"""What the kinds of tables have in common: numbered rows, and names for them."""

from collections.abc import Iterable, Iterator

import msgspec

from entrostat.actors.tasks.row import BadRow, Fields
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import RowSettings

NumberedRow = tuple[int, Fields | BadRow]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """An open table. Rows count from 1 and come in its order, one that can't be decoded as the reason why."""

    shown: str  # where it lies, for messages
    name: str  # what its problems are called by
    level: str  # of its problems, where no field says it
    rows: Iterator[NumberedRow]


def needed_columns(settings: RowSettings, columns: Iterable[str], shown: str) -> list[str]:
    """Those of a table's columns that a task reads.

    Raises:
        TaskError: there is none for one of its settings.
    """
    known = list(columns)
    needed: list[str] = []
    for setting in ("question", "answer", "level", "id"):
        field: str = getattr(settings, setting)
        if not field:
            continue
        column = field if field in known else field.split(".")[0]
        if column not in known:
            raise TaskError(
                f"{shown} has no column {column!r} (the task's setting {setting} names it); "
                f"it has: {', '.join(sorted(known)) or 'none'}"
            )
        if column not in needed:
            needed.append(column)
    return needed
