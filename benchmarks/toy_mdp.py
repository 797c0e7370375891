"""The toy MDP of AEnt (arXiv 2509.03493): where a full and where a clamped entropy bonus gains reward over none.

`python -m benchmarks.toy_mdp` writes `benchmarks/results/toy_mdp/table.md` and `docs/toy_mdp.png`; `--quick` prints a
small version and writes nothing. Every bonus may choose its coefficient on the same grid, on seeds of their own.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from benchmarks.cells import RESULTS, ROOT, cell
from benchmarks.toy_mdp_ascent import CURVE_POINTS, Ascent, Bonus, Problem, natural_climb, stationary_reward
from benchmarks.toy_mdp_report import Measured, plot, text
from benchmarks.toy_mdp_study import COUNTS, DROPS, SEEDS, WELL_RANKED, Study, measure

NAME = "toy_mdp"
CODE = ("benchmarks/toy_mdp_ascent.py", "benchmarks/toy_mdp_study.py", "learner/entropy.py", "learner/token_sets.py")
ADAM_COEFFICIENTS = (0.001, 0.003, 0.01, 0.03, 0.1)
# Plain ascent stays in the trap at 0.03 and below; above 0.1 it soon loses a single optimal action.
PLAIN_COEFFICIENTS = (0.03, 0.05, 0.07, 0.1)
# With the full entropy this coefficient leaves half the mass on the optima from 4.5 of them on: the paper's border.
SHARED_COEFFICIENT = 0.1
# With Adam the plain bonus finds optimal actions at this coefficient or not at all; then chance decides: more seeds.
GENTLE_COEFFICIENT = 0.003
MANY_SEEDS = tuple(range(100, 110))
TOLERANCE = 1e-6  # between the closed form and natural ascent
WORKERS = 2
PLOTTED = 3  # studies


STUDIES = (
    Study(
        name="adam",
        title="Sampled gradient, Adam, each at its own best λ",
        ascent=Ascent(gradient="sampled", optimiser="adam", rate=0.1, steps=280),
        coefficients=ADAM_COEFFICIENTS,
        tuning_seeds=(0, 1),
    ),
    Study(
        name="sampled",
        title="Sampled gradient, plain ascent, each at its own best λ",
        ascent=Ascent(gradient="sampled", optimiser="plain", rate=100.0, steps=200),
        coefficients=PLAIN_COEFFICIENTS,
    ),
    Study(
        name="exact-shared",
        title=f"Exact gradient, plain ascent, λ = {SHARED_COEFFICIENT} for all",
        ascent=Ascent(gradient="exact", optimiser="plain", rate=50.0, steps=200),
        coefficients=(SHARED_COEFFICIENT,),
    ),
    Study(
        name="exact",
        title="Exact gradient, plain ascent, each at its own best λ",
        ascent=Ascent(gradient="exact", optimiser="plain", rate=50.0, steps=200),
        coefficients=PLAIN_COEFFICIENTS,
    ),
    Study(
        name="adam-shared",
        title=f"Sampled gradient, Adam, λ = {GENTLE_COEFFICIENT} for all",
        ascent=Ascent(gradient="sampled", optimiser="adam", rate=0.1, steps=280),
        coefficients=(GENTLE_COEFFICIENT,),
        drops=(0.0, 0.33, 0.99),
        seeds=MANY_SEEDS,
    ),
    Study(
        name="adam-outside",
        title="Sampled gradient, Adam, own best λ, the optima where p = 0.99 drops them",
        problem=replace(WELL_RANKED, optimal_rank=0.05),
        ascent=Ascent(gradient="sampled", optimiser="adam", rate=0.1, steps=280),
        counts=(5, 15),
        drops=(0.0, 0.9, 0.99),
        coefficients=ADAM_COEFFICIENTS,
        tuning_seeds=(0, 1),
    ),
)


def quick(study: Study) -> Study:
    """The study with fewer actions, steps, counts and seeds."""
    return replace(
        study,
        problem=replace(study.problem, actions=2_000),
        ascent=replace(study.ascent, steps=CURVE_POINTS),
        counts=study.counts[-1:],
        drops=(0.0, 0.99),
        coefficients=study.coefficients[-1:],
        tuning_seeds=(0,),
        seeds=SEEDS[:2],
    )


def check_stationary(problem: Problem, drops: Sequence[float], counts: Sequence[int]) -> dict[str, Any]:
    """The closed form at the shared coefficient, `[counts][drops]`, and how far natural ascent ends from it at most.

    Raises:
        ArithmeticError: farther than `TOLERANCE`.
    """
    rewards, error = [], 0.0
    for count in counts:
        row = []
        for drop in drops:
            bonus = Bonus(coefficient=SHARED_COEFFICIENT, drop_fraction=drop)
            case = replace(problem, optimal=count)
            row.append(stationary_reward(case, bonus))
            error = max(error, abs(natural_climb(case, bonus) - row[-1]))
        rewards.append(row)
    if not error < TOLERANCE:
        raise ArithmeticError(f"natural ascent ends {error:.1e} from the stationary point; expected below {TOLERANCE}")
    return {"counts": list(counts), "drops": list(drops), "rewards": rewards, "error": error}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.toy_mdp", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version on one core; prints, writes nothing")
    if parser.parse_args(arguments).quick:
        small = tuple(map(quick, STUDIES))
        check = check_stationary(small[0].problem, small[0].drops, small[0].counts)
        results = [measure(*key) for key in _keys(small)]
        print(text(_by_study(small, results), check, SHARED_COEFFICIENT))
        return
    with ProcessPoolExecutor(
        WORKERS, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        checked = pool.submit(_stationary_cell)
        results = list(pool.map(_cell, *zip(*_keys(STUDIES), strict=True)))
        check = checked.result()
    studies = _by_study(STUDIES, results)
    (RESULTS / NAME / "table.md").write_text(text(studies, check, SHARED_COEFFICIENT))
    plot(studies[:PLOTTED], ROOT / "docs" / "toy_mdp.png")


def _keys(studies: Sequence[Study]) -> list[tuple[Study, int, float | None]]:
    return [(study, count, drop) for study in studies for count in study.counts for drop in (None, *study.drops)]


def _by_study(studies: Sequence[Study], results: Sequence[dict[str, Any]]) -> list[Measured]:
    """The results in the order of `_keys`, put back under their studies."""
    left = iter(results)
    return [
        Measured(
            title=study.title,
            problem=study.problem,
            ascent=study.ascent,
            coefficients=study.coefficients,
            seeds=study.seeds,
            results={count: {drop: next(left) for drop in (None, *study.drops)} for count in study.counts},
        )
        for study in studies
    ]


def _cell(study: Study, count: int, drop: float | None) -> dict[str, Any]:
    config = {key: value for key, value in asdict(study).items() if key not in ("name", "title", "counts", "drops")}
    config |= {"count": count, "drop_fraction": drop}
    if drop is None:
        del config["coefficients"], config["tuning_seeds"]
    name = f"{study.name}-{count}-{'none' if drop is None else drop}"
    return cell(NAME, name, config, CODE, partial(measure, study, count, drop))


def _stationary_cell() -> dict[str, Any]:
    config = {"problem": asdict(WELL_RANKED), "drops": DROPS, "counts": COUNTS, "coefficient": SHARED_COEFFICIENT}
    compute: Callable[[], dict[str, Any]] = partial(check_stationary, WELL_RANKED, DROPS, COUNTS)
    return cell(NAME, "stationary", config, CODE, compute)


if __name__ == "__main__":
    main()
