"""A run that goes on has the training prompts it was begun with, or is refused."""

import logging
from pathlib import Path

import msgspec
import pytest

from entrostat import config as configs
from entrostat import directory as directories
from entrostat import job, prompt_record
from entrostat.protocol.errors import RunDirectoryError, TaskError
from entrostat.protocol.messages import Prompt
from tests.made_tables import Row, jsonl


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(id=number, name=f"sums:{number}", level="sums", task=0, text=f"{number}?", answer="1", entry="")
        for number in range(count)
    ]


def changed(prompts: list[Prompt], index: int, **what: object) -> list[Prompt]:
    return [msgspec.structs.replace(one, **what) if number == index else one for number, one in enumerate(prompts)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / prompt_record.FILE).write_bytes(prompt_record.record(prompts(100)))
    return tmp_path


def test_the_same_prompts_go_on(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt_record.check(run, prompts(100))
    assert not caplog.records


@pytest.mark.parametrize("field", ["name", "level", "text", "answer", "entry"])
def test_a_prompt_that_differs_in_anything_is_named(run: Path, field: str) -> None:
    other = changed(prompts(100), 41, **{field: "other"})
    with pytest.raises(TaskError, match=rf"\(100 prompts\): the first that differ are {other[41].name}\. .* old data"):
        prompt_record.check(run, other)


def test_a_prompt_of_another_task_is_another(run: Path) -> None:
    with pytest.raises(TaskError, match="differ are sums:7"):
        prompt_record.check(run, changed(prompts(100), 7, task=1))


def test_a_row_put_in_between_names_where_ids_shift(run: Path) -> None:
    shifted = [*prompts(50), prompts(60)[55], *prompts(100)[50:]]
    with pytest.raises(
        TaskError, match=r"\(100 prompts, now 101\): the first that differ are sums:55, sums:50, sums:51\."
    ):
        prompt_record.check(run, shifted)


def test_rows_added_or_taken_at_the_end_are_said(run: Path) -> None:
    with pytest.raises(TaskError, match=r"100 prompts, now 103.: from sums:100 on they are new"):
        prompt_record.check(run, prompts(103))
    with pytest.raises(TaskError, match=r"100 prompts, now 98.: the last are gone"):
        prompt_record.check(run, prompts(98))


def test_a_run_of_an_earlier_release_goes_on_with_a_warning_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prompt_record.check(tmp_path, prompts(3))
        prompt_record.check(tmp_path, prompts(3))
    assert len(caplog.records) == 1
    assert "has no prompts.npy" in caplog.text
    with pytest.raises(TaskError):
        prompt_record.check(tmp_path, prompts(4))


def test_a_run_whose_data_changed_is_not_gone_on_with(repository: Path, tmp_path: Path) -> None:
    rows: list[Row] = [{"question": f"{number}?", "answer": number} for number in range(16)]
    task = f'tasks=[{{kind = "jsonl", path = "{jsonl(tmp_path, rows).path}"}}]'
    changes = [task, "evaluation.tasks=[]", "evaluation.every_steps=0"]
    config = configs.load(repository / "deploy/runs/simulated.toml", changes)
    _, read, training = job.prepare(config, tmp_path / "run")
    record = {prompt_record.FILE: prompt_record.record(read.prompts[:training])}
    directories.create(tmp_path / "run", configs.effective_toml(config), keep_earlier=False, files=record).close()
    jsonl(tmp_path, [*rows[:5], {"question": "new", "answer": 1}, *rows[5:]])
    unseen = 'evaluation.tasks=[{kind = "reasoning_gym", dataset = "chain_sum", size = 4}]'
    with pytest.raises(TaskError, match=r"\(16 prompts, now 17\): .* problems.jsonl:6, problems.jsonl:7, problems"):
        job.resume(tmp_path / "run", [unseen], address="local", began=0.0)
    assert (tmp_path / "run/branch").read_text() == "0\n"
    jsonl(tmp_path, rows)
    _, read, training = job.prepare(configs.load(tmp_path / "run/config.toml", [unseen]), tmp_path / "run")
    assert len(read.prompts) == training + 4
    prompt_record.check(tmp_path / "run", read.prompts[:training])


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00"])
def test_a_damaged_record_is_said(run: Path, content: bytes) -> None:
    (run / prompt_record.FILE).write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"prompts.npy can't be read"):
        prompt_record.check(run, prompts(100))
