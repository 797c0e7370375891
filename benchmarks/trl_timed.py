"""TRL's own GRPO on our task by the clock: when each step ended, and a stop at a deadline. One process of several.

    python -m benchmarks.trl_timed REQUEST.json RESULT.json
    python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.trl_timed REQUEST.json RESULT.json

The step is that of `benchmarks/trl_run.py`; `benchmarks/trl_ways.py` says how it is computed.
"""

import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import TrainerCallback

from benchmarks import trl_environment, trl_run, trl_vllm
from benchmarks.trl_request import TrlConfig
from benchmarks.trl_ways import Way


class TimedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: so many steps, or those begun before the deadline."""

    config: TrlConfig
    way: Way
    deadline_unix: float = 0.0  # 0: none


class TimedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run; each list has one value a step."""

    ended_unix: list[float]
    reward: list[float]
    entropy_nats: list[float]
    response_tokens: list[float]  # mean
    failed_verdicts: int  # of all processes


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Notes when steps end; after the deadline, one process's clock stops all."""

    def __init__(self, deadline_unix: float) -> None:
        self._deadline_unix = deadline_unix
        self.ended_unix: list[float] = []

    def on_step_end(self, _arguments: Any, _state: Any, control: Any, **_: Any) -> None:
        """After the optimizer's update."""
        self.ended_unix.append(time.time())
        if self._deadline_unix and total(float(time.time() >= self._deadline_unix)):
            control.should_training_stop = True


def total(value: float) -> float:
    """The sum over all processes."""
    if not torch.distributed.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    torch.distributed.all_reduce(shared)
    return float(shared.item())


def run(request: TimedRequest) -> TimedResult:
    """Trains, and saves the policy where the configuration says so."""
    config, way = request.config, request.way
    prompts = trl_run.load_task(config)
    scorer = trl_run.Scorer(config.tasks, prompts)
    sys.path.append(str(trl_environment.prepare()))  # last: what both have comes from the project's environment
    torch.set_num_threads(way.threads)
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    if way.mended:
        trl_vllm.mend()
    clock = Clock(request.deadline_unix)
    with tempfile.TemporaryDirectory() as directory:
        trainer = trl.GRPOTrainer(
            model=config.model,
            reward_funcs=scorer,
            args=trl.GRPOConfig(**arguments(config, way, directory)),
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": prompt.text, "prompt_id": prompt.id} for prompt in prompts.prompts]
            ),
            callbacks=[clock],
        )
        trainer.train()
        if config.save and trainer.is_world_process_zero():
            trainer.model.save_pretrained(config.save)
            trainer.processing_class.save_pretrained(config.save)
    made = msgspec.structs.replace(config, steps=len(clock.ended_unix))
    steps = trl_run.steps(trainer.state.log_history, made)
    return TimedResult(
        ended_unix=clock.ended_unix,
        reward=[step.reward for step in steps],
        entropy_nats=[step.entropy_nats for step in steps],
        response_tokens=[step.response_tokens for step in steps],
        failed_verdicts=int(total(scorer.failed)),
    )


def arguments(config: TrlConfig, way: Way, directory: str) -> dict[str, Any]:
    """The `GRPOConfig` of a run, by name."""
    split: dict[str, Any] = {
        "per_device_train_batch_size": way.microbatch,
        "gradient_accumulation_steps": config.prompts * config.samples // (way.microbatch * way.processes),
    }
    if way.processes > 1:
        split["ddp_backend"] = "gloo"
    return trl_run.arguments(config, directory) | split | way.options


def main(source: str, target: str) -> None:
    """Runs one request; the first process writes what came out, whole or not at all."""
    result = run(msgspec.json.decode(Path(source).read_bytes(), type=TimedRequest))
    if os.environ.get("RANK", "0") == "0":
        partial = Path(f"{target}.partial")
        partial.write_bytes(msgspec.json.encode(result))
        partial.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
