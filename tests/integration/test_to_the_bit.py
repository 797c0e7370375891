"""What a resumed run owes to the one that was killed: the same bits, or the same steps."""

from pathlib import Path

import pytest

from entrostat.learner import checkpoint
from entrostat.rows import MetricsRow, read_metrics
from tests.real_runs import branches, entrostat, killed, steps, train, under_way

QUICK = ("evaluation.tasks=[]", "run.steps=11")
SLOW = "rollout.engine.tokens_per_second=20000"


@pytest.fixture
def config(repository: Path) -> str:
    return str(repository / "deploy/runs/simulated.toml")


def learnt(run: Path) -> list[tuple[float, ...]]:
    """What a row says of the policy and of the law; not when, and not by which branch."""

    def of(row: MetricsRow) -> tuple[float, ...]:
        return (row.step, row.reward, row.entropy_nats, row.coefficient, row.loss, row.gradient_norm, *row.difficulty)

    return [of(row) for row in read_metrics(run / "metrics.jsonl")]


def weights(run: Path) -> bytes:
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    return (newest / "policy/model.safetensors").read_bytes()


def test_a_deterministic_run_that_was_killed_equals_an_unbroken_one_to_the_bit(config: str, tmp_path: Path) -> None:
    settings = (*QUICK, SLOW, "run.deterministic=true", "checkpoint.every_steps=4", "rollout.actors=2")
    done = train(tmp_path, config, "--run", "unbroken", settings=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    with under_way(tmp_path, config, "--run", "run", until=6, settings=settings) as process:
        killed(process)
    done = train(tmp_path, "--resume", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert branches(tmp_path / "run") == [0] * 4 + [1] * 7
    assert learnt(tmp_path / "run") == learnt(tmp_path / "unbroken")
    assert weights(tmp_path / "run") == weights(tmp_path / "unbroken")


def test_a_run_with_recorded_samples_goes_on_from_its_last_step_and_its_journal_tells_so(
    config: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = (*QUICK, SLOW, "run.record_samples=true", "checkpoint.every_steps=50")
    with under_way(tmp_path, config, "--run", "run", until=5, settings=settings) as process:
        killed(process)
    before = read_metrics(run / "metrics.jsonl")
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:-2]))  # as if the kill had come before the last two rows
    done = train(tmp_path, "--resume", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(before)} recorded steps were trained again, to the same weights" in done.stdout
    assert steps(run) == list(range(1, 12))
    after = read_metrics(run / "metrics.jsonl")
    assert [(row.step, row.loss, row.reward) for row in after[: len(before)]] == [
        (row.step, row.loss, row.reward) for row in before
    ]
    assert branches(run) == [0] * len(before) + [1] * (11 - len(before))
    told = entrostat(tmp_path, "replay", "run")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "every command and coefficient as recorded" in told.stdout
    damaged_journals_are_found(tmp_path)


def damaged_journals_are_found(folder: Path) -> None:
    """Each real run costs seconds: this is of the same one."""
    shown = entrostat(folder, "replay", "run", "--to-step", "3")
    assert shown.returncode == 0, shown.stderr
    assert "branch 0, step 3" in shown.stdout
    beyond = entrostat(folder, "replay", "run", "--to-step", "99")
    assert (beyond.returncode, "the journal has steps 0 to 11" in beyond.stderr) == (2, True), beyond.stderr
    journal = folder / "run/journal/0.0.journal"
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    told = entrostat(folder, "replay", "run")
    assert told.returncode == 1
    assert "0.0.journal is damaged at byte" in told.stderr
    assert "Traceback" not in told.stderr
