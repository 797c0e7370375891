"""One TOML file = one frozen `RunConfig`; each of its errors says where it is, what came, and what is allowed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from entrostat import toml
from entrostat.contradictions import contradictions, tries_problem, untrue_of_a_run
from entrostat.protocol.entropy_settings import EntropySettings
from entrostat.protocol.errors import ConfigError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.ranges import Count, CountOrZero, Port, Seconds, Settings, Temperature
from entrostat.protocol.settings import BatchSettings, ModelSettings, RolloutSettings, Stations, VerifierSettings
from entrostat.protocol.task_settings import HuggingFace, Jsonl, Parquet, TaskSettings
from entrostat.validate import Problem, problems, with_kinds


class RunSettings(Settings, frozen=True, kw_only=True):
    """What is run, and for how long."""

    steps: Count  # optimizer steps
    name: str = ""  # default: the TOML's file name
    directory: str = "runs"  # the run lies in DIRECTORY/NAME, seen from where the command is called
    seed: CountOrZero = 0
    deterministic: bool = False  # killed and resumed it equals an unbroken run to the bit; slower
    stall_seconds: Seconds = 600.0  # without an optimizer step the run ends with exit code 3
    # So often the run goes on by itself from its newest checkpoint after a station was lost.
    restarts: CountOrZero = 0
    record_samples: bool = False  # keep what was trained on, so that a resumed run can make its last steps again


class EvaluationSettings(Settings, frozen=True, kw_only=True):
    """What the policy is measured on: before, after, and in between."""

    every_steps: CountOrZero = 0  # 0: only before and after
    samples: Count = 8  # per prompt
    k: tuple[Count, ...] = ()  # of pass@k and maj@k, none above `samples`; (): the powers of two
    temperature: Temperature = 1.0
    reproducible: bool = True  # draw each prompt's samples by its own seed; vLLM is a fifth slower then
    tasks: tuple[TaskSettings, ...] = ()


class CheckpointSettings(Settings, frozen=True, kw_only=True):
    """How much of a run survives it."""

    every_steps: Count = 50  # and at the end
    keep: Count = 2  # the newest; the best by evaluation is kept besides


class MonitorSettings(Settings, frozen=True, kw_only=True):
    """Where a run can be watched."""

    host: str = "127.0.0.1"  # metrics and health
    port: Port = 0  # 0 takes a free one; run.json names it
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()


class ReportSettings(Settings, frozen=True, kw_only=True):
    """What is written down for people to read."""

    samples_per_step: CountOrZero = 4


class RunConfig(Settings, frozen=True, kw_only=True):
    """A whole run."""

    run: RunSettings
    model: ModelSettings
    tasks: tuple[TaskSettings, ...]
    batch: BatchSettings = BatchSettings()
    rollout: RolloutSettings = RolloutSettings()
    verifier: VerifierSettings = VerifierSettings()
    entropy: EntropySettings = EntropySettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    monitor: MonitorSettings = MonitorSettings()
    report: ReportSettings = ReportSettings()


def load(path: str | Path, overrides: Sequence[str] = (), *, to_run: bool = False) -> RunConfig:
    """The configuration in a TOML file, with `section.key=value` overrides applied; its paths made absolute.

    Paths in the file are seen from the file's own folder. Settings that a simulation alone can keep are wrong in one
    that is `to_run`.

    Raises:
        ConfigError: the file is missing or no TOML, has unknown keys, values out of range, or contradicts itself. All
            that is wrong is said at once.
    """
    path = Path(path)
    table, text = toml.read(path)
    places = toml.lines(text)
    overridden = {toml.override(table, text) for text in overrides}
    table = with_kinds(RunConfig, table)
    found = problems(RunConfig, table)
    if not found:
        config = _resolved(msgspec.convert(table, RunConfig), path)
        found = contradictions(config, "tasks" not in table.get("evaluation", {"tasks": []}))
        found += untrue_of_a_run(config) if to_run else []
        if not found:
            return config
    raise _refused(str(path), found, places, overridden)


def of_table(table: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """A configuration without a file, for what is no run: only what an evaluation needs is held against itself.

    Raises:
        ConfigError: the overrides have unknown keys or values out of range.
    """
    overridden = {toml.override(table, text) for text in overrides}
    table = with_kinds(RunConfig, table)
    found = problems(RunConfig, table)
    if not found:
        config = msgspec.convert(table, RunConfig)
        found = list(tries_problem(config))
        if not found:
            return config
    raise _refused("the command line", found, {}, overridden)


def _refused(
    source: str, found: Sequence[Problem], places: dict[toml.Place, int], overridden: set[toml.Place]
) -> ConfigError:
    listed = "\n".join(f"  {_located(problem, places, overridden)}" for problem in found)
    count = "one thing is" if len(found) == 1 else f"{len(found)} things are"
    return ConfigError(f"{source} can't be used: {count} wrong\n{listed}")


def effective_toml(config: RunConfig) -> str:
    """Every setting of a run, defaults too, as TOML that loads back to an equal `RunConfig`."""
    table: dict[str, Any] = msgspec.to_builtins(config)
    return toml.write(table)


def stations(config: RunConfig, run_directory: str | Path) -> Stations:
    """What the stations of a run are told, from the driver's configuration."""
    return Stations(
        run=config.run.name,
        directory=str(Path(run_directory).absolute()),
        seed=config.run.seed,
        total_steps=config.run.steps,
        deterministic=config.run.deterministic,
        checkpoint_every=config.checkpoint.every_steps,
        stall_seconds=config.run.stall_seconds,
        model=config.model,
        tasks=config.tasks,
        evaluation_tasks=config.evaluation.tasks,
        batch=config.batch,
        rollout=config.rollout,
        verifier=config.verifier,
        entropy=config.entropy,
        learner=config.learner,
        metrics_host=config.monitor.host,
        metrics_port=config.monitor.port,
        samples_per_step=config.report.samples_per_step,
        record_samples=config.run.record_samples,
    )


