"""The probe of a version: a few sequences, and what exactly these weights compute for them."""

from collections.abc import Sequence

import numpy as np

from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.messages import Group, Probe

PROBE_TOKENS = 64  # of a sequence at most: enough to pass every weight, cheap to score
SCRAMBLED_TOKENS = 8  # after a prompt, for the first version
# The first version has none before it; its "version before" is this much surer of every token, beyond any tolerance.
FIRST_SHIFT_NATS = 1.0

TOLERANCE_NATS = {"float32": 1e-4, "bfloat16": 5e-2}


def tolerance(setting: float, dtype: str) -> float:
    """`rollout.tolerance`, or the dtype's own where that is 0; nats."""
    return setting or TOLERANCE_NATS[dtype]


def sequences_of(groups: Sequence[Group], count: int) -> list[Int32]:
    """The `count` shortest of the groups' first samples, prompts included, each cut to `PROBE_TOKENS`."""
    whole = []
    for group in groups:
        samples = group.rollout.samples
        whole.append(np.concatenate([group.rollout.prompt_tokens, samples.tokens[: samples.lengths[0]]]))
    shortest = sorted(range(len(whole)), key=lambda i: (len(whole[i]), i))[:count]
    return [whole[i][:PROBE_TOKENS] for i in shortest if len(whole[i]) > 1]


def first_sequences(prompts: Sequence[Int32], count: int, seed: int) -> list[Int32]:
    """Before there are samples: prompts, each followed by some of the prompts' tokens in random order."""
    chosen = [prompt[: PROBE_TOKENS - SCRAMBLED_TOKENS] for prompt in prompts[:count]]
    known = np.unique(np.concatenate(chosen))
    random = np.random.default_rng(seed)
    return [np.concatenate([prompt, random.choice(known, SCRAMBLED_TOKENS)]).astype(np.int32) for prompt in chosen]


def make_probe(
    sequences: Sequence[Int32], now: Sequence[Float32], before: Sequence[Float32] | None, limit: float
) -> Probe:
    """The probe of a version with log-probs `now`, and `before` of the version before it; None for the first."""
    logprobs = np.concatenate(now).astype(np.float32)
    return Probe(
        tokens=np.concatenate(sequences).astype(np.int32),
        lengths=np.array([len(sequence) for sequence in sequences], np.int32),
        logprobs=logprobs,
        previous=logprobs + np.float32(FIRST_SHIFT_NATS)
        if before is None
        else np.concatenate(before).astype(np.float32),
        tolerance=limit,
    )
