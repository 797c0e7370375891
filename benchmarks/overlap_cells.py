"""The cells of `benchmarks/overlap.py`: what is measured, what each cell depends on, and the runs that make it."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from benchmarks.beside_trl_cells import OUR_CODE, files
from benchmarks.beside_trl_sides import ours
from benchmarks.cells import ROOT
from benchmarks.deadlines import carry_out
from benchmarks.paced_learner import VARIABLE
from entrostat.rows import MetricsRow, read_metrics

Result = dict[str, Any]
Part = Literal["throughput", "reward"]

TOML = "benchmarks/overlap.toml"
BATCH_SAMPLES = 32  # samples of a batch; so many fill the engine: with more a step of decoding takes longer
STALENESS = (0, 1, 2, 4, 8)
FIRST_STEPS = 3  # left out of the steady part, and as many more as versions of staleness are allowed
START_SECONDS, STEP_SECONDS = 120.0, 15.0  # at most
CODE = tuple(f"benchmarks/{name}.py" for name in ("deadlines", "overlap_cells", "paced_learner"))
REWARD_STALENESS = (2, 0)  # the quickstart's, and on-policy


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long either side takes; tuned until a synchronous run shows the ratio of its name."""

    name: str  # generation : learning
    step_seconds: float  # of decoding
    learn_seconds: float  # of an order's optimizer steps


# The longest response of a batch has some 190 tokens.
PACES = (
    Pace(name="1:1", step_seconds=0.0104, learn_seconds=2.0),
    Pace(name="1:3", step_seconds=0.0049, learn_seconds=3.0),
    Pace(name="3:1", step_seconds=0.0158, learn_seconds=1.0),
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured."""

    turns: int = 3
    steps: int = 12  # of a run's steady part
    seeds: tuple[int, ...] = (1, 2, 3)
    reward_steps: int = 60


QUICK = Plan(turns=1, steps=4, seeds=(1,), reward_steps=12)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One cell."""

    name: str
    part: Part
    config: Result
    code: tuple[str, ...]
    compute: Callable[[], Result]


class Steady(msgspec.Struct, frozen=True, kw_only=True):
    """The steady part of one run; each list has one value a step, times in seconds."""

    step: list[float]  # from the end of one step to the end of the next
    wait: list[float]  # of the learner, for groups
    learn: list[float]  # fetching, computing, publishing
    tokens: list[int]
    age: list[float]  # of the groups trained on, versions
    stale: int  # leases that came too late, in the whole run


def jobs(plan: Plan) -> list[Job]:
    """Every cell, a turn of each pace before the next turn."""
    made = []
    for turn in range(1, plan.turns + 1):
        for pace in PACES:
            config = {
                "pace": msgspec.to_builtins(pace),
                "turn": turn,
                "steps": plan.steps,
                "toml": (ROOT / TOML).read_text(),
            }
            name = f"{pace.name.replace(':', '-')}-turn-{turn}"
            compute = partial(one_turn, pace, turn, plan.steps)
            made.append(Job(name=name, part="throughput", config=config, code=(*CODE, *OUR_CODE), compute=compute))
    for seed in plan.seeds:
        config = {"files": files(), "seed": seed, "steps": plan.reward_steps}
        compute = partial(one_pair, seed, plan.reward_steps)
        code = (*CODE, "benchmarks/beside_trl_sides.py", *OUR_CODE)
        made.append(Job(name=f"reward-{seed}", part="reward", config=config, code=code, compute=compute))
    return made


def one_turn(pace: Pace, turn: int, steps: int) -> Result:
    """A run at each staleness, one after the other."""
    load = os.getloadavg()[0]
    return {"load": load} | {str(s): msgspec.to_builtins(one_run(pace, turn, s, steps)) for s in STALENESS}


def one_run(pace: Pace, turn: int, staleness: int, steps: int) -> Steady:
    """The steady part of a run: without the steps until it is one, and without the last, which nothing comes after.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    first, last = FIRST_STEPS + staleness, staleness + 1
    total = first + steps + last
    settings = [
        f"run.name=overlap-{os.getpid()}",  # in shared memory: another may run beside this one
        f"run.seed={turn}",
        f"run.steps={total}",
        f"rollout.max_staleness={staleness}",
        f"rollout.engine.step_seconds={pace.step_seconds}",
        f"rollout.engine.tokens_per_second={BATCH_SAMPLES / pace.step_seconds}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "benchmarks.paced_learner", "train", TOML, "--run", str(run)]
        carry_out(
            f"{pace.name}, staleness {staleness}, turn {turn}",
            [*command, *(word for setting in settings for word in ("--set", setting))],
            output=Path(folder, "output.txt"),
            seconds=START_SECONDS + STEP_SECONDS * total,
            environment={"PYTHONPATH": str(ROOT), VARIABLE: str(pace.learn_seconds), "OMP_NUM_THREADS": "1"},
        )
        return steady(read_metrics(run / "metrics.jsonl"), first, last)


def steady(rows: Sequence[MetricsRow], first: int, last: int) -> Steady:
    """A run's rows without its first and last steps."""
    chosen = rows[first : len(rows) - last]
    return Steady(
        step=[row.step_seconds for row in chosen],
        wait=[row.wait_seconds for row in chosen],
        learn=[
            row.fetch_seconds + row.forward_backward_seconds + row.optimizer_seconds + row.publish_seconds
            for row in chosen
        ],
        tokens=[row.tokens for row in chosen],
        age=[row.staleness_mean for row in chosen],
        stale=rows[-1].leases_stale,
    )


def one_pair(seed: int, steps: int) -> Result:
    """The quickstart, asynchronous and then synchronous, for as many steps."""
    return {
        str(staleness): msgspec.to_builtins(
            ours(
                f"seed {seed} of the quickstart, staleness {staleness}",
                seed,
                steps=steps,
                overrides=[f"rollout.max_staleness={staleness}"],
            )
        )
        for staleness in REWARD_STALENESS
    }
