"""Runs that are made up: how their entropy falls, and a trial that writes their rows."""

import math
from pathlib import Path

import msgspec
import numpy as np

from entrostat import calibrate, config
from entrostat import directory as directories
from entrostat.calibration import Float64
from entrostat.config import RunConfig
from entrostat.proposal import Findings
from entrostat.protocol.entropy_settings import FixedLaw
from entrostat.rows import MetricsRow
from tests.made_rows import metrics_row

DRIFT = 0.03
H_0 = 0.23
BALANCE = 0.06


def curve(slope: float, *, steps: int = 30, noise: float = 0.0, seed: int = 0) -> Float64:
    """H with `ln H = ln H_0 + slope·t`, and independent noise on it."""
    random = np.random.default_rng(seed)
    return H_0 * np.exp(slope * np.arange(steps) + noise * random.standard_normal(steps))


class MadeUp:
    """A policy whose ln H falls by `DRIFT·(1 − c/truth)` per step, and whose gradients claim `BALANCE`."""

    def __init__(self, truth: float = BALANCE) -> None:
        self.truth = truth
        self.configs: dict[str, RunConfig] = {}

    def __call__(self, config: RunConfig, path: Path) -> list[MetricsRow]:
        law = config.entropy.law
        assert isinstance(law, FixedLaw)
        self.configs[path.name] = config
        slope = -DRIFT * (1.0 - law.coefficient / self.truth)
        made = directories.create(path, "", keep_earlier=False)
        made_rows = [self.row(step, slope, config.learner.measure_balance) for step in range(1, config.run.steps + 1)]
        made.metrics.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in made_rows))
        made.close()
        return made_rows

    def row(self, step: int, slope: float, measured: bool) -> MetricsRow:
        entropy = H_0 * math.exp(slope * (step - 2) + 0.01 * math.sin(7.0 * step))
        push = -BALANCE * (1.0 + 0.2 * math.sin(5.0 * step)) if measured and step > 1 else None
        bonus = None if push is None else 1.0
        return metrics_row(
            step, clamped_entropy_nats=entropy, entropy_nats=1.01 * entropy, policy_push=push, bonus_push=bonus
        )


def calibrated(path: Path, target: Path, trial: calibrate.Trial, *overrides: str) -> tuple[Findings, str]:
    """What is found and proposed with as many steps as by default."""
    settings = config.load(path, overrides)
    steps = calibrate.trial_steps(settings, None, None)
    return calibrate.calibrate(settings, target, trial, *steps, keep_earlier=False)
