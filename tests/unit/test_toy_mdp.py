"""The toy MDP: its gradients against definitions and finite differences, and where a bonus ends in closed form."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import toy_mdp, toy_mdp_study
from benchmarks.toy_mdp_ascent import (
    CURVE_POINTS,
    Ascent,
    Bonus,
    Problem,
    bonus_gradient,
    climb,
    exact_gradient,
    natural_climb,
    sampled_gradient,
    start,
    stationary_reward,
)
from benchmarks.toy_mdp_report import Measured, plot, text
from entrostat.learner.entropy import clamped_entropy

SMALL = Problem(actions=600, optimal=3)
EXACT = Ascent(gradient="exact", optimiser="plain", rate=20.0, steps=2 * CURVE_POINTS)
SAMPLED = Ascent(gradient="sampled", optimiser="adam", rate=0.1, steps=CURVE_POINTS)
TINY = 1e-6


def some_start(actions: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    problem = Problem(actions=actions, optimal=2, trap_mass=0.6, spread=1.0, optimal_rank=0.1)
    logits, rewards = start(problem, torch.Generator().manual_seed(1))
    return logits.double(), rewards.double()


def objective(logits: torch.Tensor, rewards: torch.Tensor, bonus: Bonus) -> float:
    """`J + λ H̃`, term by term."""
    order = sorted(range(len(logits)), key=lambda action: (-float(logits[action]), action))
    kept = order[: len(logits) - int(bonus.drop_fraction * len(logits))]
    weights = np.exp(logits.numpy())
    shares = weights[kept] / weights[kept].sum()
    entropy = -float(sum(share * np.log(share) for share in shares))
    return float((weights * rewards.numpy()).sum() / weights.sum()) + bonus.coefficient * entropy


@pytest.mark.parametrize("drop_fraction", [0.0, 0.33, 0.9])
def test_gradients_agree_with_finite_differences_of_the_objective(drop_fraction: float) -> None:
    logits, rewards = some_start()
    bonus = Bonus(coefficient=0.3, drop_fraction=drop_fraction)
    ours = exact_gradient(logits, rewards) + bonus.coefficient * bonus_gradient(logits, drop_fraction)
    for action in range(len(logits)):
        nudge = torch.zeros_like(logits)
        nudge[action] = TINY
        slope = objective(logits + nudge, rewards, bonus) - objective(logits - nudge, rewards, bonus)
        assert ours[action].item() == pytest.approx(slope / (2 * TINY), abs=1e-8)


def test_the_exact_gradient_is_that_of_the_expected_reward() -> None:
    logits, rewards = some_start()
    leaf = logits.clone().requires_grad_()
    (leaf.softmax(-1) @ rewards).backward()
    torch.testing.assert_close(exact_gradient(logits, rewards), leaf.grad, rtol=0.0, atol=1e-14)


@settings(max_examples=30)
@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=60), st.floats(0.0, 0.99))
def test_the_bonus_has_the_gradient_of_the_products_clamped_entropy(row: list[float], drop_fraction: float) -> None:
    logits = torch.tensor(row, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    clamped_entropy(leaf[None], drop_fraction).sum().backward()
    torch.testing.assert_close(bonus_gradient(logits, drop_fraction), leaf.grad, rtol=0.0, atol=1e-12)


def test_the_sampled_gradient_is_unbiased() -> None:
    logits, rewards = some_start(12)
    generator = torch.Generator().manual_seed(5)
    draws = torch.stack([sampled_gradient(logits, rewards, 4, generator) for _ in range(20_000)])
    error = draws.mean(0) - exact_gradient(logits, rewards)
    deviations = error.abs() / (draws.std(0) / len(draws) ** 0.5)
    assert deviations.max().item() < 4.0


@pytest.mark.parametrize("drop_fraction", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("optimal", [1, 15])
def test_natural_ascent_ends_at_the_closed_form(drop_fraction: float, optimal: int) -> None:
    problem, bonus = Problem(actions=600, optimal=optimal), Bonus(coefficient=0.2, drop_fraction=drop_fraction)
    assert natural_climb(problem, bonus) == pytest.approx(stationary_reward(problem, bonus), abs=1e-9)


def test_the_closed_form_without_a_trap_is_the_mass_of_the_optimal_actions() -> None:
    """n e^{1/λ} / (n e^{1/λ} + |A| − n): half of it at λ = 1 / ln((|A| − n) / n)."""
    coefficient = 1.0 / np.log((100_000 - 10) / 10)
    problem = Problem(optimal=10, trap_reward=0.0)
    assert stationary_reward(problem, Bonus(coefficient=coefficient)) == pytest.approx(0.5)


def test_a_stationary_point_that_is_missed_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_mdp, "stationary_reward", lambda problem, bonus: 0.3)
    with pytest.raises(ArithmeticError, match="stationary point"):
        toy_mdp.check_stationary(SMALL, (0.0,), (3,))


def test_clamping_that_drops_nothing_climbs_like_the_full_bonus() -> None:
    full = climb(SMALL, EXACT, Bonus(coefficient=0.1), 0)
    assert climb(SMALL, EXACT, Bonus(coefficient=0.1, drop_fraction=0.5 / SMALL.actions), 0) == full
    assert climb(SMALL, EXACT, Bonus(coefficient=0.1, drop_fraction=2.0 / SMALL.actions), 0) == pytest.approx(
        full, abs=1e-3
    )
    assert climb(SMALL, EXACT, Bonus(coefficient=0.1, drop_fraction=0.99), 0) != pytest.approx(full, abs=1e-3)


def test_a_seed_determines_the_climb() -> None:
    bonus = Bonus(coefficient=0.1, drop_fraction=0.9)
    assert climb(SMALL, SAMPLED, bonus, 4) == climb(SMALL, SAMPLED, bonus, 4)
    assert climb(SMALL, SAMPLED, bonus, 4) != climb(SMALL, SAMPLED, bonus, 5)


def test_the_start_is_a_trap_and_the_optimal_actions_are_unlikely_but_well_ranked() -> None:
    problem = Problem(optimal=5)
    logits, rewards = start(problem, torch.Generator().manual_seed(0))
    assert logits.softmax(-1)[0].item() == pytest.approx(problem.trap_mass, abs=1e-3)
    assert rewards.nonzero().squeeze(1).tolist() == [0, 1, 2, 3, 4, 5]
    assert (logits > logits[1]).sum().item() == pytest.approx(problem.optimal_rank * problem.actions, abs=5)


def test_collapse_stalls_the_climb_without_a_bonus() -> None:
    assert climb(SMALL, EXACT, Bonus(), 0)[-1] == pytest.approx(SMALL.trap_reward, abs=0.02)
    assert climb(SMALL, EXACT, Bonus(coefficient=0.1), 0)[-1] > SMALL.trap_reward + 0.2


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_only_adam_lets_the_full_bonus_lift_the_tail_and_no_bonus_lifts_dropped_actions(
    optimiser: Callable[..., torch.optim.Optimizer],
) -> None:
    first, _ = start(Problem(actions=10_000), torch.Generator().manual_seed(0))
    middle = first[2:].argsort(descending=True)[5_000] + 2
    for drop_fraction in (0.0, 0.9):
        logits = first.clone()
        climber = optimiser([logits], lr=0.1, maximize=True)
        for _ in range(20):
            logits.grad = 0.1 * bonus_gradient(logits, drop_fraction)
            climber.step()
        moved = (logits - first)[middle].item()
        assert (moved > 1.0) == (optimiser is torch.optim.Adam and not drop_fraction)
        assert not drop_fraction or moved == 0.0


def test_each_bonus_gets_the_coefficient_that_did_best_on_its_own_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(problem: Problem, ascent: Ascent, bonus: Bonus, seed: int) -> list[float]:
        lucky = 0.1 if seed in toy_mdp_study.SEEDS else 0.03
        return [1.0 if bonus.coefficient == lucky else 0.5] * (CURVE_POINTS + 1)

    monkeypatch.setattr(toy_mdp_study, "climb", known)
    study = toy_mdp.STUDIES[-1]
    assert not set(study.tuning_seeds) & set(study.seeds)
    assert toy_mdp_study.measure(study, 5, 0.0)["coefficient"] == 0.03


def measured(finals: dict[float | None, dict[int, list[float]]]) -> Measured:
    """A study with these final rewards by bonus, number of optimal actions and seed."""
    return Measured(
        title="made up",
        problem=SMALL,
        ascent=EXACT,
        coefficients=(0.1,),
        seeds=(0, 1, 2),
        results={
            count: {
                drop: {"curves": [[reward] * (CURVE_POINTS + 1) for reward in rewards[count]], "coefficient": 0.1}
                for drop, rewards in finals.items()
            }
            for count in (2, 10)
        },
    )


def test_a_bonus_helps_where_its_gain_on_the_same_seeds_is_clear() -> None:
    study = measured(
        {
            None: {2: [0.5, 0.4, 0.5], 10: [0.5, 0.5, 0.5]},
            0.0: {2: [0.2, 0.1, 0.3], 10: [0.9, 0.8, 0.9]},
            0.9: {2: [0.6, 0.5, 0.6], 10: [1.0, 0.2, 1.0]},
        }
    )
    assert (study.helped(0.0), study.harmed(0.0)) == ([10], [2])
    assert (study.helped(0.9), study.harmed(0.9)) == ([2], [])
    assert study.better_than_full(0.9) == [2]


def test_the_papers_ordering_is_said_to_hold_only_where_it_does() -> None:
    none = {2: [0.5] * 3, 10: [0.5] * 3}
    good, bad = {2: [0.9] * 3, 10: [0.9] * 3}, {2: [0.1] * 3, 10: [0.9] * 3}
    check = {"counts": [2], "drops": [0.0], "rewards": [[0.2]], "error": 0.0}
    as_in_the_paper = text([measured({None: none, 0.0: bad, 0.9: good})], check, 0.1)
    otherwise = text([measured({None: none, 0.0: good, 0.9: bad})], check, 0.1)
    assert "as the paper says, shows" in as_in_the_paper
    assert "throughout: clamped p = 0.9." in as_in_the_paper
    assert "as the paper says, does not show" in otherwise
    assert "throughout: none." in otherwise


def test_the_quick_version_prints_every_study_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_mdp, "cell", None)
    toy_mdp.main(["--quick"])
    printed = capsys.readouterr().out
    assert all(study.title in printed for study in toy_mdp.STUDIES)


def test_the_plot_has_every_study(tmp_path: Path) -> None:
    studies = tuple(map(toy_mdp.quick, toy_mdp.STUDIES[:2]))
    results = [toy_mdp_study.measure(*key) for key in toy_mdp._keys(studies)]
    json.dumps(results)  # cells are JSON
    plot(toy_mdp._by_study(studies, results), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
