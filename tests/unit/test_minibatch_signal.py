"""What groups without an advantage signal may do to the parts of an order: spread evenly, and never a bonus alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.batching import Sample, flatten
from entrostat.learner.minibatches import bounded, has_signal, minibatches
from entrostat.learner.objective import Objective
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.steps import Taken, take
from entrostat.protocol.entropy_settings import ClampedEntropy
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import PolicyVersion, TrainOrder
from tests.tiny_policy import in_float64, loaded, make_group, make_order, make_policy
from tests.unit.test_batching import sample

GROUPS = [make_group(0), make_group(1, rewards=(0.0, 0.0)), make_group(2, rewards=(0.0, 0.0))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


def silent_or_not(signals: list[bool]) -> list[Sample]:
    """Two samples a group; those of one with a signal have advantages of 1 and −1."""
    return [
        replace(sample(2 * g + i, 2, 3), group=g, advantage=(1.0, -1.0)[i] if signal else 0.0)
        for g, signal in enumerate(signals)
        for i in range(2)
    ]


def spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


@given(st.lists(st.booleans(), min_size=2, max_size=20), st.integers(2, 6), st.integers(0, 2**48 - 1))
@settings(max_examples=200)
def test_groups_with_and_without_a_signal_are_spread_evenly(signals: list[bool], count: int, seed: int) -> None:
    parts = list(minibatches(silent_or_not(signals), count, 1, seed))
    groups = [{one.group for one in part} for part in parts]
    assert sorted(g for part in groups for g in part) == list(range(len(signals)))
    assert spread([sum(signals[g] for g in part) for part in groups]) <= 1
    assert spread([sum(not signals[g] for g in part) for part in groups]) <= 1
    assert spread([len(part) for part in groups]) <= 1
    if sum(signals) >= len(parts):
        assert all(map(has_signal, parts))


def test_it_is_left_to_the_seed_which_part_has_one_group_with_a_signal_more() -> None:
    samples = silent_or_not([True] * 3 + [False] * 3)
    first = {len({one.group for one in next(minibatches(samples, 2, 1, seed)) if one.advantage}) for seed in range(20)}
    assert first == {1, 2}


@pytest.mark.parametrize(
    ("changes", "signal"),
    [
        ({}, True),
        ({"advantage": 0.0}, False),
        ({"counts": False}, False),
        ({"in_policy": False}, False),
        ({"tokens": sample(0, 2, 0).tokens}, False),
    ],
)
def test_a_signal_is_an_advantage_that_reaches_the_policy_term(changes: dict[str, Any], signal: bool) -> None:
    one = replace(sample(0, 2, 3), **{"advantage": -1.0, **changes})
    assert has_signal([replace(sample(1, 2, 3), advantage=0.0), one]) is signal


@pytest.mark.parametrize("coefficient", [0.3, 0.0, -0.3])
def test_a_part_without_a_signal_loses_its_bonus_whatever_its_sign(coefficient: float) -> None:
    silent = silent_or_not([False])
    found = bounded(tuple(replace(one, weight=2.0, coefficient=coefficient) for one in silent))
    assert [(one.coefficient, one.weight) for one in found] == [(0.0, 0.0)] * 2
    taught = tuple(silent_or_not([False, True]))
    assert bounded(taught) is taught


def taken(folder: Path, coefficient: float, **changes: Any) -> Taken:
    learner = LearnerSettings(lr=1e-3, microbatch_tokens=60, minibatches=3, gradient_clip=1e9)
    learner = msgspec.structs.replace(learner, **changes)
    wanted = Objective(learner=learner, estimator=ClampedEntropy(drop_fraction=0.25), temperature=0.8)
    order: TrainOrder = make_order(GROUPS, PolicyVersion(branch=0, step=0), coefficient, seed=3)
    policy = in_float64(loaded(folder))
    optimizer = Optimizer(policy.model.named_parameters(), learner)
    samples = flatten(order.groups, GROUPS, learner)
    return take(policy, None, optimizer, samples, wanted, order, 1e-3, "step 1")


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("coefficient", [0.3, -0.3])
def test_a_step_of_groups_without_a_signal_has_no_gradient_of_a_bonus(
    folder: Path, coefficient: float, measured: bool
) -> None:
    found = taken(folder, coefficient, measure_balance=measured)
    silent = [step for step in found.steps if step.measured.terms.policy == 0.0]
    assert len(silent) == 2
    for step in silent:
        assert step.measured.terms.bonus == step.gradient_norm == 0.0
    (loud,) = [step for step in found.steps if step not in silent]
    assert abs(loud.measured.terms.bonus) > 1e-3
    # What is reported of the order is what was ordered.
    assert {one.coefficient for one in found.samples} == {coefficient}


def test_a_coefficient_that_is_no_number_is_refused_where_there_is_no_signal_too(folder: Path) -> None:
    silent = bounded(tuple(replace(one, coefficient=math.nan) for one in silent_or_not([False])))
    assert all(math.isnan(one.coefficient) for one in silent)
    with pytest.raises(NumericsError, match="λ_q = nan"):
        taken(folder, math.nan)
