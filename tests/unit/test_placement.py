"""How a cluster's GPUs are shared out."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from entrostat.config import load, stations
from entrostat.placement import gpu_shares
from entrostat.protocol.errors import ConfigError, ResourceError
from entrostat.protocol.settings import Stations


def run_of(repository: Path, file: str, *overrides: str) -> Stations:
    return stations(load(repository / "deploy/runs" / file, overrides), "/nowhere")


def test_the_one_gpu_example_shares_one(repository: Path) -> None:
    assert gpu_shares(run_of(repository, "gsm8k-qwen3-0.6b.toml"), 1.0) == (0.5, 0.5)


def test_what_computes_on_a_cpu_takes_none(repository: Path) -> None:
    assert gpu_shares(run_of(repository, "quickstart.toml"), 8.0) == (0.0, 0.0)
    assert gpu_shares(run_of(repository, "simulated.toml", "learner.device=auto"), 8.0) == (1.0, 0.0)


def test_without_gpus_nobody_asks_for_one(repository: Path) -> None:
    assert gpu_shares(run_of(repository, "gsm8k-qwen3-0.6b.toml"), 0.0) == (0.0, 0.0)


def test_each_rank_of_the_learner_takes_its_gpus(repository: Path) -> None:
    shared = ("learner.transport=shared_memory", "rollout.gpus=1")
    run = run_of(repository, "gsm8k-qwen3-0.6b.toml", "learner.ranks=3", "learner.gpus=1", *shared)
    assert gpu_shares(run, 4.0) == (1.0, 1.0)
    assert gpu_shares(run, 0.0) == (0.0, 0.0)
    with pytest.raises(ResourceError, match=r"3 ranks of the learner \(1 each\) and 1 .* for 4 GPUs"):
        gpu_shares(run, 3.0)


def test_ranks_that_would_share_a_gpu_are_refused(repository: Path) -> None:
    run = run_of(repository, "gsm8k-qwen3-0.6b.toml", "learner.transport=shared_memory")
    run = replace(run, learner=replace(run.learner, ranks=2))  # a configuration that says so does not load
    with pytest.raises(ConfigError, match=r"learner\.ranks = 2 and learner\.gpus = 0\.5: NCCL lets no two"):
        gpu_shares(run, 8.0)
    assert gpu_shares(run, 0.0) == (0.0, 0.0)


def test_more_than_there_is_is_refused_with_what_was_asked_for(repository: Path) -> None:
    run = run_of(
        repository, "gsm8k-qwen3-0.6b.toml", "rollout.actors=3", "learner.transport=shared_memory", "learner.gpus=1"
    )
    with pytest.raises(ResourceError, match=r"the learner \(1\) and 3 rollout actors \(0.5 each\) ask for 2.5 GPUs"):
        gpu_shares(run, 2.0)
