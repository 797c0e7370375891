"""Two of the faults of `make chaos`, on the simulated engine: who holds the state dies, and who holds the samples."""

from pathlib import Path

import pytest

from entrostat.rows import read_metrics
from tests.chaos.living import tear
from tests.chaos.proof import prove, replay
from tests.real_runs import DEADLINE_SECONDS, station, steps, under_way, wait

LAST = 18
SETTINGS = (
    f"run.steps={LAST}",
    "evaluation.tasks=[]",
    "rollout.lease_seconds=3",
    "rollout.engine.tokens_per_second=10000",
    "verifier.deadline_seconds=3",
    "run.stall_seconds=60",
)


@pytest.fixture
def config(repository: Path) -> str:
    return str(repository / "deploy/runs/simulated.toml")


def test_a_controller_killed_in_the_midst_of_a_record_goes_on_where_it_was(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with under_way(tmp_path, config, "--run", "run", until=6, settings=SETTINGS) as process:
        controller = station(process, "ControllerAct")
        controller.suspend()
        segment = max((run / "journal").glob("*.journal"), key=lambda path: path.stat().st_mtime)
        torn = tear(segment)
        controller.kill()
        wait(lambda: 11 in steps(run), process)
        station(process, "ControllerAct").kill()
        said, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, said + errors
    assert said.count("the controller died and is restarted: its journal is read again") == 2, said
    prove(run, LAST)
    assert f"the last {torn:,} bytes are void" in " ".join(replay(run).stdout.split())
    assert {row.branch for row in read_metrics(run / "metrics.jsonl")} == {0}


def test_what_lay_in_a_killed_sample_buffer_is_sampled_again_and_nothing_is_trained_twice(
    config: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with under_way(tmp_path, config, "--run", "run", until=6, settings=SETTINGS) as process:
        station(process, "BufferActor").kill()
        wait(lambda: 11 in steps(run), process)
        station(process, "BufferActor").kill()
        said, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, said + errors
    assert "the sample buffer died and is restarted: its groups are sampled again" in said, said
    prove(run, LAST)