def _located(problem: Problem, places: dict[toml.Place, int], overridden: set[toml.Place]) -> str:
    """`line 12: [learner] lrr: unknown key; …`"""
    *section, key = problem.place or ("",)
    shown = ""
    for part in section:
        shown += f" {part + 1}" if isinstance(part, int) else f".{part}" if shown else part
    label = f"[{shown}] {key}" if section else f"[{key}]"
    said = f"{label} {problem.message}" if problem.message.startswith("= ") else f"{label}: {problem.message}"
    if problem.place in overridden:
        return f"--set: {said}"
    # A key that isn't there has no line; its section has.
    nearer = (problem.place[:end] for end in range(len(problem.place), 0, -1))
    line = next((places[place] for place in nearer if place in places), None)
    return f"line {line}: {said}" if line else said


def _resolved(config: RunConfig, path: Path) -> RunConfig:
    """The same with absolute paths and a name."""
    folder = path.absolute().parent
    change = msgspec.structs.replace
    return change(
        config,
        run=change(config.run, name=config.run.name or path.stem),
        model=change(config.model, path=_folder_or_name(config.model.path, folder)),
        tasks=tuple(_with_path(task, folder) for task in config.tasks),
        evaluation=change(config.evaluation, tasks=tuple(_with_path(task, folder) for task in config.evaluation.tasks)),
    )


def _folder_or_name(name: str, folder: Path) -> str:
    """An absolute path for what is here or is written like a path; a hub name otherwise."""
    candidate = _absolute(name, folder)
    return str(candidate) if candidate.exists() or name.startswith((".", "/", "~")) else name


def _with_path(task: TaskSettings, folder: Path) -> TaskSettings:
    if isinstance(task, Jsonl | Parquet):
        return msgspec.structs.replace(task, path=str(_absolute(task.path, folder)))
    if isinstance(task, HuggingFace):
        return msgspec.structs.replace(task, dataset=_folder_or_name(task.dataset, folder))
    return task


def _absolute(name: str, folder: Path) -> Path:
    return Path(folder, Path(name).expanduser()).resolve()
