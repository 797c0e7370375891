"""Rows of a Parquet file: only the columns that a task reads, a batch at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entrostat.actors.tasks.arrow import BATCH_ROWS, numbered
from entrostat.actors.tasks.source import NumberedRow, Source, needed_columns
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import Parquet

BUFFER_BYTES = 1 << 20  # read of a column at once


def open_table(settings: Parquet) -> Source:
    """The file's rows.

    Raises:
        TaskError: there is no such file, it is damaged (perhaps only found at a later row), or lacks a column.
    """
    path = Path(settings.path)
    file = _opened(path)
    columns = needed_columns(settings, file.schema_arrow.names, str(path))
    return Source(shown=str(path), name=path.name, level=path.stem, rows=_rows(path, file, columns))


def count_rows(settings: Parquet) -> int | None:
    """How many rows the file holds, by its own account; None where it can't be read."""
    try:
        return int(_opened(Path(settings.path)).metadata.num_rows)
    except TaskError:
        return None


def _opened(path: Path) -> Any:
    import pyarrow  # half a second that a run on other tables does not wait for
    import pyarrow.parquet

    if path.is_dir():
        raise TaskError(f'{path} is a folder, expected one Parquet file: set the task\'s kind = "huggingface" for it')
    try:
        # Reading ahead would hold the columns of all row groups in memory.
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except pyarrow.ArrowException as error:
        raise _damaged(path, error) from error
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise TaskError(f"{path} can't be read ({reason}): expected a Parquet file of problems") from error


def _rows(path: Path, file: Any, columns: list[str]) -> Iterator[NumberedRow]:
    import pyarrow

    try:
        with file:
            groups = range(file.num_row_groups)
            yield from numbered(
                batch
                for group in groups
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)
            )
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TaskError:
    return TaskError(f"{path} is no whole Parquet file ({_first_line(error)}): copy it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
