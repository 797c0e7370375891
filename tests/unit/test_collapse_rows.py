"""The rows of the comparison: each is a configuration that loads, and says what its name says."""

import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from benchmarks import cells, collapse, own_process
from benchmarks.cells import ROOT
from benchmarks.collapse import planned, request, trl_request
from benchmarks.collapse_report import Cell
from benchmarks.collapse_rows import (
    FRONTIER_SEEDS,
    PAIRED,
    PAIRED_SEEDS,
    SEEDS,
    TASKS,
    TUNING_SEED,
    Row,
    Task,
    frontier_rows,
    rows,
    tracking_rows,
    tuning_rows,
)
from entrostat import config as configs
from entrostat.config import RunConfig
from entrostat.protocol.entropy_settings import AnchoredLaw, BandLaw, BangBangLaw, FixedLaw, ThermostatLaw

EVERY = [
    pytest.param(task, row, id=f"{task.name}-{row.name}")
    for task in TASKS.values()
    for row in (*rows(task), *frontier_rows(task))
    if row.scored
]


def configured(task: Task, row: Row) -> RunConfig:
    asked = request(Cell(task=task, row=row, seed=3))
    return configs.load(ROOT / asked["task"], [f"run.seed={asked['seed']}", *asked["overrides"]])


@pytest.mark.parametrize(("task", "row"), EVERY)
def test_a_row_is_a_synchronous_run_of_its_task(task: Task, row: Row) -> None:
    config = configured(task, row)
    assert (config.run.steps, config.run.seed, config.rollout.max_staleness) == (task.steps, 3, 0)
    assert {one.level for one in config.evaluation.tasks} == {*task.trained, task.harder}
    assert {one.level for one in config.tasks} == set(task.trained)
    assert sum(getattr(one, "size", 0) for one in config.evaluation.tasks) >= 500


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_rows_have_the_law_they_are_called_by(task: Task) -> None:
    laws = {row.name: configured(task, row).entropy.law for row in rows(task)}
    kinds = {"none": FixedLaw, "fixed": FixedLaw, "bang_bang": BangBangLaw, "band": BandLaw, "anchored": AnchoredLaw}
    assert {name: type(laws[name]) for name in kinds} == kinds
    assert isinstance(laws["flagship"], ThermostatLaw)
    none, fixed = laws["none"], laws["fixed"]
    assert isinstance(none, FixedLaw)
    assert isinstance(fixed, FixedLaw)
    assert none.coefficient == 0.0 < fixed.coefficient


def test_every_row_has_its_seeds_and_the_paired_ones_have_eight() -> None:
    every = planned(list(TASKS.values()))
    for task in TASKS.values():
        for row in rows(task):
            seeds = {one.seed for one in every if one.task.name == task.name and one.row.name == row.name}
            assert seeds == set(PAIRED_SEEDS if row.name in PAIRED else SEEDS)
    assert len({one.name for one in every}) == len(every)


def test_the_band_row_says_the_edges_of_its_law() -> None:
    for task in TASKS.values():
        row = next(row for row in rows(task) if row.name == "band")
        law = configured(task, row).entropy.law
        assert isinstance(law, BandLaw)
        assert row.band == pytest.approx((law.low, law.high), rel=1e-5)


def test_the_frontier_is_the_first_task_s_after_its_methods_and_is_asked_for_by_name() -> None:
    every = planned(list(TASKS.values()))
    parts = [collapse.part(one) for one in every]
    ours = [one for one in every if collapse.part(one) == "frontier"]
    assert {one.task.name for one in ours} == {"sums"}
    assert {one.row.name for one in ours} == {
        *("frontier-0.3", "frontier-0.45", "frontier-0.8", "frontier-1"),
        *("fixed-2x", "fixed-3x"),
    }
    assert {one.seed for one in ours} == set(FRONTIER_SEEDS)
    assert len(ours) == 12
    assert parts.index("frontier") == max(i for i, name in enumerate(parts) if name == "methods") + 1


