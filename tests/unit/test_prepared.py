"""What is only known once the tasks are read is refused before a run directory exists."""

from pathlib import Path

import pytest

from entrostat import config as configs
from entrostat import job
from entrostat.protocol.errors import ConfigError, TaskError
from tests.made_tables import Row, jsonl

ROWS: list[Row] = [{"question": f"{number}?", "answer": number} for number in range(20)]
SPOILT: list[Row] = [*ROWS, *({"question": f"{number}?", "answer": None} for number in range(80))]


def of_rows(tmp_path: Path, *more: str) -> tuple[Path, list[str]]:
    """The simulated run on a table of which most rows are bad, which only reading tells."""
    path = jsonl(tmp_path, SPOILT).path
    task = f'{{kind = "jsonl", path = "{path}", bad_rows = "skip"{"".join(more)}}}'
    return tmp_path / "run", [f"tasks=[{task}]", "evaluation.tasks=[]", "evaluation.every_steps=0"]


def test_a_weight_without_a_turn_in_an_epoch_is_refused(repository: Path, tmp_path: Path) -> None:
    run, changes = of_rows(tmp_path, ", weight = 50.0")
    rare = '{kind = "reasoning_gym", dataset = "chain_sum", size = 4, weight = 1.0}'
    changes[0] = f"{changes[0].removesuffix(']')}, {rare}]"
    config = configs.load(repository / "deploy/runs/simulated.toml", changes)  # 100 rows would have been enough
    with pytest.raises(TaskError, match="less than one"):
        job.prepare(config, run)
    assert not run.exists()


def test_fewer_prompts_than_an_order_takes_are_refused(repository: Path, tmp_path: Path) -> None:
    run, changes = of_rows(tmp_path)
    config = configs.load(repository / "deploy/runs/simulated.toml", [*changes, "batch.prompts=50"])
    with pytest.raises(ConfigError, match="the tasks hold 20"):
        job.prepare(config, run)
    assert not run.exists()
