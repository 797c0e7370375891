"""TRL's own GRPO with its adaptive entropy, on our tasks: the trainer one would take instead, in a process of its own.

    python -m benchmarks.trl_run --config FILE.json --out FILE.json

The configuration is a `TrlConfig`, the result a `TrlResult`. Prompts and verdicts come from our own code, so that the
task is the same to the last character; the rest is TRL's: sampling (transformers' `generate`), loss, optimizer, law.

What `use_adaptive_entropy` does in TRL 1.16 (`GRPOTrainer._compute_loss`, after Skywork-OR1, arXiv 2505.22312). Step k
measures H_k: the full entropy of softmax(z / T), T the sampling temperature, of the policy before update k, its mean
over all completion tokens of the step's whole batch that have a policy loss. Then

    bonus that acts at step k:   β_k = c_k · 1[H_{k−1} ≤ H*], with H_0 = ∞: step 1 has none
    after H_k is measured:       c_{k+1} = min(c_k + δ, c_max) if H_k ≤ H*, else max(c_k − δ, c_min)
    loss of a micro-batch:       policy loss − β_k · (mean of H over its tokens) / (number of micro-batches)

The bonus acts one step after the measurement that allows it, whole or not at all. The coefficient moves by δ however
far off the entropy is, so it takes c / δ steps to where it balances, and as many back; meanwhile the gate alone limits
it. Over micro-batches of unequal length the bonus is a mean of means; H_k is not. TRL logs c_{k+1} at step k.
Its defaults: c_1 = 0, δ = 0.005, box [0, 1], H* = 0.2 nats.

Set as ours is: no KL term, PPO clip 0.2, one update a batch, policy loss averaged over the batch's tokens (`dapo`),
AdamW without decay, gradient clip, constant rate, float32, truncated responses left out of every term. What stays
different: TRL samples on-policy, and divides advantages by the sample's deviation + 1e-4 where we take the
population's: 3 % smaller advantages at 16 samples.
"""

import argparse
import importlib
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import trl_environment
from benchmarks.trl_request import TrlConfig, TrlResult, TrlStep, read_config
from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.actors.verifiers.judge import Judge
from entrostat.protocol.errors import ConfigError, EntrostatError, ModelError, NumericsError, RunDirectoryError
from entrostat.protocol.messages import Prompt, PromptSet
from entrostat.protocol.task_settings import TaskSettings

# ── the same task ────────────────────────────────────────────────────────────────────────────────────────────────────


class Scorer:
    """Our verdicts as TRL asks for them; `failed` counts the scorers that raised."""

    __name__ = "entrostat"  # TRL names its metrics after it

    def __init__(self, tasks: Sequence[TaskSettings], prompts: PromptSet) -> None:
        self._judge = Judge(tasks)
        self._prompts = prompts.prompts
        self.failed = 0

    def __call__(self, *, completions: list[str], prompt_id: list[int], **_: object) -> list[float]:
        """The rewards of completions, each to the prompt of the same place."""
        verdicts = [
            self._judge.verify(self._prompts[id], text) for id, text in zip(prompt_id, completions, strict=True)
        ]
        self.failed += sum(verdict.status == "error" for verdict in verdicts)
        return [verdict.reward for verdict in verdicts]


def load_task(config: TrlConfig) -> PromptSet:
    """The prompts, as our actors read them.

    Raises:
        TaskError: a task can't be loaded.
        ConfigError: there are fewer prompts than one step takes.
    """
    tokenizer = HuggingFaceTokenizer(config.model)
    found = load_prompts(config.tasks, chat=tokenizer.chat if tokenizer.has_chat_template else None)
    if len(found.prompts) < config.prompts:
        raise ConfigError(f"the tasks have {len(found.prompts)} prompts, a step takes prompts = {config.prompts}")
    return found


# ── TRL ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def arguments(config: TrlConfig, directory: str) -> dict[str, Any]:
    """The `GRPOConfig` of a run, by name."""
    batch = config.prompts * config.samples
    microbatch = config.microbatch_samples or batch
    law: dict[str, Any] = {}
    if config.entropy:
        law = {
            "use_adaptive_entropy": True,
            "entropy_target": config.entropy.target,
            "entropy_coef": config.entropy.initial,
            "entropy_coef_delta": config.entropy.delta,
            "entropy_coef_min": config.entropy.floor,
            "entropy_coef_max": config.entropy.ceiling,
        }
    return {
        "output_dir": directory,
        "seed": config.seed,
        "max_steps": config.steps,
        "per_device_train_batch_size": microbatch,
        "gradient_accumulation_steps": batch // microbatch,
        "num_generations": config.samples,
        "max_completion_length": config.max_response_tokens,
        "temperature": config.temperature,
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "weight_decay": 0.0,
        "max_grad_norm": config.gradient_clip,
        "beta": 0.0,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "mask_truncated_completions": config.truncated == "mask",
        "disable_dropout": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,  # TRL's default; it halves memory nobody is short of here
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **law,
    }


