"""The head's table, from measurements that are made up."""

from typing import Any

import pytest

from benchmarks import head
from benchmarks.head_ways import WAYS


def told(what: str, ways: list[str], tokens: int, dtype: str, repeats: int, turn: int = 0) -> Any:
    """Seconds that tell the way, and peaks that tell the turn: 7, 1 and 4 of the ways before "unfused", 40 there."""
    if what == "seconds":
        return {way: [1.0 + place] * repeats for place, way in enumerate(ways)}
    if what == "peak":
        return 40 if ways == ["unfused"] else (7, 1, 4)[turn]
    return {"ours": [1.0, 1.0, 1.0], "torch.sort": [2.0, 3.0, 4.0]}


def test_each_size_is_held_against_every_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "measured", told)
    rows = [line.split(" | ") for line in head.heads().splitlines()[2:]]
    assert len(rows) == len(head.SIZES) * len(head.GOALS)
    of = {(row[0].strip("| "), row[1], row[2]): (row[3], row[4].strip(" |")) for row in rows}
    place = {way: 1.0 + i for i, way in enumerate(WAYS)}
    ratio = place["inside, clamped"] / place["unfused"]
    assert of["2048, float32", "inside, clamped", "unfused"] == (
        f"{ratio:.2f} [{ratio:.2f}, {ratio:.2f}] (≤ 0.95)",
        "0.10 (≤ 0.15)",
    )
    assert of["512, float32", "inside, clamped", "unfused"][1] == "0.10"  # no goal for few tokens
    assert of["512, float32", "inside, clamped", "three products"][1] == "–"


def test_a_selection_is_told_in_times_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "measured", told)
    assert "| torch.sort | 3.00 [2.50, 3.50] |" in head.selections()
    assert "ours |" not in head.selections().splitlines()[-1]
