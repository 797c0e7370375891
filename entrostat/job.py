"""`entrostat train`: from a TOML or a run directory to a finished run. Checks everything first, then writes."""

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from entrostat import config as configs
from entrostat import directory as directories
from entrostat import preflight, prompt_record, ray_calls, recovery, resumable, sinks
from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.cluster import Cluster
from entrostat.config import RunConfig
from entrostat.controller.turns import WeightedTasks
from entrostat.directory import RunDirectory
from entrostat.learner import checkpoint as checkpoints
from entrostat.placement import check_address
from entrostat.protocol.errors import BadInput, ConfigError, EntrostatError, Interrupted, StationLost
from entrostat.protocol.logs import log_to
from entrostat.protocol.messages import PolicyVersion, PromptSet
from entrostat.recovery import Beginning
from entrostat.rows import read_evaluations, read_metrics
from entrostat.run import Run
from entrostat.screen import open_screen
from entrostat.summary import Summary, sentences
from entrostat.watchdog import Heart, reported

log = logging.getLogger(__name__)


def begin(
    path: Path, overrides: Sequence[str], *, run: Path | None, keep_earlier: bool, address: str, began: float
) -> int:
    """A new run.

    Raises:
        BadInput: the configuration, the model, the data or the machine won't do; nothing was written.
    """
    config = configs.load(path, overrides, to_run=True)
    target = (run or Path(config.run.directory) / config.run.name).resolve()
    if not keep_earlier:
        directories.check_free(target)
    check_address(address)
    config, prompts, training = prepare(config, target)
    record = {prompt_record.FILE: prompt_record.record(prompts.prompts[:training])}
    directory = directories.create(target, configs.effective_toml(config), keep_earlier=keep_earlier, files=record)
    start = Beginning(version=PolicyVersion(branch=0, step=0))
    try:
        return _go(config, directory, prompts, training, start, address=address, began=began)
    except (BadInput, Interrupted, KeyboardInterrupt):
        # What the user can mend, or stopped, before the first step leaves nothing in the way of the next try. After any
        # other failure the directory stays: its logs say what happened.
        if directory.branch == 0 and not read_metrics(directory.metrics):
            shutil.rmtree(directory.path)
        raise


def resume(path: Path, overrides: Sequence[str], *, address: str, began: float) -> int:
    """An existing run, from its newest checkpoint on a new branch; from step 0 where it was killed before its first.

    Raises:
        CheckpointDamaged: the newest checkpoint does not match its checksums.
        ConfigError: `overrides` change what may not change.
        TaskError: the tasks yield other prompts than those the run was begun with.
        BadInput: there is no run, or a process of it still lives.
    """
    directory = directories.reopen(path.resolve())
    with contextlib.ExitStack() as undo:
        undo.callback(directory.close)
        config = configs.load(directory.config, overrides, to_run=True)
        resumable.check(configs.load(directory.config, to_run=True), config, str(path))
        directory.end_life(directories.tell)
        saved, checkpoint = newest(directory)
        if saved.step > config.run.steps:
            raise ConfigError(
                f"{path} has made {saved.step} steps already, run.steps is {config.run.steps}: name more to go on"
            )
        if saved.step == config.run.steps and _is_summed_up(directory, saved.step):
            report = directory.report / "report.html"
            print(f"{path} is finished: {saved.step} of {config.run.steps} steps. Its report: {report}")
            return 0
        check_address(address)
        config, prompts, training = prepare(config, directory.path)
        prompt_record.check(directory.path, prompts.prompts[:training])
        start = branch_off(directory, saved, checkpoint, recorded=config.run.record_samples)
        directories.write_atomically(directory.config, configs.effective_toml(config).encode())
        undo.pop_all()
        return _go(config, directory, prompts, training, start, address=address, began=began)


def newest(directory: RunDirectory) -> tuple[PolicyVersion, Path | None]:
    """The version to go on from and its checkpoint; step 0 and none where the run was killed before its first.

    Raises:
        CheckpointDamaged: the newest checkpoint does not match its checksums.
    """
    folder = checkpoints.newest(directory.checkpoints)
    if folder is None:
        return PolicyVersion(branch=0, step=0), None
    manifest = checkpoints.verify(folder)
    return PolicyVersion(branch=manifest.branch, step=manifest.step), folder


def branch_off(
    directory: RunDirectory, saved: PolicyVersion, checkpoint: Path | None, *, recorded: bool = False
) -> Beginning:
    """Begins the directory's next life, and voids what came after the step it begins at.

    That is the saved one; with `recorded` samples the last that was trained, which the steps since lead to again.

    Raises:
        RunDirectoryError: a row before the last is damaged; nothing is changed.
        JournalDamaged, JournalDiffers: recorded orders are to be trained again, and the journal can't be trusted.
    """
    rows = read_metrics(directory.metrics)
    read_evaluations(directory.evaluations)
    steps, state = recovery.steps_since(directory, saved) if recorded else ((), None)
    branch = directory.begin_life(above=max(saved.branch, *(row.branch for row in rows), 0))
    step = saved.step + len(steps)
    sinks.rewind(directory, step)
    return Beginning(version=PolicyVersion(branch=branch, step=step), checkpoint=checkpoint, state=state, again=steps)