def test_the_frontier_s_rows_differ_from_their_method_in_one_number() -> None:
    task = TASKS["sums"]
    laws = {row.name: configured(task, row).entropy.law for row in (*rows(task), *frontier_rows(task))}
    held, fixed = laws["held"], laws["fixed"]
    assert isinstance(held, ThermostatLaw)
    assert isinstance(fixed, FixedLaw)
    for anchor in (0.3, 0.45, 0.8, 1.0):
        assert laws[f"frontier-{anchor:g}"] == msgspec.structs.replace(held, anchor=anchor)
    for name, factor in (("fixed-2x", 2.0), ("fixed-3x", 3.0)):
        law = laws[name]
        assert isinstance(law, FixedLaw)
        assert law.coefficient == pytest.approx(factor * fixed.coefficient, rel=1e-5)


@pytest.mark.parametrize(("seed", "counted"), [(TUNING_SEED, 0), (1, 1)])
def test_a_cell_outlives_the_code_that_made_it_and_is_counted_unless_it_is_of_tuning(
    seed: int, counted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    one = Cell(task=TASKS["sums"], row=tuning_rows(TASKS["sums"])[0], seed=seed)
    config, code = collapse._key(one)
    folder = tmp_path / "collapse"
    folder.mkdir()
    stored = {"first": config, "second": config, "other": config | {"lag": 2}}
    for age, (name, kept) in enumerate(stored.items()):
        file = folder / f"{one.name}-{age:012x}.json"
        file.write_text(json.dumps({"config": kept, "result": {"made": name}}))
        os.utime(file, (age, age))
    assert collapse.there(one) == {"made": "second"}
    assert collapse.outdated([one]) == counted
    cells.cell("collapse", one.name, config, code, lambda: {"made": "now"})
    assert collapse.there(one) == {"made": "now"}
    assert collapse.outdated([one]) == 0


def test_trl_is_asked_for_the_same_task_and_target() -> None:
    task = TASKS["sums"]
    row = next(row for row in tracking_rows(task) if row.trl_delta)
    asked, ours = trl_request(Cell(task=task, row=row, seed=3)), configured(task, rows(task)[0])
    assert asked["entropy"]["target"] == pytest.approx(task.target, abs=1e-4)
    assert (asked["prompts"], asked["samples"]) == (ours.batch.prompts, ours.rollout.samples_per_prompt)
    assert (asked["steps"], asked["lr"]) == (task.steps, ours.learner.lr)


def test_a_cell_belongs_to_its_toml_and_its_policy(tmp_path: Path) -> None:
    task = TASKS["countdown"]
    folder = tmp_path / "countdown"
    shutil.copytree(ROOT / "benchmarks/countdown", folder)
    copied = msgspec.structs.replace(task, toml=str(folder / "countdown.toml"))

    def where() -> str:
        collapse._files.cache_clear()
        return str(collapse._key(Cell(task=copied, row=rows(task)[0], seed=1))[0]["files"])

    first = where()
    assert where() == first
    with (folder / "countdown.toml").open("a") as toml:
        toml.write("# changed")
    second = where()
    with (folder / "policy/model.safetensors").open("ab") as weights:
        weights.write(b"0")
    assert len({first, second, where()}) == 3


def test_a_change_of_the_flagship_s_law_makes_no_other_row_again() -> None:
    """A row whose run has another law is not keyed by the flagship's, and every other row is."""
    for task in TASKS.values():
        for row in rows(task):
            law = configured(task, row).entropy.law
            code = collapse._key(Cell(task=task, row=row, seed=1))[1]
            assert ("controller/thermostat.py" in code) == isinstance(law, ThermostatLaw)
            assert "controller/updates.py" in code


def test_a_run_that_fails_says_which_and_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)broken failed with exit code 1: .*No such file"):
        own_process.run("broken", "benchmarks.collapse_run", {}, lambda asked, told: [f"{asked}.none", told])


def test_a_run_that_writes_nothing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="silent failed with exit code 0"):
        own_process.run("silent", "this", {}, lambda asked, told: [])
