"""How many cores torch takes: Ray would leave it one."""

import os
from pathlib import Path

import pytest
import torch

from entrostat.actors.engine_setup import prepare_environment
from entrostat.learner.trainer import Trainer
from entrostat.learner.trainer_setup import chosen_threads
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import PolicyVersion
from entrostat.protocol.settings import EngineSettings, ModelSettings, RolloutSettings, SimulatedSettings, VllmSettings
from tests.tiny_policy import make_policy, make_prompts, make_stations


@pytest.mark.parametrize(
    ("wanted", "engine", "actors", "expected"),
    [
        (0, VllmSettings(threads=2), 2, 4),
        (0, SimulatedSettings(), 2, 6),
        (0, VllmSettings(threads=4), 2, 1),
        (5, VllmSettings(threads=4), 2, 5),
    ],
)
def test_the_learner_takes_the_cores_the_actors_leave(
    tmp_path: Path, wanted: int, engine: EngineSettings, actors: int, expected: int
) -> None:
    stations = make_stations(
        tmp_path,
        tmp_path,
        learner=LearnerSettings(threads=wanted),
        rollout=RolloutSettings(engine=engine, actors=actors),
    )
    assert chosen_threads(stations, 8) == expected
    # Ranks share what is left; a number that was asked for is each rank's.
    assert chosen_threads(stations, 8, 2) == (wanted or max(1, expected // 2))


def test_a_trainer_on_a_cpu_computes_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    # Recorded, not read back: where vLLM ran in this process, it has bound the threads and ignores the call.
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    stations = make_stations(
        make_policy(tmp_path / "policy"), tmp_path, learner=LearnerSettings(device="cpu"), rollout=RolloutSettings()
    )
    Trainer(stations, make_prompts(), PolicyVersion(branch=0, step=0), shared_memory=tmp_path).close()
    assert asked == [chosen_threads(stations, len(os.sched_getaffinity(0)))]


def test_an_engine_in_its_own_process_is_told_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "1"})
    prepare_environment(ModelSettings(path="m"), VllmSettings(threads=3))
    assert os.environ["OMP_NUM_THREADS"] == "1"
    prepare_environment(ModelSettings(path="m"), VllmSettings(threads=3, own_process=True))
    assert os.environ["OMP_NUM_THREADS"] == "3"
