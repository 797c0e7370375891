"""Cells that older code made: taken over row by row, where one of the row, made again, is equal to the last digit."""

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.collapse_report import Cell

log = logging.getLogger("collapse")

Result = dict[str, Any]


def older(path: Path, config: dict[str, Any]) -> Path | None:
    """The newest cell with this one's name and configuration, whatever code made it."""
    name, _, _ = path.stem.rpartition("-")
    files = sorted(path.parent.glob(f"{name}-*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return next((file for file in files if json.loads(file.read_bytes())["config"] == config), None)


def result_in(file: Path) -> Result:
    """What a cell's file holds."""
    found: Result = json.loads(file.read_bytes())["result"]
    return found


def take_over(
    cells: Sequence[Cell],
    place_of: Callable[[Cell], tuple[Path, dict[str, Any]]],
    result_of: Callable[[Cell], Result],
    processes: int,
) -> None:
    """Gives older cells the names of today's code, row by row, if the first of the row comes out as it was.

    A run follows from its configuration and seed alone, so that code which changed and makes one run of a row again to
    the last digit is taken to make its others.

    Args:
        cells: those that are wanted.
        place_of: where a cell's file is to be, and its configuration.
        result_of: makes a cell, and its file.
        processes: rows that are tried beside each other.
    """
    stale: list[tuple[Cell, Path, Path]] = []
    for one in cells:
        path, config = place_of(one)
        if not path.is_file() and (old := older(path, config)):
            stale.append((one, old, path))
    stale.sort(key=_row)

    def tried(row: list[tuple[Cell, Path, Path]]) -> None:
        (first, old, _), *others = row
        same = result_in(old) == result_of(first)
        log.info("%s: %s older cells %s", first.name, len(others), "are taken over" if same else "are made again")
        old.unlink()
        for _, source, target in others if same else ():
            source.rename(target)

    with ThreadPoolExecutor(processes) as pool:
        jobs = [pool.submit(tried, list(row)) for _, row in groupby(stale, key=_row)]
    for job in jobs:
        if error := job.exception():
            log.error("a row's older cells stay as they are: %s", error)


def _row(stale: tuple[Cell, Path, Path]) -> tuple[str, str]:
    return stale[0].task.name, stale[0].row.name
