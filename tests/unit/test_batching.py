"""From groups to micro-batches: nothing lost, nothing doubled, the budget kept."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.batching import Block, Sample, blocks, denominators, flatten, padding_share
from entrostat.learner.microbatch import collate
from entrostat.protocol.errors import TaskError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import PolicyVersion
from tests.tiny_policy import make_group, make_order

VERSION = PolicyVersion(branch=0, step=0)


def sample(index: int, prompt: int, response: int, *, counts: bool = True) -> Sample:
    tokens = np.arange(100 * index, 100 * index + prompt + response, dtype=np.int32)
    return Sample(
        index=index,
        group=index,
        tokens=tokens,
        prompt_length=prompt,
        behaviour=np.arange(response, dtype=np.float32) - index,
        advantage=float(index),
        weight=0.25 * index,
        coefficient=0.5 * index,
        balance=1.0,
        in_policy=True,
        counts=counts,
    )


def held(block: Block) -> tuple[int, list[int]]:
    """Tokens of the block's prompts and of each of its micro-batches, padding included."""
    prompts = [len(prompt) for prompt in block.prompts]
    rows = [[one.response_length if block.prompts else len(one.tokens) for one in batch] for batch in block.batches]
    return len(prompts) * max(prompts, default=0), [len(lengths) * max(lengths) for lengths in rows]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), max_size=30), st.integers(1, 200), st.booleans())
@settings(max_examples=100)
def test_every_sample_with_a_response_is_in_exactly_one_micro_batch_within_the_budget(
    lengths: list[tuple[int, int]], budget: int, shared: bool
) -> None:
    samples = [sample(i, prompt, response) for i, (prompt, response) in enumerate(lengths)]
    plan = blocks(samples, budget, shared=shared)
    seen = sorted(one.index for block in plan for batch in block.batches for one in batch)
    assert seen == [one.index for one in samples if one.response_length]
    for block in plan:
        first, others = held(block)
        for batch, rows in zip(block.batches, others, strict=True):
            assert first + rows <= budget or len(batch) == 1
        assert first <= budget / 2 or len(block.prompts) <= 1
        sizes = [one.response_length if shared else len(one.tokens) for batch in block.batches for one in batch]
        assert sizes == sorted(sizes, reverse=True)
    real = sum(
        sum(map(len, block.prompts))
        + sum(one.response_length if shared else len(one.tokens) for batch in block.batches for one in batch)
        for block in plan
    )
    every = sum(first + sum(others) for first, others in map(held, plan))
    assert padding_share(plan) == pytest.approx(1 - real / every if every else 0.0)


def family(index: int, prompt: int, *responses: int) -> list[Sample]:
    """Samples of one prompt."""
    start = np.arange(100 * index, 100 * index + prompt)
    return [
        replace(one, tokens=np.concatenate([start, one.tokens[prompt:]]).astype(np.int32))
        for one in (sample(index + i, prompt, response) for i, response in enumerate(responses))
    ]


def test_a_group_without_a_prompt_is_refused_by_name() -> None:
    whole, empty = make_group(1), make_group(2)
    empty = msgspec.structs.replace(
        empty, rollout=msgspec.structs.replace(empty.rollout, prompt_tokens=np.zeros(0, np.int32))
    )
    order = make_order([whole, empty], VERSION)
    with pytest.raises(TaskError, match=r"group of lease 2 came without a prompt: prompt 2 has 0 tokens"):
        flatten(order.groups, [whole, empty], LearnerSettings())


def test_samples_of_one_prompt_share_it_and_one_block() -> None:
    samples = [*family(10, 4, 3, 5, 1), *family(20, 6, 2, 2), *family(30, 4, 7)]
    (whole,) = blocks(samples, 1000, shared=True)
    assert [prompt.tolist() for prompt in whole.prompts] == [
        list(range(2000, 2006)),
        list(range(1000, 1004)),
        list(range(3000, 3004)),
    ]
    assert [[one.response_length for one in batch] for batch in whole.batches] == [[7, 5, 3, 2, 2, 1]]
    # At 20 tokens only one of the prompts, of 6, or two, of 4, may be held: at most half.
    cut = blocks(samples, 20, shared=True)
    assert [len(block.prompts) for block in cut] == [1, 2]
    assert [[one.response_length for one in batch] for batch in cut[1].batches] == [[7], [5, 3], [1]]


