"""The tables of what asynchrony wins, from measurements that are made up."""

from typing import Any

import pytest

from benchmarks import overlap, overlap_report
from benchmarks.overlap_cells import PACES, STALENESS, Plan, jobs, steady
from tests.made_rows import metrics_row


def made_run(step: float, wait: float, *, age: float = 1.0) -> dict[str, Any]:
    """Ten steps that are all alike, of 600 tokens."""
    return {
        "step": [step] * 10,
        "wait": [wait] * 10,
        "learn": [step - wait] * 10,
        "tokens": [600] * 10,
        "age": [age] * 10,
        "stale": 1,
    }


def made_turn(slower: float = 1.0) -> dict[str, Any]:
    """On-policy a step of four seconds, half of them waited; otherwise of two, a tenth waited."""
    turn: dict[str, Any] = {str(staleness): made_run(2.0, 0.2) for staleness in STALENESS if staleness}
    return {"load": 0.5, "0": made_run(4.0 * slower, 2.0 * slower, age=0.0)} | turn


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:] if "|" in line]


def test_each_turn_is_held_against_its_own_synchronous_run() -> None:
    rows = cells(overlap_report.throughput_table([(PACES[0], [made_turn(), made_turn(1.1), made_turn(1.2)])]))
    assert [row[1] for row in rows] == [str(staleness) for staleness in STALENESS]
    synchronous, first = rows[0], rows[1]
    assert synchronous[0] == "1:1 (1.00)"
    assert synchronous[4] == "1"
    assert first[2] == "30.0 (30.0–30.0)"
    assert first[3] == "300 (300–300)"
    assert first[4] == "2.20 (2.00–2.40)"
    assert first[5:] == ["10 (10–10) %", "1.0", "3"]


def test_the_steady_part_leaves_out_first_and_last_steps() -> None:
    rows = [metrics_row(step, step_seconds=float(step), wait_seconds=0.5, publish_seconds=0.2) for step in range(1, 11)]
    found = steady(rows, first=3, last=2)
    assert found.step == [4.0, 5.0, 6.0, 7.0, 8.0]
    assert found.wait == [0.5] * 5
    assert found.learn == [0.2] * 5


@pytest.mark.parametrize(("asynchronous", "verdict"), [(0.58, "not worse"), (0.40, "worse beyond")])
def test_rewards_are_held_against_the_spread_of_seeds(asynchronous: float, verdict: str) -> None:
    def course(reward: float) -> dict[str, Any]:
        nothing = [0.1] * 12
        return {
            "ended_seconds": [2.0 * i for i in range(12)],
            "reward": [0.0] * 2 + [reward] * 10,
            "entropy_nats": nothing,
            "response_tokens": nothing,
        }

    seeds = {
        seed: {"2": course(asynchronous + shift), "0": course(0.6 + shift)}
        for seed, shift in ((1, -0.05), (2, 0.0), (3, 0.05))
    }
    text = overlap_report.reward_table(seeds)
    assert f"{asynchronous - 0.6:+.3f}; the seeds of one kind spread over 0.100: {verdict}" in text
    assert cells(text)[1][2] == f"{asynchronous:.3f}"


def test_the_page_shows_what_is_there_and_says_what_is_older() -> None:
    plan = Plan(turns=1)
    text = overlap.tables(plan, {"1-1-turn-1": made_turn()}, outdated=1)
    assert "1 are of code before today's" in text
    assert "Reward" not in text
    assert "3:1" not in text


def test_every_cell_has_a_name_of_its_own() -> None:
    names = [job.name for job in jobs(Plan())]
    assert len(set(names)) == len(names) == 3 * 3 + 3
