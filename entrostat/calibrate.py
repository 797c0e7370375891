"""`entrostat calibrate`: two short runs of a configuration, and the entropy control they propose for its policy."""

import contextlib
import os
import shutil
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from rich.console import Console
from rich.table import Table

from entrostat import calibration, job, proposal
from entrostat import config as configs
from entrostat import directory as directories
from entrostat.calibration import FEWEST, SETTLING_STEPS
from entrostat.config import CheckpointSettings, EvaluationSettings, ReportSettings, RunConfig
from entrostat.contradictions import contradictions
from entrostat.controller.thermometer import driving_estimator
from entrostat.placement import check_address
from entrostat.proposal import Findings
from entrostat.protocol.entropy_settings import FixedLaw, LawSettings, ThermostatLaw
from entrostat.protocol.errors import BadInput, ConfigError, EntrostatError, Interrupted, RunDirectoryError
from entrostat.protocol.logs import log_to
from entrostat.protocol.messages import PolicyVersion
from entrostat.recovery import Beginning
from entrostat.rows import MetricsRow, read_metrics

STEPS = 30  # of each run, after the learning rate's warm-up, unless others are asked for
CONFIRM_STEPS = 20
UNCONTROLLED, CONFIRMED = "uncontrolled", "confirmed"
PROPOSAL = "proposal.toml"


class Trial(Protocol):
    """Makes one short run in a directory of its own; returns its rows."""

    def __call__(self, config: RunConfig, path: Path) -> list[MetricsRow]:
        """`path` does not exist yet."""
        ...


def begin(
    path: Path,
    overrides: Sequence[str],
    *,
    run: Path | None,
    keep_earlier: bool,
    address: str,
    steps: int | None,
    confirm_steps: int | None,
    write: Path | None,
    began: float,
) -> int:
    """Calibrates a configuration: shows what is proposed, and writes it.

    Raises:
        BadInput: the configuration, the steps, the model, the data or the machine won't do; nothing was written.
        Interrupted: the user stopped it; nothing is left of it.
    """
    config = configs.load(path, overrides, to_run=True)
    config = msgspec.structs.replace(config, evaluation=EvaluationSettings())
    lengths = trial_steps(config, steps, confirm_steps)
    target = (run or Path(config.run.directory) / f"{config.run.name}-calibration").resolve()
    if not keep_earlier:
        check_free(target)
    if write is not None:
        check_writable(write)
    check_address(address)
    config, prompts, training = job.prepare(config, target)

    def trial(config: RunConfig, path: Path) -> list[MetricsRow]:
        nonlocal began
        directory = directories.create(path, configs.effective_toml(config), keep_earlier=False)
        start = Beginning(version=PolicyVersion(branch=0, step=0))
        job.carry_out(config, directory, prompts, training, start, address=address, began=began)
        began = time.time()  # of the next one
        shutil.rmtree(directory.checkpoints)  # nobody goes on from here
        return read_metrics(directory.metrics)

    findings, text = calibrate(config, target, trial, *lengths, keep_earlier=keep_earlier)
    if write is not None:
        directories.write_atomically(write, text.encode())
    show(Console(), config, findings)
    if write is None:
        print(text, end="")
    print(f"proposal  {write or target / PROPOSAL}")
    return 0


def calibrate(
    config: RunConfig, target: Path, trial: Trial, steps: int, confirm_steps: int, *, keep_earlier: bool
) -> tuple[Findings, str]:
    """Both runs in `target`, what they show, and the proposal's text, which lies in `target` too.

    What was interrupted, or fails for want of good input before its first step, leaves nothing behind.
    """
    directory = directories.create(target, configs.effective_toml(config), keep_earlier=keep_earlier)
    with contextlib.ExitStack() as closing:
        closing.callback(directory.close)
        log_to(target, "driver")
        try:
            findings = examine(config, target, trial, steps, confirm_steps)
            text = proposed(config, findings)
            directories.write_atomically(target / PROPOSAL, text.encode())
            return findings, text
        except (Interrupted, KeyboardInterrupt) as stopped:
            shutil.rmtree(target)
            if isinstance(stopped, KeyboardInterrupt):
                raise
            raise Interrupted(
                "the calibration was stopped: nothing is proposed, and its runs are removed; begin it anew"
            ) from stopped
        except BadInput:
            if not read_metrics(target / UNCONTROLLED / "metrics.jsonl"):
                shutil.rmtree(target)
            raise


