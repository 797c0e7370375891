"""One learner's step, forward and backward, of a random Qwen3 on a device: packed against padded."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.gpu_head import Found, in_turn
from entrostat.learner import packing
from entrostat.learner.batching import Sample
from entrostat.learner.objective import Objective
from entrostat.learner.policy import Policy
from entrostat.learner.update import accumulate
from entrostat.protocol.entropy_settings import ClampedEntropy
from entrostat.protocol.learner_settings import LearnerSettings

BEHAVIOUR_NATS = -2.0  # of every token: any number will do
FIRST_TOKEN = 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The model, and the order that it learns from."""

    config: dict[str, Any]  # of Qwen3
    groups: int
    samples: int  # of each group
    prompt: int  # tokens
    responses: tuple[int, int]  # tokens: the median, and the most
    spread: float  # of the responses' logarithm
    budget: int  # tokens of a micro-batch


# Qwen3-0.6B, and responses of uneven length as reasoning has them.
QWEN3_600M = Shape(
    config={
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    groups=8,
    samples=8,
    prompt=256,
    responses=(800, 4096),
    spread=0.8,
    budget=16_384,
)


def steps(shape: Shape, dtype: torch.dtype, device: torch.device, repeats: int) -> dict[str, Found]:
    """Packed, padded, and padded with prompts computed once, in turn; tokens are the samples' own, without padding."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**shape.config)).to(dtype).to(device).eval()
    samples = _order(shape)
    reason = packing.objection(model, device, shape.config["vocab_size"])
    padded = Policy(model=model, tokenizer=None)
    policies = {
        "packed": replace(padded, packs=True),
        "padded, whole samples": padded,
        "padded, prompts once": replace(padded, shares_prompts=True),
    }
    if reason is not None:
        del policies["packed"]
    objective = Objective(
        learner=LearnerSettings(microbatch_tokens=shape.budget, packing="on"),
        estimator=ClampedEntropy(drop_fraction=0.25),
        temperature=1.0,
    )
    shares: dict[str, float] = {}

    def run(name: str) -> Any:
        def once() -> None:
            shares[name] = accumulate(policies[name], None, samples, objective, name).padding_share
            model.zero_grad(set_to_none=True)

        return once

    tokens = float(sum(len(one.tokens) for one in samples))
    found = in_turn({name: run(name) for name in policies}, device, repeats, {"tokens": tokens})
    told = {name: replace(one, work={**one.work, "padding": shares.get(name, np.nan)}) for name, one in found.items()}
    return told if reason is None else told | {"packed": Found(note=reason)}


def _order(shape: Shape) -> list[Sample]:
    random = np.random.default_rng(0)
    median, most = shape.responses
    samples: list[Sample] = []
    for group in range(shape.groups):
        prompt = random.integers(FIRST_TOKEN, shape.config["vocab_size"], shape.prompt)
        for _ in range(shape.samples):
            length = min(most, max(1, int(median * np.exp(shape.spread * random.normal()))))
            response = random.integers(FIRST_TOKEN, shape.config["vocab_size"], length)
            samples.append(
                Sample(
                    index=len(samples),
                    group=group,
                    tokens=np.concatenate([prompt, response]).astype(np.int32),
                    prompt_length=shape.prompt,
                    behaviour=np.full(length, BEHAVIOUR_NATS, np.float32),
                    advantage=float(random.normal()),
                    weight=1.0,
                    coefficient=0.1,
                    balance=1.0,
                    in_policy=True,
                    counts=True,
                )
            )
    return samples
