"""`entrostat eval` measures in one process, whatever way weights take in training."""

from pathlib import Path

import msgspec

from entrostat import preflight
from entrostat.config import load
from entrostat.evaluate import measure
from entrostat.job import read_prompts


def test_a_configuration_with_ipc_is_evaluated_through_shared_memory(repository: Path, starter: Path) -> None:
    overrides = ["rollout.engine.kind=simulated", "learner.device=cpu", "learner.threads=1", "tasks.0.size=64"]
    config = load(repository / "deploy/runs/quickstart.toml", overrides)
    learner = msgspec.structs.replace(config.learner, transport="ipc")
    model = msgspec.structs.replace(config.model, path=str(preflight.find_model(str(starter))))
    config = msgspec.structs.replace(config, learner=learner, model=model)
    prompts, training = read_prompts(config, starter)
    result = measure(config, msgspec.structs.replace(prompts, prompts=prompts.prompts[: training + 2]), training, 2)
    assert len(result.correct) == 2