def prepare(config: RunConfig, directory: Path) -> tuple[RunConfig, PromptSet, int]:
    """Finds the model, reads the tasks, and sees that the machine has room.

    Returns:
        The configuration with the model's folder in it, all prompts (training first), and how many are for training.

    Raises:
        BadInput: something of it won't do.
    """
    model = preflight.find_model(config.model.path, trust_remote_code=config.model.trust_remote_code)
    config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, path=str(model)))
    preflight.check_space(model, directory, config.checkpoint.keep, weights=config.learner.weights)
    preflight.check_port(config.monitor.host, config.monitor.port)
    preflight.check_verifiers((*config.tasks, *config.evaluation.tasks))
    prompts, training = read_prompts(config, model)
    if training < config.batch.prompts:
        raise ConfigError(
            f"[batch] prompts = {config.batch.prompts} in each optimizer step, but the tasks hold {training}: "
            "lower it, or take more problems"
        )
    if weights := [task.weight for task in config.tasks if task.weight]:
        each = Counter(prompt.task for prompt in prompts.prompts[:training])
        WeightedTasks([each[task] for task in range(len(config.tasks))], weights)  # refuses what can't be shared out
    return config, prompts, training


def read_prompts(config: RunConfig, model: Path) -> tuple[PromptSet, int]:
    """All prompts of a run, those for training first, and how many these are. No evaluation question is trained on."""
    tokenizer = HuggingFaceTokenizer(model, trust_remote_code=config.model.trust_remote_code)
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


def _is_summed_up(directory: RunDirectory, step: int) -> bool:
    """Whether the run got to its end: killed in its last evaluation, it still has one to make."""
    if not directory.summary.is_file() or not (directory.report / "report.html").is_file():
        return False
    return msgspec.json.decode(directory.summary.read_bytes(), type=Summary).steps == step


def _go(
    config: RunConfig,
    directory: RunDirectory,
    prompts: PromptSet,
    training: int,
    start: Beginning,
    *,
    address: str,
    began: float,
) -> int:
    log_to(directory.path, "driver")
    summary = carry_out(config, directory, prompts, training, start, address=address, began=began)
    from entrostat.report import write_report  # matplotlib is not needed to begin

    page = write_report(directory.path)
    print("\n".join(sentences(summary)))
    print(f"report    {page}")
    print(f"samples   entrostat samples {directory.path}")
    return 0


def carry_out(
    config: RunConfig,
    directory: RunDirectory,
    prompts: PromptSet,
    training: int,
    start: Beginning,
    *,
    address: str,
    began: float,
) -> Summary:
    """A run from its stations' start to its summary; gives its directory back.

    After a station was lost it goes on by itself from its newest checkpoint, at most `run.restarts` times.
    """
    restarts = 0
    with contextlib.closing(directory):
        while True:
            with contextlib.suppress(_Again):
                return _live(
                    config,
                    directory,
                    prompts,
                    training,
                    start,
                    address=address,
                    began=began,
                    restarts=restarts,
                )
            restarts += 1
            directory.end_life(directories.tell)
            saved, checkpoint = newest(directory)
            start = branch_off(directory, saved, checkpoint, recorded=config.run.record_samples)
            log.warning("restart %d of %d: goes on from version %s", restarts, config.run.restarts, start.version)


class _Again(Exception):
    """The run ended for want of a station, and may go on."""


def _live(
    config: RunConfig,
    directory: RunDirectory,
    prompts: PromptSet,
    training: int,
    start: Beginning,
    *,
    address: str,
    began: float,
    restarts: int,
) -> Summary:
    """One life of a run's stations.

    Raises:
        _Again: a station was lost, and the run has a restart left.
        EntrostatError: why it ended.
    """
    with contextlib.ExitStack() as closing:
        opened = sinks.open_sinks(config.monitor.sinks, directory, start.version.step)
        for sink in opened:
            closing.callback(sink.close)
        screen = open_screen(config.run.steps, config.run.name)
        closing.callback(screen.close)
        closing.enter_context(ray_calls.quiet())
        token = directory.make_token()
        heart = Heart(directory.path / "stall.txt", config.run.stall_seconds, config.rollout.lease_seconds)
        closing.callback(heart.close)
        cluster = Cluster(
            configs.stations(config, directory.path),
            prompts,
            training_prompts=training,
            start=start,
            address=address,
            stall_seconds=config.run.stall_seconds,
            say=screen.say,
            beat=heart.beat,
        )
        heart.told = cluster.told
        closing.callback(cluster.close)
        closing.callback(heart.leave)
        run = Run(
            config,
            directory,
            cluster,
            screen,
            opened,
            evaluation_prompts=prompts.prompts[training:],
            trained_levels=frozenset(prompt.level for prompt in prompts.prompts[:training]),
            start=start,
            token=token,
            began=began,
            restarts=restarts,
        )
        try:
            with reported(heart, cluster.picture):
                return run.train()
        except EntrostatError as error:
            heart.failed(error)
            log.error("the run ends: %s", error)
            saved = any(directory.checkpoints.glob("step-*"))
            again = "its newest checkpoint" if saved else "step 0"
            if isinstance(error, StationLost) and restarts < config.run.restarts:
                directory.check()
                screen.say(f"{error}; going on from {again}, restart {restarts + 1} of {config.run.restarts}")
                raise _Again from error
            if not isinstance(error, Interrupted) and (saved or not isinstance(error, BadInput)):
                screen.say(f"go on from {again} with: entrostat train --resume {directory.path}")
            raise
