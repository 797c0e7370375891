"""Cells of a benchmark's table: computed once, and again when what they depend on changes."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cells


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one source file, whose results lie beside it."""
    (tmp_path / "code.py").write_text('"""What it does."""\nRATE = 1\n')
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    return tmp_path


class Counted:
    """A computation that knows how often it was made."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, Any]:
        self.times += 1
        return {"made": self.times}


def made(compute: Counted, **config: int) -> Any:
    return cells.cell("bench", "one", config, ["code.py"], compute)["made"]


def test_a_cell_is_computed_once(root: Path) -> None:
    compute = Counted()
    assert [made(compute, seed=1), made(compute, seed=1)] == [1, 1]


def test_another_configuration_is_another_cell(root: Path) -> None:
    compute = Counted()
    assert [made(compute, seed=1), made(compute, seed=2)] == [1, 2]


def test_changed_code_is_computed_again_and_changed_words_are_not(root: Path) -> None:
    compute = Counted()
    made(compute, seed=1)
    (root / "code.py").write_text('"""Said otherwise."""\n\n# why\nRATE = 1\n')
    assert made(compute, seed=1) == 1
    (root / "code.py").write_text("RATE = 2\n")
    assert made(compute, seed=1) == 2


def test_a_failed_computation_leaves_no_cell(root: Path) -> None:
    def broken() -> dict[str, Any]:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        cells.cell("bench", "one", {}, ["code.py"], broken)
    assert not list(root.rglob("*.json"))


def test_a_cell_says_what_it_was_made_from(root: Path) -> None:
    made(Counted(), seed=3)
    (file,) = root.rglob("*.json")
    content = json.loads(file.read_bytes())
    assert (content["name"], content["config"], content["result"]) == ("one", {"seed": 3}, {"made": 1})


def test_the_interval_holds_the_mean_and_narrows_with_the_sample() -> None:
    few, many = cells.interval([0.0, 1.0] * 5), cells.interval([0.0, 1.0] * 200)
    assert few[0] == many[0] == 0.5
    assert few[1] < many[1] < 0.5 < many[2] < few[2]
