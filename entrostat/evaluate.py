"""`entrostat eval`: scores a model on fixed prompts with the training run's own parts, in this process, without Ray."""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from entrostat import config as configs
from entrostat import preflight
from entrostat.actors.remote import build_engine
from entrostat.actors.rollout import RolloutWorker
from entrostat.actors.seams import Seams
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.config import RunConfig
from entrostat.job import read_prompts
from entrostat.learner import checkpoint as checkpoints
from entrostat.learner.trainer import Trainer
from entrostat.protocol.errors import ConfigError, RunDirectoryError, Stalled
from entrostat.protocol.learner_settings import AllWeights
from entrostat.protocol.messages import (
    EvaluationRequest,
    EvaluationResult,
    Group,
    PolicyVersion,
    PromptSet,
    Pulse,
    PulseReply,
)
from entrostat.protocol.metrics import Exporter
from entrostat.protocol.settings import SimulatedSettings
from entrostat.rows import EvaluationRow, evaluation_row


class NoController:
    """Grants nothing: the actor has only its evaluation to do."""

    def send(self, pulse: Pulse) -> None:
        """Nobody listens."""

    def receive(self) -> PulseReply | None:
        """Nobody answers."""
        return None


class NoBuffer:
    """Without leases there are no groups to keep."""

    def send(self, group: Group) -> None:
        """Nobody listens."""

    def stored(self) -> list[int]:
        """Nothing is stored."""
        return []


def run(model: str, config: Path | None, overrides: Sequence[str], *, samples: int | None, as_json: bool) -> int:
    """Scores `model` (a folder, a hub name, or a run directory) and prints a table, or one JSON object.

    Raises:
        BadInput: the configuration, the model or the data won't do.
    """
    chosen, settings = find(model, config, overrides)
    if not settings.evaluation.tasks:
        raise ConfigError("the configuration has no [[evaluation.tasks]]: name what to evaluate on")
    if isinstance(settings.rollout.engine, SimulatedSettings):
        raise ConfigError("the simulated engine makes its answers up: evaluate with --set rollout.engine.kind=vllm")
    count = settings.evaluation.samples if samples is None else samples
    if count < 1:
        raise ConfigError(f"--samples is {count}; expected at least 1")
    folder = preflight.find_model(chosen, trust_remote_code=settings.model.trust_remote_code)
    settings = msgspec.structs.replace(settings, model=msgspec.structs.replace(settings.model, path=str(folder)))
    prompts, training = read_prompts(settings, folder)
    result = measure(settings, prompts, training, count)
    row = evaluation_row(result, frozenset(prompt.level for prompt in prompts.prompts[:training]))
    if as_json:
        print(msgspec.json.encode(row).decode())
    else:
        show(Console(), chosen, row)
    return 0


def find(model: str, config: Path | None, overrides: Sequence[str]) -> tuple[str, RunConfig]:
    """The model's folder or name, and the configuration that says how to evaluate it.

    Raises:
        RunDirectoryError: a run directory holds no checkpoint.
        ConfigError: `model` is no run directory, and no configuration was named.
    """
    directory = Path(model)
    if (directory / "config.toml").is_file():
        newest = checkpoints.newest(directory / "checkpoints")
        if newest is None:
            raise RunDirectoryError(
                f"{model} holds no checkpoint yet: wait for its first one, or name a model's folder"
            )
        checkpoints.verify(newest)
        return str(newest / "policy"), configs.load(config or directory / "config.toml", overrides)
    if config is None:
        raise ConfigError(
            f"{model} is no run directory, so --config must name the TOML with [evaluation]: "
            f"entrostat eval {model} --config deploy/runs/quickstart.toml"
        )
    return model, configs.load(config, overrides)


def measure(config: RunConfig, prompts: PromptSet, training: int, samples: int) -> EvaluationResult:
    """Loads the model into the engine, verified by its probe as in training, and samples every evaluation prompt.

    Raises:
        Stalled: the whole evaluation was not done within `run.stall_seconds`.
    """
    stations = configs.stations(config, Path(config.run.directory))
    # CUDA IPC opens no handle in the process that made it, and here the learner and the engine share one.
    # Nothing is trained here, and a checkpoint's policy has its adapter in it.
    learner = msgspec.structs.replace(stations.learner, transport="shared_memory", weights=AllWeights())
    stations = msgspec.structs.replace(stations, learner=learner)
    request = EvaluationRequest(
        prompts=prompts.prompts[training:],
        samples=samples,
        temperature=config.evaluation.temperature,
        seed=config.run.seed,
    )
    with contextlib.ExitStack() as closing:
        trainer = Trainer(stations, prompts, PolicyVersion(branch=0, step=0))
        closing.callback(trainer.close)
        manifest = trainer.publish_first()
        tokenizer = HuggingFaceTokenizer(stations.model.path, trust_remote_code=stations.model.trust_remote_code)
        verifiers = VerifierPool(stations.verifier, (*stations.tasks, *stations.evaluation_tasks))
        closing.callback(verifiers.close)
        exporter = Exporter("rollout", labels={"actor": "0"})
        closing.callback(exporter.close)
        engine = build_engine(stations, tokenizer, stations.seed)
        closing.callback(engine.close)
        seams = Seams(
            engine=engine,
            controller=NoController(),
            buffer=NoBuffer(),
            verifiers=verifiers,
            tokenizer=tokenizer,
            meter=exporter,
        )
        worker = RolloutWorker(stations.rollout, prompts.prompts, 0, 1, seams, manifest)
        return _sampled(worker, worker.evaluate(request), config.run.stall_seconds)


def show(console: Console, model: str, row: EvaluationRow) -> None:
    """The scores by level, and over the trained levels together."""
    table = Table(title=f"{model}: {row.samples} samples of each prompt at every level", title_justify="left")
    for column in ("level", "prompts", "pass@1", "pass@8"):
        table.add_column(column, justify="left" if column == "level" else "right")
    for level in row.levels:
        name = level.level if level.trained else f"{level.level} (not trained on)"
        table.add_row(name, str(level.prompts), f"{level.pass_at_1:.3f}", _share(level.pass_at_8))
    table.add_row("trained levels", str(row.prompts), f"{row.pass_at_1:.3f}", _share(row.pass_at_8), style="bold")
    console.print(table)
    console.print(f"{row.mean_tokens:.1f} tokens a response, {row.entropy_nats:.4f} nats a token, {row.seconds:.1f} s")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _sampled(worker: RolloutWorker, answer: "Future[EvaluationResult]", seconds: float) -> EvaluationResult:
    deadline = time.monotonic() + seconds
    while not answer.done():
        worker.turn()
        if time.monotonic() > deadline:
            raise Stalled(f"the evaluation was not done within run.stall_seconds = {seconds:.0f} s")
    return answer.result()
