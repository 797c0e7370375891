"""A policy on a run's held-out problems, by the product's own evaluator: how many samples of each problem were right.

python -m benchmarks.held_out REQUEST.json RESULT.json
"""

import json
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from entrostat import config as configs
from entrostat.evaluate import measure
from entrostat.job import read_prompts
from entrostat.protocol.moments import Moments
from entrostat.scores import correct_counts


def correct(toml: str, model: str, samples: int) -> dict[str, Any]:
    """By problem of the levels that are trained on, the number of its samples that were correct."""
    config = configs.load(toml, [f"model.path={model}"])
    prompts, training = read_prompts(config, Path(model))
    result = measure(config, prompts.prompts[training:], samples)
    trained = {prompt.level for prompt in prompts.prompts[:training]}
    kept = [
        int(number) for number, level in zip(correct_counts(result), result.levels, strict=True) if level in trained
    ]
    entropy = reduce(Moments.merge, result.surprise, Moments()).mean
    return {"correct": kept, "samples": samples, "entropy": entropy}


def main(source: str, target: str) -> None:
    """Answers one request."""
    request = json.loads(Path(source).read_bytes())
    Path(target).write_text(json.dumps(correct(request["toml"], request["model"], request["samples"])))


if __name__ == "__main__":
    main(*sys.argv[1:])