def test_a_micro_batch_half_full_takes_no_much_shorter_sample() -> None:
    (block,) = blocks(family(1, 2, 8, 8, 8, 7, 7, 6, 6, 6, 2), 66, shared=True)
    # 64 tokens of response: eight rows of 8. With five it is over half full, and 6 is less than seven eighths of 8.
    assert [[one.response_length for one in batch] for batch in block.batches] == [[8, 8, 8, 7, 7], [6, 6, 6, 2]]


def test_copies_of_a_long_prompts_keys_are_bounded() -> None:
    (block,) = blocks(family(1, 90, *[1] * 10), 100, shared=True)
    # Ten tokens of response fit beside the prompt, but only four copies of its 90 keys into four times the budget.
    assert [len(batch) for batch in block.batches] == [4, 4, 2]


def test_rows_that_go_on_from_a_prompt_start_with_its_last_state() -> None:
    samples = [*family(1, 3, 4, 1), *family(7, 5, 2)]
    (block,) = blocks(samples, 1000, shared=True)
    batch = collate(block.batches[0], block, device=torch.device("cpu"), dtype=torch.float64)
    assert [one.index for one in block.batches[0]] == [1, 7, 2]
    assert batch.prompt.tolist() == [1, 0, 1]
    assert batch.tokens[0].tolist() == [103, 104, 105]
    last = torch.tensor([[prompt[-1]] for prompt in block.prompts])[batch.prompt]
    before = torch.cat([last, batch.tokens], 1).flatten()[batch.positions]
    assert before.tolist() == [102, 103, 104, 105, 704, 705, 102]
    assert batch.targets.tolist() == [103, 104, 105, 106, 705, 706, 203]


def test_every_response_token_is_predicted_from_the_token_before_it() -> None:
    samples = [sample(1, 3, 4), sample(2, 2, 1), sample(3, 5, 2)]
    batch = collate(samples, Block(prompts=(), batches=()), device=torch.device("cpu"), dtype=torch.float64)
    before = batch.tokens.flatten()[batch.positions]
    assert (batch.targets - before).tolist() == [1] * 7
    assert batch.targets.tolist() == [103, 104, 105, 106, 202, 305, 306]
    assert batch.responses.sample.tolist() == [1, 1, 1, 1, 2, 3, 3]
    assert batch.responses.advantage.tolist() == [1.0] * 4 + [2.0] + [3.0] * 2
    assert batch.responses.coefficient.tolist() == [0.5] * 4 + [1.0] + [1.5] * 2
    assert batch.responses.behaviour.tolist() == [-1.0, 0.0, 1.0, 2.0, -2.0, -3.0, -2.0]


def test_denominators_count_rejected_samples_only_in_the_entropy_term() -> None:
    count = denominators([sample(0, 3, 4), sample(1, 2, 5, counts=False), sample(2, 2, 1)])
    assert (count.policy_tokens, count.response_tokens) == (5, 10)


def test_groups_become_samples_with_their_own_advantages_and_coefficients() -> None:
    groups = [make_group(0), make_group(1, rewards=(1.0, 1.0, 1.0)), make_group(2, rewards=(0.0, 1.0), truncated=1)]
    order = make_order(groups, VERSION, coefficient=0.3)
    samples = flatten(order.groups, groups, LearnerSettings())
    assert [one.index for one in samples] == list(range(9))
    assert [one.advantage for one in samples] == pytest.approx([1, -1, -1, 1, 0, 0, 0, -1, 1])
    assert [one.counts for one in samples] == [True] * 7 + [False, True]
    assert {one.coefficient for one in samples} == {0.3}
    response = np.concatenate([one.tokens[one.prompt_length :] for one in samples[4:7]])
    assert response.tolist() == groups[1].rollout.samples.tokens.tolist()
    behaviour = np.concatenate([one.behaviour for one in samples[4:7]])
    assert behaviour.tolist() == groups[1].rollout.samples.logprobs.tolist()
    assert samples[0].tokens[: samples[0].prompt_length].tolist() == groups[0].rollout.prompt_tokens.tolist()


def test_a_penalised_truncated_sample_counts_and_is_worth_less() -> None:
    groups = [make_group(0, rewards=(1.0, 1.0), truncated=1)]
    samples = flatten(
        make_order(groups, VERSION).groups,
        groups,
        LearnerSettings(truncated="penalise", truncation_penalty=0.5, advantages="centred"),
    )
    assert [one.advantage for one in samples] == [-0.25, 0.25]
    assert all(one.counts for one in samples)
