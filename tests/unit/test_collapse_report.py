"""What the comparison of methods says of a run: pass@k, tracking, intervals."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from benchmarks.collapse_report import (
    Cell,
    bootstrapped,
    differences_table,
    held,
    methods_table,
    pass_at_k,
    ratios,
    tracking,
)
from benchmarks.collapse_rows import SAMPLES, TASKS, rows

TASK = TASKS["countdown"]


def a_run(correct: int, entropy: float = 0.2) -> dict[str, Any]:
    levels = [TASK.trained[0]] * 6 + [TASK.harder] * 4
    return {
        "entropy": [entropy] * 100,
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


def test_entropy_is_held_against_the_law_s_own_target_or_the_flagship_s() -> None:
    run = a_run(1) | {"target": [None] * 50 + [0.1] * 50}
    assert ratios(TASK, run)[:50] == pytest.approx(0.2 / (TASK.anchor * 0.4))
    assert ratios(TASK, run)[50:] == pytest.approx(2.0)


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


def test_a_row_of_the_table_shows_what_its_runs_did() -> None:
    line = methods_table(TASK, cells(none=SAMPLES // 2 - 2)).splitlines()[-1]
    assert line.startswith("| no control | 3 | 0.500")
    assert f"| {0.2 / (TASK.anchor * 0.4):.3f}" in line
