"""The rows of the comparison: each is a configuration that loads, and says what its name says."""

import shutil
from pathlib import Path

import msgspec
import pytest

from benchmarks import collapse, own_process
from benchmarks.cells import ROOT
from benchmarks.collapse import planned, request, trl_request
from benchmarks.collapse_report import Cell
from benchmarks.collapse_rows import PAIRED, PAIRED_SEEDS, SEEDS, TASKS, Row, Task, rows, tracking_rows
from entrostat import config as configs
from entrostat.config import RunConfig
from entrostat.protocol.entropy_settings import AnchoredLaw, BandLaw, BangBangLaw, FixedLaw, ThermostatLaw

EVERY = [
    pytest.param(task, row, id=f"{task.name}-{row.name}") for task in TASKS.values() for row in rows(task) if row.scored
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
    cells = planned(list(TASKS.values()))
    for task in TASKS.values():
        for row in rows(task):
            seeds = {one.seed for one in cells if one.task.name == task.name and one.row.name == row.name}
            assert seeds == set(PAIRED_SEEDS if row.name in PAIRED else SEEDS)
    assert len({one.name for one in cells}) == len(cells)


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


def test_a_run_that_fails_says_which_and_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)broken failed with exit code 1: .*No such file"):
        own_process.run("broken", "benchmarks.collapse_run", {}, lambda asked, told: [f"{asked}.none", told])


def test_a_run_that_writes_nothing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="silent failed with exit code 0"):
        own_process.run("silent", "this", {}, lambda asked, told: [])
