"""What `entrostat eval` is asked to do: which model, on which prompts, with which settings. Nothing is started here."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from entrostat import config as configs
from entrostat import preflight
from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.config import RunConfig
from entrostat.job import read_prompts
from entrostat.learner import checkpoint as checkpoints
from entrostat.protocol.errors import ConfigError, RunDirectoryError
from entrostat.protocol.messages import PolicyVersion, Prompt
from entrostat.protocol.settings import SimulatedSettings
from entrostat.task_specs import PREFIX, tasks_of


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The command line."""

    model: str  # a folder, a hub name, a run directory, or one of its checkpoints
    config: Path | None = None
    tasks: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    samples: int | None = None
    k: tuple[int, ...] | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    limit: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is evaluated."""

    model: str  # as the user calls it
    version: PolicyVersion  # of a run's checkpoint; 0.0 of any other model
    config: RunConfig  # with the model's folder in it
    prompts: tuple[Prompt, ...]
    trained_levels: frozenset[str]
    samples: int
    notes: tuple[str, ...]


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    version: PolicyVersion
    config: Path | None


def prepare(asked: Asked) -> Job:
    """Finds the model, the settings and the prompts.

    Raises:
        BadInput: one of them won't do.
    """
    if asked.limit < 0:
        raise ConfigError(f"--limit is {asked.limit}; expected a number of prompts from 1 on, of each task")
    found = find(asked.model, asked.config)
    task_settings = [text for text in asked.overrides if text.startswith(PREFIX)]
    if task_settings and not asked.tasks:
        raise ConfigError(f"--set {task_settings[0]} says something of tasks that --task names, and there are none")
    overrides = _overrides(asked)
    if found.config is not None:
        config = configs.load(found.config, overrides)
    elif asked.tasks:
        config = _without_file(found.path, overrides)
    else:
        raise ConfigError(
            f"{asked.model} is no run directory, so something must say what to evaluate on: --task FILE.jsonl, "
            "--task reasoning_gym:DATASET, --task huggingface:NAME, or --config with the TOML that has [evaluation]"
        )
    if asked.tasks:
        named = tasks_of(asked.tasks, task_settings, asked.limit)
        evaluation = msgspec.structs.replace(config.evaluation, tasks=named)
        config = msgspec.structs.replace(config, tasks=(), evaluation=evaluation)
    elif not config.evaluation.tasks:
        raise ConfigError("the configuration has no [[evaluation.tasks]]: name what to evaluate on, there or by --task")
    if isinstance(config.rollout.engine, SimulatedSettings):
        raise ConfigError("the simulated engine makes its answers up: evaluate with --set rollout.engine.kind=vllm")
    folder = preflight.find_model(found.path, trust_remote_code=config.model.trust_remote_code)
    model = msgspec.structs.replace(config.model, path=str(folder))
    config = msgspec.structs.replace(config, model=model)
    prompts, levels, notes = _prompts(config, folder)
    return Job(
        model=asked.model,
        version=found.version,
        config=config,
        prompts=_limited(prompts, asked.limit),
        trained_levels=levels,
        samples=config.evaluation.samples,
        notes=notes,
    )


def find(model: str, config: Path | None) -> _Found:
    """Where the model's folder is, what version it is, and what configuration belongs to it, if any.

    Raises:
        RunDirectoryError: a run directory holds no checkpoint.
        CheckpointDamaged: the checkpoint changed since it was saved.
    """
    directory = Path(model).expanduser()
    if (directory / "config.toml").is_file():
        newest = checkpoints.newest(directory / "checkpoints")
        if newest is None:
            raise RunDirectoryError(
                f"{model} holds no checkpoint yet: wait for its first one, or name a model's folder"
            )
        directory = newest
    if not ((directory / "policy").is_dir() and (directory / "manifest.json").is_file()):
        return _Found(path=model, version=PolicyVersion(branch=0, step=0), config=config)
    manifest = checkpoints.verify(directory)
    own = directory.absolute().parent.parent / "config.toml"
    return _Found(
        path=str(directory / "policy"),
        version=PolicyVersion(branch=manifest.branch, step=manifest.step),
        config=config or (own if own.is_file() else None),
    )


def _overrides(asked: Asked) -> list[str]:
    """The options of the command line as settings; they are the last word."""
    given: list[tuple[str, Any]] = [
        ("evaluation.samples", asked.samples),
        ("evaluation.k", None if asked.k is None else list(asked.k)),
        ("evaluation.temperature", asked.temperature),
        ("rollout.max_response_tokens", asked.max_tokens),
    ]
    settings = [text for text in asked.overrides if not text.startswith(PREFIX)]
    return [*settings, *(f"{key}={value}" for key, value in given if value is not None)]


def _without_file(model: str, overrides: Sequence[str]) -> RunConfig:
    """Settings of a model that no TOML speaks of."""
    table: dict[str, Any] = {
        "run": {"steps": 1, "name": "evaluation"},
        "model": {"path": model},
        "tasks": [],
        "rollout": {"engine": {"kind": "vllm"}},
        "verifier": {"processes": max(1, len(os.sched_getaffinity(0)) // 2)},
    }
    config = configs.of_table(table, overrides)
    if any(text.replace(" ", "").startswith("model.dtype=") for text in overrides):
        return config
    folder = preflight.find_model(model, trust_remote_code=config.model.trust_remote_code)
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, dtype=own_dtype(folder)))


def own_dtype(folder: Path) -> str:
    """What the weights of a model are best computed in: bfloat16 for those saved in half precision."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told = settings.get("dtype") or settings.get("torch_dtype") or ""
    return "bfloat16" if told in ("bfloat16", "float16") else "float32"


def _prompts(config: RunConfig, folder: Path) -> tuple[tuple[Prompt, ...], frozenset[str], tuple[str, ...]]:
    """The prompts, the levels a run trains on, and what the user should know of them."""
    if config.tasks:
        whole, training = read_prompts(config, folder)
        levels = frozenset(prompt.level for prompt in whole.prompts[:training])
        return whole.prompts[training:], levels, ()
    tokenizer = HuggingFaceTokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    load = partial(load_prompts, tokenizer=tokenizer, context_tokens=preflight.context_tokens(config, folder))
    prompts = load(config.evaluation.tasks, chat=tokenizer.chat if tokenizer.has_chat_template else None).prompts
    plain = tokenizer.has_chat_template and not all(task.chat for task in config.evaluation.tasks)
    note = "the model has a chat template, and the prompts do without: --set task.chat=true has them use it"
    return prompts, frozenset(), (note,) if plain else ()


def _limited(prompts: Sequence[Prompt], limit: int) -> tuple[Prompt, ...]:
    """The first `limit` prompts of each task; all, if it is 0."""
    seen: dict[int, int] = {}
    kept = []
    for prompt in prompts:
        seen[prompt.task] = seen.get(prompt.task, 0) + 1
        if not limit or seen[prompt.task] <= limit:
            kept.append(prompt)
    return tuple(kept)
