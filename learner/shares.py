"""An optimizer step's samples among the ranks: as many tokens for each, and as many passes through the model.

Ranks gather weights and add up gradients together in every pass, so each must make the same passes in the same order.
Every rank has the whole order and works out what all of them do; none has to ask.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from entrostat.learner.batching import Block, Sample


def shares(samples: Sequence[Sample], count: int, *, shared: bool) -> list[list[Sample]]:
    """The samples that have response tokens, in `count` parts of nearly equal cost; no part is a sample's cost off.

    They are laid in a line, those of a prompt side by side, which is cut into equal lengths: with `shared`, where a
    prompt is computed once, at most `count − 1` of them are computed twice.
    """
    families: dict[bytes, list[Sample]] = {}
    for sample in samples:
        if sample.response_length:
            families.setdefault(sample.prompt.tobytes(), []).append(sample)
    line = [(one, place == 0) for family in families.values() for place, one in enumerate(family)]
    costs = [one.response_length + one.prompt_length * (first or not shared) for one, first in line]
    parts: list[list[Sample]] = [[] for _ in range(count)]
    total, before = sum(costs), 0
    for (one, _), cost in zip(line, costs, strict=True):
        # By the sample's middle: (before + cost / 2) / total of the line.
        parts[(2 * before + cost) * count // (2 * total)].append(one)
        before += cost
    return parts


def in_step(plans: Sequence[Sequence[Block]]) -> list[list[Block]]:
    """The ranks' plans, each filled up with idle rounds so that all have as many blocks, and as many rounds in each."""
    every = [sample for plan in plans for block in plan for batch in block.batches for sample in batch]
    if not every:
        return [list(plan) for plan in plans]
    shortest = min(every, key=lambda sample: (len(sample.tokens), sample.index))
    filled: list[list[Block]] = [[] for _ in plans]
    for row in zip_longest(*plans):
        rounds = max(len(block.batches) for block in row if block is not None)
        shared = any(block.prompts for block in row if block is not None)
        empty = Block(prompts=(shortest.prompt,) if shared else (), batches=())
        for rank, given in enumerate(row):
            block = given or empty
            # Of a block's own samples, as their prompts are there.
            filler = block.batches[-1][-1] if block.batches else shortest
            filled[rank].append(replace(block, idle=((filler,),) * (rounds - len(block.batches))))
    return filled
