"""Samples of random prompts, and what a policy makes of them, held against whole rows."""

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from entrostat.learner.batching import Sample
from entrostat.learner.objective import Objective
from entrostat.learner.policy import Policy
from entrostat.learner.update import Measured, accumulate
from entrostat.protocol.entropy_settings import ClampedEntropy
from entrostat.protocol.learner_settings import LearnerSettings
from tests.tiny_policy import WORDS


def group(draw: np.random.Generator, first: int, prompt: int, lengths: list[int]) -> list[Sample]:
    """Samples of one random prompt; a quarter of them are rejected."""
    start = draw.integers(3, len(WORDS), prompt)
    return [
        Sample(
            index=first + i,
            group=0,
            tokens=np.concatenate([start, draw.integers(3, len(WORDS), length)]).astype(np.int32),
            prompt_length=prompt,
            behaviour=(-draw.random(length) - 2.5).astype(np.float32),
            advantage=float(draw.normal()),
            weight=1.0,
            coefficient=float(draw.random()),
            balance=1.0,
            in_policy=True,
            counts=bool(draw.random() < 0.75),
        )
        for i, length in enumerate(lengths)
    ]


def samples_of(seed: int, groups: list[tuple[int, list[int]]]) -> list[Sample]:
    """Of each prompt its length, and the lengths of its responses."""
    draw, samples = np.random.default_rng(seed), list[Sample]()
    for prompt, lengths in groups:
        samples += group(draw, len(samples), prompt, lengths)
    return samples


def objective(budget: int, kl: float = 0.0, **changes: Any) -> Objective:
    """Clamped entropy at temperature 0.8."""
    learner = msgspec.structs.replace(LearnerSettings(microbatch_tokens=budget, kl_coefficient=kl), **changes)
    return Objective(learner=learner, estimator=ClampedEntropy(drop_fraction=0.25), temperature=0.8)


def accumulated(
    policy: Policy, samples: list[Sample], wanted: Objective, reference: Policy | None = None
) -> tuple[Measured, dict[str, torch.Tensor]]:
    """What one step found, and its gradient."""
    policy.model.zero_grad(set_to_none=True)
    measured = accumulate(policy, reference, samples, wanted, "step 1")
    return measured, {name: weight.grad.clone() for name, weight in policy.model.named_parameters()}


def by_sample(measured: Measured) -> dict[str, torch.Tensor]:
    """Per token, in the order's own order: micro-batches differ."""
    order = measured.tokens.sample.argsort(stable=True)
    return {f.name: getattr(measured.tokens, f.name)[order] for f in dataclasses.fields(measured.tokens)}


def assert_as_whole_rows(
    policy: Policy, samples: list[Sample], wanted: Objective, reference: Policy | None = None
) -> None:
    """Terms, gradient and all measurements are those of padded rows of prompt and response, to 1e-10."""
    plain = dataclasses.replace(policy, shares_prompts=False, packs=False)
    (ours, mine), (whole, theirs) = (accumulated(p, samples, wanted, reference) for p in (policy, plain))
    assert msgspec.to_builtins(dataclasses.asdict(ours.terms)) == pytest.approx(
        dataclasses.asdict(whole.terms), abs=1e-10
    )
    assert ours.denominators == whole.denominators
    torch.testing.assert_close(by_sample(ours), by_sample(whole), atol=1e-10, rtol=0)
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)
