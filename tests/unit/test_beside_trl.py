"""Beside TRL: seconds per step, ratios, pairs, the tables, the ways, what each cell depends on."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import beside_trl, trl_timed
from benchmarks import beside_trl_report as report
from benchmarks.beside_trl_cells import Plan, jobs, reason
from benchmarks.beside_trl_sides import Course, trl_config
from benchmarks.trl_ways import FASTEST, WAYS

LEFT_OUT = {"ours": 2, "theirs": 1}


def side(ended: list[float], reward: float = 0.5) -> dict[str, Any]:
    same = [reward] * len(ended)
    return {"ended_seconds": ended, "reward": same, "entropy_nats": same, "response_tokens": [30.0] * len(ended)}


def pair(ours: list[int], theirs: list[int]) -> dict[str, Any]:
    both = {"ours": side([20.0, 22.0]), "theirs": side([15.0, 18.0])}
    return {**both, "ours_correct": ours, "theirs_correct": theirs}


ROUND = {"ours": side([20.0, 29.0, 30.0, 32.0, 33.0]), "theirs": side([12.0, 16.0, 20.0])}

# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_is_the_time_between_two_ends_and_the_first_ones_are_left_out() -> None:
    found = report.course(ROUND, "ours")
    assert found.first_step_seconds == 20.0
    assert found.step_seconds(1) == [9.0, 1.0, 2.0, 1.0]
    assert found.step_seconds(2) == [1.0, 2.0, 1.0]


def test_ratios_are_ours_over_theirs_of_medians_and_of_means() -> None:
    medians, means = report.ratios(ROUND, LEFT_OUT)
    assert medians == pytest.approx(1.0 / 4.0)
    assert means == pytest.approx((4.0 / 3.0) / 4.0)


@given(start=st.floats(0.0, 1e3), gaps=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=20))
def test_the_start_is_no_part_of_any_step(start: float, gaps: list[float]) -> None:
    ended = [start]
    for gap in gaps:
        ended.append(ended[-1] + gap)
    course = Course(ended_seconds=ended, reward=[], entropy_nats=[], response_tokens=[])
    assert course.step_seconds(1) == pytest.approx(gaps)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_of_steps_tells_each_round_and_the_range() -> None:
    slower = {**ROUND, "theirs": side([12.0, 14.0, 16.0])}
    text = report.step_table([ROUND, slower], LEFT_OUT)
    assert "| 1 | 1.00 (1.00–1.50) | 4.00 (4.00–4.00) | 0.25 | 0.33 | 20 s | 12 s |" in text
    assert "Ratio of medians 0.38 (0.25–0.50) (goal ≤ 0.25), of means 0.50 (0.33–0.67)." in text


def test_the_difference_is_paired_by_problem() -> None:
    text = report.reward_table({1: pair([4, 3, 2, 1], [3, 2, 1, 0]), 2: pair([0, 1, 0, 1], [1, 2, 1, 2])}, samples=4)
    assert "| 0.250 [0.250, 0.250] |" in text  # every problem fares better by one sample in four
    assert "| -0.250 [-0.250, -0.250] |" in text
    assert "higher in 1 of 2 seeds; difference over all 0.000 [0.000, 0.000]." in text


def test_a_way_that_fails_says_why_and_the_others_stand() -> None:
    failed = "torch.X: [rank0]: AttributeError: 'Parameter' object has no attribute 'weight_loader'"
    found: dict[str, Any] = {"a": {"failed": reason(f"…\n{failed}\nthe end")}, "b": {"theirs": side([1.0, 3.0, 6.0])}}
    text = report.ways_table(found, 2)
    assert "| a | fails: `AttributeError: 'Parameter' object has no attribute 'weight_loader'` |" in text
    assert "| b | 3.00 (3.00–3.00) |" in text


def test_a_failure_that_names_no_exception_is_told_by_its_last_line() -> None:
    assert reason("one\ntwo\n\n") == "two"


def test_tables_come_of_the_cells_that_are_there() -> None:
    plan = Plan(seeds=(1, 2), our_first=2, their_first=1, samples=4)
    alone = {"ours": side([20.0, 21.0]), "ours_correct": [4, 4]}
    text = beside_trl.tables(plan, {"step-1": ROUND, "reward-2": pair([1, 1], [2, 2]), "uncontrolled-2": alone})
    assert "One optimizer step" in text
    assert "higher in 0 of 1 seeds" in text
    assert "higher in 1 of 1 seeds" in text  # without control, against the same TRL
    assert "TRL's ways" not in text
    assert "Of 1 cells 1 are of code before today's" in beside_trl.tables(plan, {"step-1": ROUND}, outdated=1)
    assert "Reward after" not in beside_trl.tables(plan, {"uncontrolled-1": alone})


# ── what is run ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", WAYS)
def test_every_way_makes_the_same_batch_on_no_more_than_two_cores(name: str) -> None:
    way = WAYS[name]
    config = trl_config(seed=1, steps=3, policy="")
    made = trl_timed.arguments(config, way, "somewhere")
    split = made["per_device_train_batch_size"] * made["gradient_accumulation_steps"] * way.processes
    assert split == config.prompts * config.samples == 512
    assert way.microbatch % config.samples == 0  # a prompt's samples stay in one process
    assert way.processes * way.threads <= 2


def test_both_sides_are_asked_for_the_quickstarts_step() -> None:
    config = trl_config(seed=3, steps=5, policy="")
    assert (config.prompts, config.samples, config.lr, config.max_response_tokens) == (32, 16, 1.2e-4, 80)
    assert (config.seed, config.entropy, config.temperature) == (3, None, 1.0)


def test_the_fastest_way_is_one_of_the_ways_and_a_cell_depends_on_it() -> None:
    made = jobs(Plan())
    assert WAYS[FASTEST].processes == 2
    assert all(job.config["way"]["microbatch"] for job in made)
    assert len({job.name for job in made}) == len(made) == len(WAYS) + 5 + 3 + 3


def test_a_ways_cell_does_not_depend_on_our_learner_and_a_pairs_does() -> None:
    code = {job.part: job.code for job in jobs(Plan())}
    assert "learner/update.py" not in code["ways"]
    assert all("learner/update.py" in code[part] for part in ("step", "reward", "uncontrolled"))


def test_a_part_or_a_seed_can_be_asked_for_alone() -> None:
    assert [job.name for job in beside_trl.chosen_jobs(Plan(), ["reward"], [2])] == ["reward-2"]
    assert len(beside_trl.chosen_jobs(Plan(), ["step"], [2])) == Plan().rounds  # rounds have no seed
    assert len(beside_trl.chosen_jobs(Plan(), None, None)) == len(jobs(Plan()))
    assert beside_trl.chosen_jobs(Plan(), [beside_trl.TABLES], None) == []


def test_the_clock_stops_the_run_only_after_its_deadline() -> None:
    class Control:
        should_training_stop = False

    for deadline, stops in ((0.0, False), (1.0, True), (math.inf, False)):
        clock, control = trl_timed.Clock(deadline), Control()
        clock.on_step_end(None, None, control)
        assert (control.should_training_stop, len(clock.ended_unix)) == (stops, 1)
