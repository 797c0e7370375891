"""The same rows as a JSONL file, a Parquet file, and folders of the `datasets` library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from entrostat.protocol.task_settings import HuggingFace, Jsonl, Parquet, RowSettings

Row = dict[str, Any]


def jsonl(folder: Path, rows: Sequence[Row | str], file: str = "problems.jsonl", **settings: Any) -> Jsonl:
    """Rows, or lines as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / file).write_text("".join(f"{line}\n" for line in lines))
    return Jsonl(path=str(folder / file), **settings)


def parquet(folder: Path, rows: Sequence[Row], file: str = "problems.parquet", **settings: Any) -> Parquet:
    """With types that are inferred."""
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / file)
    return Parquet(path=str(folder / file), **settings)


def saved(folder: Path, rows: Sequence[Row], **settings: Any) -> HuggingFace:
    """What `save_to_disk` writes."""
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(list(rows)).save_to_disk(str(folder))
    return HuggingFace(dataset=str(folder), **settings)


def kinds(folder: Path, rows: Sequence[Row], **settings: Any) -> dict[str, RowSettings]:
    """All of them, the problems called alike."""
    settings = {"name": "problems", **settings}
    parquet(folder / "with_parquet", rows)
    return {
        "jsonl": jsonl(folder, rows, **settings),
        "parquet": parquet(folder, rows, **settings),
        "folder": HuggingFace(dataset=str(folder / "with_parquet"), **settings),
        "saved": saved(folder / "saved", rows, **settings),
    }