def examine(config: RunConfig, target: Path, trial: Trial, steps: int, confirm_steps: int) -> Findings:
    """Makes the runs and draws the conclusions; without `confirm_steps` only the first."""
    warm, driving, law = config.learner.warmup_steps, driving_estimator(config.entropy), config.entropy.law
    orders = (law if isinstance(law, ThermostatLaw) else ThermostatLaw()).anchor_orders
    print(f"calibration: {steps} steps at a coefficient of 0")
    rows = trial(trial_config(config, UNCONTROLLED, steps, 0.0), target / UNCONTROLLED)
    without = calibration.entropies(rows, driving)
    initial = calibration.initial_entropy(without, [row.tokens for row in rows], orders)
    drift = calibration.drift(without[warm:])
    balance = calibration.balance(*calibration.pushes(rows[warm:]))
    confirmation = None
    if confirm_steps:
        print(f"calibration: {confirm_steps} steps at a coefficient of {balance.proposed:.3g}")
        again = trial(trial_config(config, CONFIRMED, confirm_steps, balance.proposed), target / CONFIRMED)
        held = calibration.entropies(again, driving)
        confirmation = calibration.confirmation(
            without[warm:], held[warm:], initial=initial, coefficient=balance.proposed
        )
    return Findings(
        initial_entropy=initial,
        drift=drift,
        noise=calibration.noise(without[warm:]),
        balance=balance,
        confirmation=confirmation,
    )


def trial_steps(config: RunConfig, steps: int | None, confirm_steps: int | None) -> tuple[int, int]:
    """Steps of the run without control and of the one that confirms; warm-up counts in, and for no estimate.

    Raises:
        ConfigError: too few were asked for.
    """
    warm = config.learner.warmup_steps
    while_warm = f", of which learner.warmup_steps = {warm} show nothing" if warm else ""
    first = STEPS + warm if steps is None else steps
    fewest = max(warm, SETTLING_STEPS) + FEWEST
    if first < fewest:
        raise ConfigError(
            f"--steps is {first}, expected at least {fewest}: {FEWEST} batches after {SETTLING_STEPS} in which the "
            f"optimizer's metric settles{while_warm}"
        )
    second = CONFIRM_STEPS + warm if confirm_steps is None else confirm_steps
    if second and second < warm + FEWEST:
        raise ConfigError(
            f"--confirm-steps is {second}, expected at least {warm + FEWEST}{while_warm}, or 0 to leave the "
            "confirmation out"
        )
    return first, second


def trial_config(config: RunConfig, name: str, steps: int, coefficient: float) -> RunConfig:
    """The same policy, prompts and learner for a few steps at a constant coefficient, with nothing beside.

    A schedule of the learning rate would come to its end within these steps: they stand for the beginning of a run.
    """
    change = msgspec.structs.replace
    learner = change(config.learner, schedule="constant", measure_balance=coefficient == 0.0)
    return change(
        config,
        run=change(config.run, name=f"{config.run.name}-{name}", steps=steps),
        entropy=change(config.entropy, law=FixedLaw(coefficient=coefficient)),
        learner=learner,
        checkpoint=CheckpointSettings(every_steps=steps, keep=1),
        monitor=change(config.monitor, port=0, sinks=()),
        report=ReportSettings(samples_per_step=0),
    )


def proposed(config: RunConfig, findings: Findings) -> str:
    """The proposal's text, seen to load in the configuration's place.

    Raises:
        EntrostatError: it would not.
    """
    law = proposal.thermostat(findings, config.entropy.law)
    text = proposal.fragment(findings, law, config.run.name)
    try:
        read: LawSettings = msgspec.convert(tomllib.loads(text)["entropy"]["law"], LawSettings)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise EntrostatError(f"what would be proposed does not load ({error}):\n{text}") from error
    changed = msgspec.structs.replace(config, entropy=msgspec.structs.replace(config.entropy, law=read))
    wrong = contradictions(changed, evaluation_without_tasks=False)
    if wrong:
        raise EntrostatError(f"what would be proposed contradicts the configuration: {wrong[0].message}\n{text}")
    return text


def check_free(target: Path) -> None:
    """Sees that there is nothing where the calibration is to go.

    Raises:
        RunDirectoryError: the path exists.
    """
    if target.exists():
        raise RunDirectoryError(
            f"{target} exists already: choose another place (--run DIR), or keep it under another name (--keep-earlier)"
        )


def check_writable(file: Path) -> None:
    """Sees that the proposal can go there, and would replace nothing but an earlier one.

    Raises:
        BadInput: it can't, or there is something else.
    """
    if file.is_dir():
        raise BadInput(f"--write is {file}, a folder; expected the name of a file")
    if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(proposal.MARK):
        raise BadInput(f"--write is {file}, which exists and is no earlier proposal: name another file")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise BadInput(f"--write is {file}, and nothing can be written in {folder}: name another file")


def show(console: Console, config: RunConfig, findings: Findings) -> None:
    """What is proposed, with its reasons, and what the configuration has."""
    law = proposal.thermostat(findings, config.entropy.law)
    table = Table(title=f"entropy control proposed for {config.run.name}", title_justify="left")
    for column in ("", "proposed", "configured", "why"):
        table.add_column(column)
    configured = msgspec.to_builtins(config.entropy.law)
    for what, value, why in proposal.reasons(findings, law):
        has = configured.get(what)
        table.add_row(what, value, "" if has is None else f"{has:g}", why)
    console.print(table)
