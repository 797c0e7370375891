"""`entrostat train`: from a TOML or a run directory to a finished run. Checks everything first, then writes."""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from entrostat import config as configs
from entrostat import directory as directories
from entrostat import preflight, sinks
from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.cluster import Cluster
from entrostat.config import RunConfig
from entrostat.directory import RunDirectory
from entrostat.learner import checkpoint as checkpoints
from entrostat.protocol.errors import CheckpointDamaged, RunDirectoryError
from entrostat.protocol.logs import log_to
from entrostat.protocol.messages import PolicyVersion, PromptSet
from entrostat.run import Run
from entrostat.screen import open_screen
from entrostat.summary import sentences


def begin(
    path: Path, overrides: Sequence[str], *, run: Path | None, keep_earlier: bool, address: str, began: float
) -> int:
    """A new run.

    Raises:
        BadInput: the configuration, the model, the data or the machine won't do; nothing was written.
    """
    config = configs.load(path, overrides)
    target = (run or Path(config.run.directory) / config.run.name).resolve()
    if target.exists() and not keep_earlier:
        raise RunDirectoryError(
            f"{target} exists already: go on with it (entrostat train --resume {target}), "
            "choose another (--run DIR), or keep it under another name (--keep-earlier)"
        )
    config, prompts, training = prepare(config, target)
    directory = directories.create(target, configs.effective_toml(config), keep_earlier=keep_earlier)
    version = PolicyVersion(branch=0, step=0)
    return _go(config, directory, prompts, training, version, None, address=address, began=began)


def resume(path: Path, overrides: Sequence[str], *, address: str, began: float) -> int:
    """An existing run, from its newest checkpoint on a new branch.

    Raises:
        CheckpointDamaged: the newest checkpoint does not match its checksums.
        BadInput: there is no run, or no checkpoint.
    """
    directory = directories.reopen(path.resolve())
    with contextlib.ExitStack() as undo:
        undo.callback(directory.close)
        config = configs.load(directory.config, overrides)
        newest = checkpoints.newest(directory.checkpoints)
        if newest is None:
            raise CheckpointDamaged(f"{path} has no checkpoint to go on from: begin anew with entrostat train CONFIG")
        stamp = checkpoints.verify(newest)
        if stamp.step >= config.run.steps:
            report = directory.report / "report.html"
            print(f"{path} is finished: {stamp.step} of {config.run.steps} steps. Its report: {report}")
            return 0
        config, prompts, training = prepare(config, directory.path)
        sinks.rewind(directory, stamp.step)
        version = PolicyVersion(branch=stamp.branch + 1, step=stamp.step)
        undo.pop_all()
        return _go(config, directory, prompts, training, version, newest, address=address, began=began)


def prepare(config: RunConfig, directory: Path) -> tuple[RunConfig, PromptSet, int]:
    """Finds the model, reads the tasks, and sees that the machine has room.

    Returns:
        The configuration with the model's folder in it, all prompts (training first), and how many are for training.
    """
    model = preflight.find_model(config.model.path)
    config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, path=str(model)))
    preflight.check_space(model, directory, config.checkpoint.keep)
    preflight.check_port(config.monitor.host, config.monitor.port)
    prompts, training = read_prompts(config, model)
    return config, prompts, training


def read_prompts(config: RunConfig, model: Path) -> tuple[PromptSet, int]:
    """All prompts of a run, those for training first, and how many these are. No evaluation question is trained on."""
    tokenizer = HuggingFaceTokenizer(model)
    load = partial(
        load_prompts,
        tokenizer=tokenizer,
        chat=tokenizer.chat if tokenizer.has_chat_template else None,
        context_tokens=preflight.context_tokens(config, model),
    )
    training = load(config.tasks).prompts
    if not config.evaluation.tasks:
        return PromptSet(prompts=training), len(training)
    unseen = load(config.evaluation.tasks, len(config.tasks), unlike=config.tasks).prompts
    renumbered = (msgspec.structs.replace(prompt, id=len(training) + prompt.id) for prompt in unseen)
    return PromptSet(prompts=(*training, *renumbered)), len(training)


def _go(
    config: RunConfig,
    directory: RunDirectory,
    prompts: PromptSet,
    training: int,
    version: PolicyVersion,
    checkpoint: Path | None,
    *,
    address: str,
    began: float,
) -> int:
    log_to(directory.path, "driver")
    opened = sinks.open_sinks(config.monitor.sinks, directory)
    screen = open_screen(config.run.steps, config.run.name)
    with contextlib.ExitStack() as closing:
        closing.callback(directory.close)
        closing.callback(screen.close)
        for sink in opened:
            closing.callback(sink.close)
        cluster = Cluster(
            configs.stations(config, directory.path),
            prompts,
            training_prompts=training,
            branch=version.branch,
            step=version.step,
            checkpoint=checkpoint,
            address=address,
            stall_seconds=config.run.stall_seconds,
        )
        closing.callback(cluster.close)
        run = Run(
            config,
            directory,
            cluster,
            screen,
            opened,
            evaluation_prompts=prompts.prompts[training:],
            trained_levels=frozenset(prompt.level for prompt in prompts.prompts[:training]),
            version=version,
            began=began,
        )
        summary = run.train()
    from entrostat.report import write_report  # matplotlib is not needed to begin

    print("\n".join(sentences(summary)))
    print(f"report    {write_report(directory.path)}")
    print(f"samples   entrostat samples {directory.path}")
    return 0
