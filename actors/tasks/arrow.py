"""Batches of Arrow's → rows: what Parquet files and the `datasets` library share."""

from collections.abc import Iterable, Iterator
from typing import Any

from entrostat.actors.tasks.row import BadRow
from entrostat.actors.tasks.source import NumberedRow

BATCH_ROWS = 1024  # decoded at once: bounds the memory, whatever the table's size
# Text that is not UTF-8; dates and durations beyond Python's; time zones that nobody knows.
UNDECODED = (ValueError, OverflowError, KeyError)


def numbered(batches: Iterable[Any]) -> Iterator[NumberedRow]:
    """The rows of tables or record batches, one after another."""
    number = 0
    for batch in batches:
        for row in _rows(batch):
            number += 1
            yield number, row


def _rows(batch: Any) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UNDECODED:  # somewhere in it: one by one, so that the others are kept
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield BadRow(f"not UTF-8 ({error})")
            except UNDECODED as error:
                yield BadRow(f"can't be decoded ({type(error).__name__}: {error})")
