"""How a step's samples are shared out among ranks, and that all ranks make the same passes."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.batching import Block, Sample, blocks, packed_blocks, padding_share
from entrostat.learner.shares import in_step, shares

FAMILIES = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(0, 60), min_size=1, max_size=6)), min_size=1, max_size=8
)


def samples_of(families: Sequence[tuple[int, list[int]]]) -> list[Sample]:
    """Samples of prompts of these lengths, each with responses of these lengths; no two prompts are alike."""
    made: list[Sample] = []
    for group, (prompt, responses) in enumerate(families):
        for response in responses:
            tokens = np.full(prompt + response, 3 + group, np.int32)
            made.append(
                Sample(
                    index=len(made),
                    group=group,
                    tokens=tokens,
                    prompt_length=prompt,
                    behaviour=np.zeros(response, np.float32),
                    advantage=0.0,
                    weight=1.0,
                    coefficient=0.0,
                    balance=1.0,
                    in_policy=True,
                    counts=True,
                )
            )
    return made


def cost_of(part: Sequence[Sample], *, shared: bool) -> int:
    prompts = {one.prompt.tobytes(): one.prompt_length for one in part}
    whole = sum(prompts.values()) if shared else sum(one.prompt_length for one in part)
    return whole + sum(one.response_length for one in part)


@given(families=FAMILIES, count=st.integers(1, 5), shared=st.booleans())
@settings(deadline=None)
def test_every_sample_with_tokens_is_in_one_share_and_shares_cost_alike(
    families: list[tuple[int, list[int]]], count: int, shared: bool
) -> None:
    samples = samples_of(families)
    parts = shares(samples, count, shared=shared)
    assert len(parts) == count
    taught = sorted(one.index for one in samples if one.response_length)
    assert sorted(one.index for part in parts for one in part) == taught
    # A prompt that is cut apart is computed twice; else no share is more than a sample off the mean.
    largest = max((one.prompt_length + one.response_length for one in samples), default=0)
    mean = cost_of([one for one in samples if one.response_length], shared=shared) / count
    for part in parts:
        assert abs(cost_of(part, shared=shared) - mean) <= 2 * largest


@given(families=FAMILIES, count=st.integers(2, 5))
@settings(deadline=None)
def test_fewer_prompts_are_computed_twice_than_there_are_ranks(
    families: list[tuple[int, list[int]]], count: int
) -> None:
    parts = shares(samples_of(families), count, shared=True)
    held = [{one.prompt.tobytes() for one in part} for part in parts]
    together: set[bytes] = set().union(*held)
    assert sum(map(len, held)) - len(together) <= count - 1


@given(
    families=FAMILIES,
    count=st.integers(1, 5),
    kind=st.sampled_from(["shared", "whole", "packed"]),
    budget=st.integers(1, 200),
)
@settings(deadline=None)
def test_all_ranks_make_the_same_passes_and_the_idle_ones_are_of_prompts_that_are_there(
    families: list[tuple[int, list[int]]], count: int, kind: str, budget: int
) -> None:
    shared = kind == "shared"
    parts = shares(samples_of(families), count, shared=shared)
    if kind == "packed":
        plans = in_step([packed_blocks(part, budget) for part in parts])
    else:
        plans = in_step([blocks(part, budget, shared=shared) for part in parts])
    passes = [[(bool(block.prompts), block.packed, len(list(block.rounds()))) for block in plan] for plan in plans]
    assert all(one == other for one, other in pairwise(passes))
    for part, plan in zip(parts, plans, strict=True):
        real = [one for block in plan for batch, counts in block.rounds() for one in batch if counts]
        assert sorted(one.index for one in real) == sorted(one.index for one in part)
        for block in plan:
            there = {prompt.tobytes() for prompt in block.prompts}
            for batch, _ in block.rounds():
                assert not there or {one.prompt.tobytes() for one in batch} <= there


@pytest.mark.parametrize("shared", [True, False])
def test_one_rank_has_no_idle_rounds(shared: bool) -> None:
    samples = samples_of([(3, [4, 5, 0]), (2, [9])])
    given_plan = blocks(samples, 12, shared=shared)
    assert in_step([given_plan]) == [given_plan]


def test_what_is_computed_idly_is_padding() -> None:
    long, short = samples_of([(2, [6]), (2, [2])])
    busy = Block(prompts=(long.prompt,), batches=((long,),))
    plans = in_step([[busy], [Block(prompts=(short.prompt,), batches=((short,),))]])
    assert padding_share(block for plan in plans for block in plan) == 0.0
    packed = in_step([packed_blocks([long], 9), packed_blocks([short, short], 4)])
    assert [block.packed for plan in packed for block in plan] == [True, True]
    assert padding_share(block for plan in packed for block in plan) == pytest.approx(8 / (8 + 8 + 4 + 4))
    idle = in_step([[busy], []])
    assert idle[1][0].idle == ((long,),)
    assert padding_share(block for plan in idle for block in plan) == pytest.approx(0.5)
