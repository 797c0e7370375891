"""A study of the toy MDP: one way to climb for every bonus, each with the λ that did best on its own seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.toy_mdp_ascent import Ascent, Bonus, Problem, climb

WELL_RANKED = Problem()
COUNTS = (1, 2, 5, 10, 15)
DROPS = (0.0, 0.25, 0.33, 0.5, 0.9, 0.99)
SEEDS = tuple(range(100, 105))
FINAL_POINTS = 4  # of the curve's: the last tenth of the steps
DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Study:
    """One way to climb, for every number of optimal actions and every bonus."""

    name: str
    title: str
    ascent: Ascent
    coefficients: tuple[float, ...]  # λ
    problem: Problem = WELL_RANKED
    counts: tuple[int, ...] = COUNTS
    drops: tuple[float, ...] = DROPS
    tuning_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = SEEDS


def measure(study: Study, count: int, drop: float | None) -> dict[str, Any]:
    """The best coefficient on the tuning seeds and the curves with it, `[seeds][CURVE_POINTS + 1]`; drop None: none."""
    problem = replace(study.problem, optimal=count)
    if drop is None:
        return {"sweep": {}, "coefficient": 0.0, "curves": _curves(problem, study, Bonus(), study.seeds)}
    bonuses = [Bonus(coefficient=coefficient, drop_fraction=drop) for coefficient in study.coefficients]
    sweep = {}
    if len(bonuses) > 1:
        for bonus in bonuses:
            tried = _curves(problem, study, bonus, study.tuning_seeds)
            sweep[str(bonus.coefficient)] = _rounded(sum(map(final, tried)) / len(tried))
    best = max(bonuses, key=lambda bonus: sweep.get(str(bonus.coefficient), 0.0))
    return {"sweep": sweep, "coefficient": best.coefficient, "curves": _curves(problem, study, best, study.seeds)}


def final(curve: Sequence[float]) -> float:
    """The mean reward over the last tenth of the steps."""
    return sum(curve[-FINAL_POINTS:]) / FINAL_POINTS


def _curves(problem: Problem, study: Study, bonus: Bonus, seeds: Sequence[int]) -> list[list[float]]:
    return [[_rounded(reward) for reward in climb(problem, study.ascent, bonus, seed)] for seed in seeds]


def _rounded(reward: float) -> float:
    return float(f"{reward:.{DIGITS}g}")
