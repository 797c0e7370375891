"""Rows of a dataset in the `datasets` library's forms: a hub name, a local folder of files, or what it saved to disk.

The library runs no code of a dataset's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entrostat.actors.tasks.arrow import BATCH_ROWS, numbered
from entrostat.actors.tasks.source import NumberedRow, Source, needed_columns
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import HuggingFace

SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what save_to_disk writes beside the data


def open_table(settings: HuggingFace) -> Source:
    """The dataset's rows; those of the hub are downloaded, or come from its cache.

    Raises:
        TaskError: it can't be had or read, has no such subset or split, or lacks a column.
    """
    folder = Path(settings.dataset)
    saved = folder.is_dir() and any((folder / name).is_file() for name in (SAVED, SAVED_SPLITS))
    table = _saved(settings, folder) if saved else _loaded(settings, folder)
    shown = _shown(settings)
    columns = needed_columns(settings, table.column_names, shown)
    source = folder.name if folder.is_dir() else settings.dataset
    subset = f"/{settings.subset}" if settings.subset else ""
    return Source(
        shown=shown,
        name=f"{source}{subset}/{settings.split}",
        level=folder.name,
        rows=_rows(shown, table.select_columns(columns)),
    )


def is_local(settings: HuggingFace) -> bool:
    """Whether it is on this machine without the hub's cache."""
    return Path(settings.dataset).is_dir()


def _saved(settings: HuggingFace, folder: Path) -> Any:
    import datasets

    if settings.subset or settings.revision:
        raise TaskError(f"{folder} was saved by save_to_disk and has no subsets or revisions: leave them out")
    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise TaskError(f"{folder} can't be read as a saved dataset ({_said(error)}): save it again") from error
    if not isinstance(table, datasets.DatasetDict):
        if settings.split not in ("train", str(table.split)):
            raise TaskError(f"{folder} holds one table without a split {settings.split!r}: leave split out")
        return table
    if settings.split not in table:
        raise TaskError(f"{folder} has no split {settings.split!r}; it has: {', '.join(sorted(map(str, table)))}")
    return table[settings.split]


def _loaded(settings: HuggingFace, folder: Path) -> Any:
    import datasets

    local = folder.is_dir()
    if local:
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            settings.dataset, settings.subset or None, split=settings.split, revision=settings.revision or None
        )
    except Exception as error:
        if local:
            raise TaskError(
                f"{_shown(settings)} can't be read as a dataset ({_said(error)}): expected Parquet, JSONL or CSV "
                "files, or what save_to_disk writes"
            ) from error
        if folder.is_absolute():
            raise TaskError(f"there is no folder {folder}: expected a dataset's folder, or a hub name") from error
        raise TaskError(
            f"the dataset {_shown(settings)} can't be had from the Hugging Face hub ({_said(error)}): check its name, "
            "subset, split and the network; without a network, download it elsewhere (hf download "
            f"{settings.dataset} --repo-type dataset --local-dir DIR) and set dataset to that folder"
        ) from error
    finally:
        if local:
            datasets.enable_progress_bars()


def _rows(shown: str, table: Any) -> Iterator[NumberedRow]:
    import pyarrow

    try:
        yield from numbered(table.with_format("arrow").iter(BATCH_ROWS))
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{shown} can't be read to its end ({_said(error)}): get the dataset again") from error


def _shown(settings: HuggingFace) -> str:
    subset = f", subset {settings.subset}" if settings.subset else ""
    return f"{settings.dataset} (split {settings.split}{subset})"


def _said(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
