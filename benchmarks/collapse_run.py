"""One run of `benchmarks/collapse.py` in a process of its own: a configuration in, curves and scores out, both JSON.

python -m benchmarks.collapse_run RUN.json RESULT.json
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.cells import ROOT

DIGITS = 5  # kept of every number of a curve


class RunRequest(TypedDict):
    """What a run depends on."""

    task: str  # a TOML, seen from the project's root
    overrides: list[str]  # of the TOML's keys
    seed: int
    lag: int  # orders between a measurement and the law's hearing of it
    samples: int  # of each unseen prompt, afterwards; 0: no scores


class RunResult(TypedDict):
    """What came of it; curves are `[steps]`."""

    entropy: list[float]  # of the bonus, before each step, nats
    coefficient: list[float]
    reward: list[float]
    target: list[float | None]  # nats; None for a law without one, and before it is known
    initial_entropy: float | None  # H_0 as the law knows it, nats
    levels: list[str]  # [prompts]
    correct: list[int]  # [prompts] of `samples`


def run(request: RunRequest) -> RunResult:
    """Trains, then scores the policy on unseen prompts; `run.seed` draws prompts, samples and batches."""
    from benchmarks.loop import Loop
    from entrostat import config as configs
    from entrostat.scores import correct_counts

    overrides = [f"run.seed={request['seed']}", "report.samples_per_step=0", "learner.threads=1"]
    # The name is that of the weights in shared memory: runs beside each other must not share it.
    overrides.append(f'run.name="collapse-{os.getpid()}"')
    config = configs.load(ROOT / request["task"], [*overrides, *request["overrides"]])
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(config, Path(folder), request["lag"])
        try:
            steps = list(loop.train(config.run.steps))
            scores = loop.evaluate(request["samples"], request["seed"]) if request["samples"] else None
            initial = loop.reading.initial_entropy
        finally:
            loop.close()
    return RunResult(
        entropy=[_short(step.entropy) for step in steps],
        coefficient=[_short(step.coefficient) for step in steps],
        reward=[_short(step.reward) for step in steps],
        target=[None if step.target is None else _short(step.target) for step in steps],
        initial_entropy=initial,
        levels=list(scores.levels) if scores else [],
        correct=[int(count) for count in correct_counts(scores)] if scores else [],
    )


def _short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def main() -> None:
    """Reads the request, writes the result whole or not at all."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    request: Any = json.loads(source.read_bytes())
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(run(request)))
    partial.replace(target)


if __name__ == "__main__":
    main()
