"""From groups to micro-batches: nothing lost, nothing doubled, the budget kept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.batching import Sample, collate, denominators, flatten, micro_batches, padding_share
from entrostat.protocol.messages import PolicyVersion
from entrostat.protocol.settings import LearnerSettings
from tests.tiny_policy import make_group, make_order

VERSION = PolicyVersion(branch=0, step=0)


def sample(index: int, prompt: int, response: int, *, counts: bool = True) -> Sample:
    tokens = np.arange(100 * index, 100 * index + prompt + response, dtype=np.int32)
    return Sample(
        index=index,
        tokens=tokens,
        prompt_length=prompt,
        behaviour=np.arange(response, dtype=np.float32) - index,
        advantage=float(index),
        coefficient=0.5 * index,
        counts=counts,
    )


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), max_size=30), st.integers(1, 200))
@settings(max_examples=60)
def test_every_sample_with_a_response_is_in_exactly_one_micro_batch_within_the_budget(
    lengths: list[tuple[int, int]], budget: int
) -> None:
    samples = [sample(i, prompt, response) for i, (prompt, response) in enumerate(lengths)]
    batches = micro_batches(samples, budget)
    seen = sorted(one.index for batch in batches for one in batch)
    assert seen == [one.index for one in samples if one.response_length]
    for batch in batches:
        held = len(batch) * max(len(one.tokens) for one in batch)
        assert held <= budget or len(batch) == 1
    sizes = [len(one.tokens) for batch in batches for one in batch]
    assert sizes == sorted(sizes, reverse=True)
    real = sum(len(one.tokens) for batch in batches for one in batch)
    held = sum(len(batch) * max(len(one.tokens) for one in batch) for batch in batches)
    assert padding_share(batches) == pytest.approx(1 - real / held if held else 0.0)


def test_every_response_token_is_predicted_from_the_token_before_it() -> None:
    samples = [sample(1, 3, 4), sample(2, 2, 1), sample(3, 5, 2)]
    batch = collate(samples, device=torch.device("cpu"), dtype=torch.float64)
    before = batch.tokens.flatten()[batch.positions]
    assert (batch.targets - before).tolist() == [1] * 7
    assert batch.targets.tolist() == [103, 104, 105, 106, 202, 305, 306]
    assert batch.sample.tolist() == [1, 1, 1, 1, 2, 3, 3]
    assert batch.advantage.tolist() == [1.0] * 4 + [2.0] + [3.0] * 2
    assert batch.coefficient.tolist() == [0.5] * 4 + [1.0] + [1.5] * 2
    assert batch.behaviour.tolist() == [-1.0, 0.0, 1.0, 2.0, -2.0, -3.0, -2.0]


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
        LearnerSettings(truncated="penalise", truncation_penalty=0.5, normalise_advantages=False),
    )
    assert [one.advantage for one in samples] == [-0.25, 0.25]
    assert all(one.counts for one in samples)
