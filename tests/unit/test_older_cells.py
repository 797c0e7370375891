"""Cells of older code: taken over where one of their row comes out the same again."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.collapse_report import Cell
from benchmarks.collapse_rows import TASKS, rows
from benchmarks.older_cells import older, result_in, take_over

TASK = TASKS["sums"]
NONE, FIXED = rows(TASK)[:2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in (NONE, FIXED):
        for seed in (1, 2, 3):
            write(tmp_path / f"{Cell(task=TASK, row=row, seed=seed).name}-0000.json", seed, {"made": seed})
    return tmp_path


def write(path: Path, config: int, result: dict[str, Any]) -> dict[str, Any]:
    path.write_text(json.dumps({"config": {"seed": config}, "result": result}))
    return result


def test_a_row_whose_first_comes_out_the_same_is_taken_over_and_another_is_made_again(folder: Path) -> None:
    cells = [Cell(task=TASK, row=row, seed=seed) for row in (NONE, FIXED) for seed in (1, 2, 3, 4)]
    made: list[str] = []

    def place_of(one: Cell) -> tuple[Path, dict[str, Any]]:
        return folder / f"{one.name}-1111.json", {"seed": one.seed}

    def result_of(one: Cell) -> dict[str, Any]:
        made.append(one.name)
        return write(place_of(one)[0], one.seed, {"made": one.seed if one.row == NONE else 99})

    take_over(cells, place_of, result_of, 2)
    assert sorted(made) == ["sums-fixed-1", "sums-none-1"]
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        *("sums-fixed-1-1111.json", "sums-fixed-2-0000.json", "sums-fixed-3-0000.json"),
        *("sums-none-1-1111.json", "sums-none-2-1111.json", "sums-none-3-1111.json"),
    ]
    assert result_in(folder / "sums-none-3-1111.json") == {"made": 3}
    take_over(cells[:4], place_of, result_of, 2)  # all of them are today's, or have no older one
    assert len(made) == 2


def test_a_row_that_fails_loses_no_older_cell(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(one: Cell) -> dict[str, Any]:
        raise RuntimeError(f"{one.name} failed")

    take_over(
        [Cell(task=TASK, row=NONE, seed=1)],
        lambda one: (folder / f"{one.name}-1111.json", {"seed": one.seed}),
        fails,
        1,
    )
    assert "sums-none-1 failed" in caplog.text
    assert len(list(folder.iterdir())) == 6


def test_an_older_cell_is_one_of_the_same_configuration(folder: Path) -> None:
    path = folder / "sums-none-1-1111.json"
    assert older(path, {"seed": 1}) == folder / "sums-none-1-0000.json"
    assert older(path, {"seed": 5}) is None
