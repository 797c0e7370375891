"""One run of each side: `entrostat train` as a user gives it, and TRL's trainer on the same task; each by the clock."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.cells import ROOT
from benchmarks.deadlines import carry_out
from benchmarks.trl_request import TrlConfig
from benchmarks.trl_timed import TimedRequest, TimedResult
from benchmarks.trl_ways import Way
from entrostat import config as configs
from entrostat.learner import checkpoint as checkpoints
from entrostat.rows import read_metrics

TOML = "deploy/runs/quickstart.toml"
# The policies are evaluated afterwards, both by the same hand; in a run it would share its seconds.
UNSCORED = "evaluation.tasks=[]"
ENDLESS = 1_000_000  # steps of a run that ends at a deadline
INTERRUPTED = 130
START_SECONDS, STEP_SECONDS, END_SECONDS = 300.0, 60.0, 180.0  # at most
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How a run went; each list has one value a step. Seconds count from the command."""

    ended_seconds: list[float]
    reward: list[float]
    entropy_nats: list[float]
    response_tokens: list[float]  # mean

    @property
    def first_step_seconds(self) -> float:
        """From the command to the end of the first step."""
        return self.ended_seconds[0]

    def step_seconds(self, left_out: int) -> list[float]:
        """From each step's end to the next one's, without the first steps."""
        gaps: list[float] = np.diff(self.ended_seconds)[left_out - 1 :].tolist()
        return gaps


def ours(
    name: str, seed: int, *, steps: int = 0, seconds: float = 0.0, policy: str = "", overrides: Sequence[str] = ()
) -> Course:
    """`entrostat train`, for so many steps or seconds; the last policy goes into the folder `policy`.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        settings = [f"run.seed={seed}", f"run.steps={steps or ENDLESS}", UNSCORED, *overrides]
        settings += [f"run.name=beside-trl-{os.getpid()}"]  # in shared memory: another may run beside this one
        command = [sys.executable, "-m", "entrostat", "train", TOML, "--run", str(run)]
        began = carry_out(
            name,
            [*command, *(word for setting in settings for word in ("--set", setting))],
            output=Path(folder, "output.txt"),
            seconds=END_SECONDS if seconds else START_SECONDS + STEP_SECONDS * steps,
            environment={"PYTHONPATH": str(ROOT)},
            interrupt_unix=time.time() + seconds if seconds else 0.0,
            expected=INTERRUPTED if seconds else 0,
        )
        rows = read_metrics(run / "metrics.jsonl")
        if policy:
            newest = checkpoints.newest(run / "checkpoints")
            if newest is None:
                raise RuntimeError(f"{name} saved no policy")
            shutil.copytree(newest / "policy", policy)
    return Course(
        ended_seconds=[row.unix_seconds - began for row in rows],
        reward=[row.reward for row in rows],
        entropy_nats=[row.entropy_nats for row in rows],
        response_tokens=[row.mean_response_tokens for row in rows],
    )


def theirs(name: str, seed: int, way: Way, *, steps: int = 0, seconds: float = 0.0, policy: str = "") -> Course:
    """TRL's trainer, for so many steps or seconds; the last policy goes into the folder `policy`.

    Raises:
        RuntimeError: it failed, took too long, or a scorer raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "request.json"), Path(folder, "result.json")
        several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(way.processes), "-m"]
        command = [sys.executable, "-m", *(several if way.processes > 1 else []), "benchmarks.trl_timed"]
        deadline = time.time() + seconds if seconds else 0.0
        asked = TimedRequest(config=trl_config(seed, steps or ENDLESS, policy), way=way, deadline_unix=deadline)
        source.write_bytes(msgspec.json.encode(asked))
        began = carry_out(
            name,
            [*command, str(source), str(target)],
            output=Path(folder, "output.txt"),
            seconds=seconds + END_SECONDS if seconds else START_SECONDS + STEP_SECONDS * steps,
            environment=OFFLINE | {"OMP_NUM_THREADS": str(way.threads)} | way.environment,
        )
        made = msgspec.json.decode(target.read_bytes(), type=TimedResult)
    if made.failed_verdicts:
        raise RuntimeError(f"{name}: {made.failed_verdicts} verdicts failed and counted as a reward of 0")
    return Course(
        ended_seconds=[ended - began for ended in made.ended_unix],
        reward=made.reward,
        entropy_nats=made.entropy_nats,
        response_tokens=made.response_tokens,
    )


def trl_config(seed: int, steps: int, policy: str) -> TrlConfig:
    """The quickstart, as TRL is asked for it."""
    config = configs.load(ROOT / TOML)
    asked: dict[str, Any] = {
        "model": config.model.path,
        "tasks": msgspec.to_builtins(config.tasks),
        "seed": seed,
        "steps": steps,
        "prompts": config.batch.prompts,
        "samples": config.rollout.samples_per_prompt,
        "max_response_tokens": config.rollout.max_response_tokens,
        "temperature": config.rollout.temperature,
        "lr": config.learner.lr,
        "betas": config.learner.betas,
        "gradient_clip": config.learner.gradient_clip,
        "truncated": config.learner.truncated,
        "save": policy,
    }
    return msgspec.convert(asked, TrlConfig)
