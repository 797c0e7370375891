"""What may change of a run that goes on, and what is refused by name."""

import types
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from entrostat import config, resumable
from entrostat.config import RunConfig
from entrostat.protocol.errors import ConfigError
from entrostat.protocol.ranges import Settings
from tests.made_config import small_file

DETERMINISTIC = ("run.deterministic=true", "learner.device=cpu")


def leaves(kind: type[Settings], place: str = "") -> Iterator[str]:
    """Every setting there is, those of each kind of a section too."""
    if msgspec.structs.fields(kind) and kind.__struct_config__.tag is not None:
        yield f"{place}kind"
    for field in msgspec.structs.fields(kind):
        kinds = sections(field.type)
        for one in kinds:
            yield from leaves(one, f"{place}{field.name}.")
        if not kinds:
            yield f"{place}{field.name}"


def sections(kind: typing.Any) -> list[type[Settings]]:
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return [option for option in options if isinstance(option, type) and issubclass(option, Settings)]


def refused(tmp_path: Path, *overrides: str, begun: tuple[str, ...] = ()) -> str:
    file = small_file(tmp_path)
    before, after = config.load(file, begun), config.load(file, (*begun, *overrides))
    with pytest.raises(ConfigError) as caught:
        resumable.check(before, after, "runs/a")
    return str(caught.value)


def allowed(tmp_path: Path, *overrides: str, begun: tuple[str, ...] = ()) -> None:
    file = small_file(tmp_path)
    resumable.check(config.load(file, begun), config.load(file, (*begun, *overrides)), "runs/a")


def test_every_setting_is_in_exactly_one_table() -> None:
    found = set(leaves(RunConfig))
    assert {"run.seed", "rollout.engine.skill", "learner.lr", "entropy.law.kind", "learner.loss.clip_low"} <= found
    tables = (resumable.FIXED, resumable.DECIDING, resumable.FREE)
    listed = {place: sum(bool(resumable.entry(place, table)) for table in tables) for place in found}
    assert {place: count for place, count in listed.items() if count != 1} == {}
    entries = [key for table in tables for key in table]
    assert [key for key in entries if not any(place == key or place.startswith(f"{key}.") for place in found)] == []


def test_how_prompts_are_drawn_may_change_but_not_their_tasks_weights(tmp_path: Path) -> None:
    assert {"batch.sampling.kind", "batch.sampling.floor", "batch.sampling.prior"} <= set(leaves(RunConfig))
    (tmp_path / "a").mkdir()
    allowed(tmp_path / "a", "batch.sampling.kind=mixed_results", "batch.sampling.floor=0.2")
    file = small_file(tmp_path)
    before = config.load(file)
    tasks = tuple(msgspec.structs.replace(task, weight=1.0) for task in before.tasks)
    with pytest.raises(ConfigError, match=r"tasks\.0\.weight is 0\.0, and can't become 1\.0"):
        resumable.check(before, msgspec.structs.replace(before, tasks=tasks), "runs/a")


def test_all_that_may_not_change_is_refused_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, "run.seed=8", "run.steps=30", "tasks.0.size=64", "entropy.law.anchor=0.5", "learner.lr=1")
    assert "runs/a can't go on with 3 settings changed" in said
    assert "run.seed is 0, and can't become 8: the prompts' order" in said
    assert "tasks.0.size is 16, and can't become 64" in said
    assert "entropy.law.anchor is 0.7, and can't become 0.5: the anchor" in said
    assert len(said.splitlines()) == 4


def test_another_kind_is_named_by_its_kind_alone(tmp_path: Path) -> None:
    said = refused(tmp_path, "entropy.law.kind=fixed")
    assert 'entropy.law.kind is "thermostat", and can\'t become "fixed"' in said
    assert len(said.splitlines()) == 2


def test_a_list_that_grew_is_one_change(tmp_path: Path) -> None:
    task = '[{kind="reasoning_gym", dataset="chain_sum", size=16}]'
    assert "tasks is a list of 2, and can't become a list of 1" in refused(tmp_path, f"tasks={task}")


def test_what_may_change_may(tmp_path: Path) -> None:
    allowed(
        tmp_path,
        *("run.steps=30", "run.stall_seconds=900", "run.restarts=2", "rollout.actors=3", "rollout.max_staleness=3"),
        *("learner.lr=1e-3", "learner.schedule=cosine", "learner.ranks=2", "learner.loss.kind=gspo"),
        *("checkpoint.every_steps=7", "evaluation.samples=4", "batch.prompts=16", "verifier.processes=2"),
        'evaluation.tasks=[{kind="reasoning_gym", dataset="chain_sum", size=4, seed=9}]',
    )


@pytest.mark.parametrize("setting", ["rollout.actors=3", "learner.lr=1e-3", "checkpoint.every_steps=7"])
def test_a_deterministic_run_keeps_what_decides_its_course(tmp_path: Path, setting: str) -> None:
    assert "must equal an unbroken one" in refused(tmp_path, setting, begun=DETERMINISTIC)


def test_a_deterministic_run_may_get_longer_where_no_schedule_ends_with_it(tmp_path: Path) -> None:
    allowed(tmp_path, "run.steps=30", begun=DETERMINISTIC)


def test_a_deterministic_schedule_keeps_its_end(tmp_path: Path) -> None:
    begun = (*DETERMINISTIC, "learner.schedule=linear")
    assert "the linear schedule of learner.lr ends" in refused(tmp_path, "run.steps=30", begun=begun)


def test_a_setting_that_nothing_is_known_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"whether run\.colour may change"):
        resumable.why_not("run.colour", config.load(small_file(tmp_path)))


def test_recorded_steps_are_trained_again_only_as_they_were(tmp_path: Path) -> None:
    recorded, folders = ("run.record_samples=true",), [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    said = refused(folders[0], "learner.lr=0.5", begun=recorded)
    assert "learner.lr" in said
    assert "trained again first" in said
    allowed(folders[1], "learner.lr=0.5", "run.record_samples=false", begun=recorded)
    allowed(folders[2], "learner.rank_seconds=99.0", begun=recorded)
