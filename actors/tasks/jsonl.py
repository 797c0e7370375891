"""Rows of a file with one JSON object a line."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from entrostat.actors.tasks.row import BadRow, Fields
from entrostat.actors.tasks.source import NumberedRow, Source
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import Jsonl

PARQUET_MARK = b"PAR1"  # what a Parquet file begins with
GZIP_MARK = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # what editors of another system put in front


def open_table(settings: Jsonl) -> Source:
    """The file's rows, numbered by their lines; empty lines are passed over.

    Raises:
        TaskError: the file can't be read (from its first row on), or is a Parquet file.
    """
    path = Path(settings.path)
    return Source(shown=str(path), name=path.name, level=path.stem, rows=_rows(path))


def count_rows(settings: Jsonl) -> int | None:
    """How many lines the file holds, without reading them; None where there is no such file."""
    path = Path(settings.path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _rows(path: Path) -> Iterator[NumberedRow]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith(PARQUET_MARK):
                    raise TaskError(f'{path} is a Parquet file, not JSONL: set the task\'s kind = "parquet"')
                if number == 1 and line.startswith(GZIP_MARK):
                    raise TaskError(f"{path} is packed by gzip: unpack it")
                if line.strip():
                    yield number, _row(line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line)
    except OSError as error:
        raise TaskError(f"{path} can't be read ({error.strerror}): expected a JSONL file of problems") from error


def _row(line: bytes) -> Fields | BadRow:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _not_json(line, str(error))
    except RecursionError:
        return _not_json(line, "nested too deeply")
    return row if isinstance(row, dict) else BadRow(f"holds a {type(row).__name__}; expected an object like {{...}}")


def _not_json(line: bytes, reason: str) -> BadRow:
    shown = line.strip()[:60].decode(errors="replace")
    return BadRow(f"not JSON ({reason}): {shown!r}; expected one object a line")
