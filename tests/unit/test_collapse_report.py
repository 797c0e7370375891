"""What the comparison of methods says of a run: pass@k, tracking, intervals."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.collapse_figure import draw
from benchmarks.collapse_report import (
    NOTHING,
    Cell,
    bootstrapped,
    differences_table,
    frontier_table,
    half_width,
    held,
    methods_table,
    own_ratios,
    pass_at_k,
    relative_entropy,
    tracking,
)
from benchmarks.collapse_rows import FRONTIER_SEEDS, SAMPLES, SEEDS, TASKS, frontier, frontier_rows, rows

TASK = TASKS["countdown"]
NAMED = {row.name: row for row in rows(TASK)}


def a_run(correct: int, entropy: float = 0.2) -> dict[str, Any]:
    levels = [TASK.trained[0]] * 6 + [TASK.harder] * 4
    return {
        "entropy": [0.4] * 3 + [entropy] * 97,
        "reward": [0.5] * 100,
        "initial_entropy": 0.4,
        "levels": levels,
        "correct": [correct] * len(levels),
    }


def cells(**correct: int) -> dict[Cell, dict[str, Any]]:
    """Three seeds of each row named."""
    by_name = {row.name: row for row in rows(TASK)}
    return {Cell(task=TASK, row=by_name[n], seed=s): a_run(c + s) for n, c in correct.items() for s in (1, 2, 3)}


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample() -> None:
    outcomes = [True, False, True, False, False, False]
    for k in (1, 2, 3, 5):
        subsets = list(combinations(outcomes, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(np.array([2.0]), 6, k)[0] == pytest.approx(expected)


def test_tracking_sees_a_slow_swing_and_forgives_noise_within_a_block() -> None:
    swing = np.array([*[9.0] * 40, *[1.2] * 30, *[0.8] * 30])
    noise = np.array([*[9.0] * 40, *[1.2, 0.8] * 30])
    assert tracking(swing) == pytest.approx(0.2)
    assert tracking(noise) == pytest.approx(0.0, abs=1e-12)
    assert held(swing) == pytest.approx(1.0)


def test_a_target_that_falls_counts_as_it_falls() -> None:
    falling = [None, *(0.2 * 0.98**step for step in range(99))]
    exact = a_run(1) | {"target": falling, "entropy": [0.2, *falling[1:]]}
    ratios = own_ratios(NAMED["flagship"], exact)
    assert ratios is not None
    assert tracking(ratios) == pytest.approx(0.0, abs=1e-12)
    stayed = own_ratios(NAMED["flagship"], exact | {"entropy": [0.2] * 100})
    assert stayed is not None
    assert tracking(stayed) > 1.0


def test_a_band_s_error_is_what_lies_beyond_its_edges() -> None:
    band = NAMED["band"]
    assert band.band is not None
    low, high = band.band
    middle = (low + high) / 2
    for entropy, beyond in (
        (low, 0.0),
        (high, 0.0),
        (middle, 0.0),
        (high + 0.3 * middle, 0.3),
        (low - 0.2, 0.2 / middle),
    ):
        ratios = own_ratios(band, a_run(1, entropy) | {"target": [None] * 100})
        assert ratios is not None
        assert tracking(ratios, half_width(band)) == pytest.approx(beyond, abs=1e-12)


@pytest.mark.parametrize("name", ["none", "fixed", "temperature", "clip_higher"])
def test_a_row_without_a_target_has_no_error(name: str) -> None:
    run = a_run(1) | {"target": [None] * 100}
    assert own_ratios(NAMED[name], run) is None
    line = methods_table(TASK, {Cell(task=TASK, row=NAMED[name], seed=1): run}).splitlines()[-1]
    assert line.endswith("| 0.500 | – |")  # 0.2 of an H_0 of 0.4 held


def test_a_row_with_a_target_shows_its_own_error() -> None:
    run = a_run(1) | {"target": [0.16] * 100}
    line = methods_table(TASK, {Cell(task=TASK, row=NAMED["bang_bang"], seed=1): run}).splitlines()[-1]
    assert line.endswith("| 0.500 | 0.250 |")


def test_entropy_held_is_over_the_run_s_own_first_steps_whatever_its_law_calls_its_first() -> None:
    run = a_run(1) | {"entropy": [0.3, 0.4, 0.5] + [0.2] * 97}
    for named in (0.3, None):
        assert relative_entropy(run | {"initial_entropy": named})[3:] == pytest.approx([0.5] * 97)


def test_the_frontier_has_its_rows_and_those_of_the_methods_in_order_on_the_same_seeds() -> None:
    sums = TASKS["sums"]
    run = a_run(SAMPLES) | {"levels": [*sums.trained, sums.harder], "correct": [SAMPLES] * 3 + [0]}
    cells = [Cell(task=sums, row=row, seed=seed) for row in frontier_rows(sums) for seed in FRONTIER_SEEDS]
    methods = [row for row in rows(sums) if row.name in ("fixed", "flagship", "held")]
    cells += [Cell(task=sums, row=row, seed=seed) for row in methods for seed in SEEDS]
    lines = frontier_table(sums, dict.fromkeys(cells, run)).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        *(f"| anchor {anchor}" for anchor in ("0.3", "0.45", "0.6", "0.8", "1")),
        *(f"| coefficient {value}" for value in ("0.02", "0.04", "0.06")),
    ]
    assert all("| 2 | 0.500 [0.500, 0.500] | 1.000 [1.000, 1.000] |" in line for line in lines)
    listed = methods_table(sums, dict.fromkeys(cells, run))
    assert len(listed.splitlines()) == 2 + len(methods)


def test_only_the_first_task_has_a_frontier() -> None:
    assert frontier_table(TASK, cells(held=1)) == ""


def test_the_picture_joins_each_way_of_the_frontier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("matplotlib.pyplot.close", drawn.append)
    sums = TASKS["sums"]
    found: dict[Cell, dict[str, Any]] = {}
    for way in frontier(sums).values():
        for place, row in enumerate(way):
            levels = {"levels": [*sums.trained, sums.harder], "correct": [place * 8] * 3 + [0]}
            run = a_run(1, 0.1 + 0.05 * place) | levels | {"target": [0.2] * 100}
            found |= {Cell(task=sums, row=row, seed=seed): run for seed in FRONTIER_SEEDS}
    draw(sums, found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0
    lines = {str(line.get_label()): line for line in drawn[0].axes[2].lines}
    assert np.asarray(lines["thermostat, never released"].get_xdata()) == pytest.approx([0.25, 0.375, 0.5, 0.625, 0.75])
    assert np.asarray(lines["fixed"].get_ydata()) == pytest.approx([0.0, 8 / SAMPLES, 16 / SAMPLES])


def test_the_interval_resamples_seeds_and_prompts() -> None:
    same_prompts = bootstrapped(np.tile([[0.0], [1.0]], (2, 50)))
    assert same_prompts[0] == 0.5
    assert same_prompts[1] == 0.0  # four seeds, all of them may be drawn alike
    one_seed = bootstrapped(np.array([[0.0, 1.0] * 50]))
    assert 0.35 < one_seed[1] < 0.45 < 0.55 < one_seed[2] < 0.65


@pytest.mark.parametrize(
    ("flagship", "other", "verdict"), [(40, 10, "better"), (20, 20, "not worse"), (10, 40, "worse")]
)
def test_verdicts_follow_the_interval_of_the_difference(flagship: int, other: int, verdict: str) -> None:
    table = differences_table(TASK, cells(flagship=flagship, none=other))
    assert table.splitlines()[-1].endswith(f"| {verdict} |")


def test_a_single_seed_has_no_verdict() -> None:
    one = {cell: run for cell, run in cells(flagship=40, none=10).items() if cell.seed == 1}
    assert differences_table(TASK, one).splitlines()[-1].endswith(f"| {NOTHING} |")


def test_a_row_of_the_table_shows_what_its_runs_did() -> None:
    line = methods_table(TASK, cells(none=SAMPLES // 2 - 2)).splitlines()[-1]
    assert line.startswith("| no control | 3 | 0.500")
    assert "| 0.500 [0.500, 0.500] | –" in line