def run(config: TrlConfig) -> TrlResult:
    """Trains, and saves the policy where the configuration says so.

    Raises:
        BadInput: the task, the model or TRL's packages can't be had.
        NumericsError: a step's entropy or reward is not finite.
    """
    prompts = load_task(config)
    scorer = Scorer(config.tasks, prompts)
    trl, datasets = _libraries(config.threads)
    with tempfile.TemporaryDirectory() as directory:
        trainer = trl.GRPOTrainer(
            model=config.model,
            reward_funcs=scorer,
            args=trl.GRPOConfig(**arguments(config, directory)),
            train_dataset=datasets.Dataset.from_list([_row(prompt) for prompt in prompts.prompts]),
        )
        _check_tokens(config.model, trainer.processing_class, prompts)
        trainer.train()
    log: list[dict[str, Any]] = trainer.state.log_history
    if config.save:
        trainer.model.save_pretrained(config.save)
        trainer.processing_class.save_pretrained(config.save)
    return TrlResult(
        trl=trl.__version__,
        config=config,
        steps=steps(log, config),
        seconds=log[-1]["train_runtime"],
        failed_verdicts=scorer.failed,
    )


def steps(log: Sequence[dict[str, Any]], config: TrlConfig) -> tuple[TrlStep, ...]:
    """TRL's log, one entry a step and one at the end, as steps.

    Raises:
        NumericsError: a value is not finite (TRL writes None), or steps are missing.
    """
    law = config.entropy
    found: list[TrlStep] = []
    bonus, coefficient = 0.0, law.initial if law else 0.0
    for entry in log:
        if "entropy" not in entry:
            continue
        measured = [entry[name] for name in ("entropy", "reward", "grad_norm")]
        if any(value is None or not math.isfinite(value) for value in measured):
            raise NumericsError(f"TRL's step {entry['step']}: entropy, reward, gradient norm are {measured}: lower lr")
        coefficient = entry["entropy_coef"] if law else 0.0
        found.append(
            TrlStep(
                step=entry["step"],
                entropy_nats=entry["entropy"],
                bonus=bonus,
                coefficient=coefficient,
                reward=entry["reward"],
                response_tokens=entry["completions/mean_length"],
                truncated_share=entry["completions/clipped_ratio"],
                seconds=entry["step_time"],
            )
        )
        bonus = coefficient if law and entry["entropy"] <= law.target else 0.0
    if len(found) != config.steps:
        raise NumericsError(f"TRL logged {len(found)} of {config.steps} steps with an entropy: was its batch empty?")
    return tuple(found)


def _libraries(threads: int) -> tuple[Any, Any]:
    """TRL and datasets, imported from their own folder, behind everything else."""
    folder = str(trl_environment.prepare())
    if folder not in sys.path:
        sys.path.append(folder)
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", CUDA_VISIBLE_DEVICES="")
    import torch

    torch.set_num_threads(threads)
    return importlib.import_module("trl"), importlib.import_module("datasets")


def _row(prompt: Prompt) -> dict[str, Any]:
    return {"prompt": prompt.text, "prompt_id": prompt.id}


def _check_tokens(model: str, theirs: Any, prompts: PromptSet) -> None:
    """TRL must read the prompts as we do: a tokenizer that adds special tokens makes another task of it."""
    text = prompts.prompts[0].text
    ours = HuggingFaceTokenizer(model).encode(text).tolist()
    if theirs(text)["input_ids"] != ours:
        raise ModelError(
            f"the tokenizer of {model} adds tokens to a prompt for TRL, and none for us: no fair comparison"
        )


def _check_places(*places: Path) -> None:
    """Before the work: what comes out must have somewhere to go."""
    for place in places:
        if not place.parent.is_dir():
            raise RunDirectoryError(f"{place} can't be written: there is no folder {place.parent}; make it first")


def main(given: Sequence[str] | None = None) -> int:
    """Runs one configuration; the result is written whole or not at all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trl_run", description="GRPO by TRL, on our task")
    parser.add_argument("--config", type=Path, required=True, help="JSON of a TrlConfig")
    parser.add_argument("--out", type=Path, required=True, help="where the JSON of a TrlResult goes")
    chosen = parser.parse_args(given)
    try:
        config = read_config(chosen.config)
        _check_places(chosen.out, Path(config.save))
        content = msgspec.json.encode(run(config))
        partial = chosen.out.with_name(f".{chosen.out.name}.{os.getpid()}")
        partial.write_bytes(content + b"\n")
        partial.replace(chosen.out)
    except EntrostatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
