"""Where a run's numbers go: always to `metrics.jsonl`, on request to TensorBoard and Weights & Biases too."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from entrostat.directory import RunDirectory, write_atomically
from entrostat.protocol.errors import ConfigError
from entrostat.rows import EvaluationRow, MetricsRow, read_evaluations, read_metrics

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes a run's rows as they come."""

    def step(self, row: MetricsRow) -> None:
        """One optimizer step."""
        ...

    def evaluation(self, row: EvaluationRow) -> None:
        """One evaluation."""
        ...

    def close(self) -> None:
        """Nothing comes any more."""
        ...


class JsonLines:
    """`metrics.jsonl` and `evaluations.jsonl`, each line flushed as it is written.

    Both raise StationLost where a newer life of the run has begun, and write nothing.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._metrics = directory.metrics.open("ab", buffering=0)
        self._evaluations = directory.evaluations.open("ab", buffering=0)

    def step(self, row: MetricsRow) -> None:
        """Appends a line."""
        self._directory.check()
        self._metrics.write(msgspec.json.encode(row) + b"\n")

    def evaluation(self, row: EvaluationRow) -> None:
        """Appends a line."""
        self._directory.check()
        self._evaluations.write(msgspec.json.encode(row) + b"\n")

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._evaluations.close()


class TensorBoard:
    """Event files in `tensorboard/` of the run directory; what earlier ones hold from `purge_step` on is not shown."""

    def __init__(self, directory: Path, purge_step: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(_missing("tensorboard", "tensorboard", error)) from error
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=purge_step)

    def step(self, row: MetricsRow) -> None:
        """One scalar per number."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row.step)

    def evaluation(self, row: EvaluationRow) -> None:
        """One scalar per number, under `evaluation/`."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(f"evaluation/{name}", value, row.step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run for each life of ours, all in one group; its mode (online, offline) is W&B's setting `WANDB_MODE`.

    W&B takes nothing back that it has logged: a life's own run holds no step twice, but the run of the life before
    keeps the steps that were voided, and shows them beside those made anew.
    """

    def __init__(self, directory: Path, run: str, branch: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(_missing("wandb", "wandb", error)) from error
        self._run = wandb.init(
            project="entrostat", group=run, name=f"{run}.{branch}" if branch else run, dir=str(directory)
        )
        # W&B drops what is logged at an earlier step than the last; an evaluation may end after later ones.
        for name in MetricsRow.__struct_fields__:
            self._run.define_metric(name, step_metric="step")
        self._run.define_metric("evaluation/*", step_metric="evaluation/step")

    def step(self, row: MetricsRow) -> None:
        """One value per number, over the row's step."""
        self._run.log(numbers(row))

    def evaluation(self, row: EvaluationRow) -> None:
        """One value per number, under `evaluation/`, over the step of the version it measured."""
        self._run.log({f"evaluation/{name}": value for name, value in numbers(row).items()})

    def close(self) -> None:
        """Finishes the W&B run."""
        self._run.finish()


def open_sinks(names: Sequence[str], directory: RunDirectory, step: int = 0) -> list[Sink]:
    """The sinks a configuration asks for, `metrics.jsonl` first, for the directory's life that begins at `step`.

    Raises:
        ConfigError: one needs a package that is not installed.
    """
    sinks: list[Sink] = [JsonLines(directory)]
    if "tensorboard" in names:
        sinks.append(TensorBoard(directory.path, step + 1 if directory.branch else None))
    if "wandb" in names:
        sinks.append(WeightsAndBiases(directory.path, directory.path.name, directory.branch))
    return sinks


def numbers(row: MetricsRow | EvaluationRow) -> dict[str, float]:
    """A row's plain numbers by name."""
    return _numbers(msgspec.structs.asdict(row))


def _numbers(named: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in named.items():
        if isinstance(value, int | float):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, dict | msgspec.Struct):
            inner = value if isinstance(value, dict) else msgspec.structs.asdict(value)
            found |= _numbers(inner, f"{prefix}{name}/")
    return found


def rewind(directory: RunDirectory, step: int) -> None:
    """Voids the rows and samples after `step`, and a row that was cut off: the run goes on from there.

    Each file is replaced whole; cut off between two of them, the next rewind does the rest.

    Raises:
        RunDirectoryError: a line that is not the last is no row.
    """
    metrics = [row for row in read_metrics(directory.metrics) if row.step <= step]
    evaluations = [row for row in read_evaluations(directory.evaluations) if row.step <= step]
    if [row.step for row in metrics] != list(range(1, step + 1)):
        log.warning("%s has not one row for each of the steps 1 to %d: it was changed or cut", directory.metrics, step)
    write_atomically(directory.metrics, b"".join(msgspec.json.encode(row) + b"\n" for row in metrics))
    write_atomically(directory.evaluations, b"".join(msgspec.json.encode(row) + b"\n" for row in evaluations))
    for file in (directory.path / "samples").glob("step-*.jsonl"):
        if int(file.stem.removeprefix("step-")) > step:
            file.unlink()


def _missing(sink: str, package: str, error: ImportError) -> str:
    return f"[monitor] sinks names {sink!r}, whose package is not installed ({error}): pip install {package}"
