"""Whose turn each place of an epoch is where tasks have weights: exact shares, and every prompt equally often."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.controller.prompts import PromptOrder
from entrostat.controller.turns import Turns, WeightedTasks
from entrostat.protocol.errors import TaskError

PROMPTS, WEIGHTS = (60, 30, 10), (1.0, 1.0, 2.0)
LEVELS = np.array([prompt % 3 for prompt in range(100)], np.int32)


def turns(seed: int = 3, *, shuffle: bool = True) -> Turns:
    return Turns(100, seed, shuffle=shuffle, levels=LEVELS, tasks=WeightedTasks(PROMPTS, WEIGHTS))


def task_of(prompts: np.ndarray, counts: tuple[int, ...] = PROMPTS) -> np.ndarray:
    return np.searchsorted(np.cumsum(counts), prompts, side="right")


def test_a_task_has_its_weights_share_of_every_epoch() -> None:
    for epoch in range(4):
        assert np.bincount(task_of(turns().of_epoch(epoch))).tolist() == [25, 25, 50]


def test_every_stretch_of_an_epoch_holds_each_task_and_each_of_its_levels_in_its_share() -> None:
    order = turns().of_epoch(1)
    for start in range(80):
        stretch = order[start : start + 20]
        assert np.all(np.abs(np.bincount(task_of(stretch), minlength=3) - np.array([5, 5, 10])) <= 2)
        assert np.all(np.abs(np.bincount(LEVELS[stretch], minlength=3) - 20 / 3) <= 6)


def test_at_every_moment_two_prompts_of_a_task_differ_by_one_turn_at_most() -> None:
    sequence = np.concatenate([turns().of_epoch(epoch) for epoch in range(5)])
    for end in range(1, sequence.size, 7):
        counts = np.bincount(sequence[:end], minlength=100)
        assert all(np.ptp(part) <= 1 for part in np.split(counts, np.cumsum(PROMPTS)[:-1]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 20.0)), min_size=1, max_size=5),
    st.booleans(),
    st.integers(0, 2**48),
)
def test_shares_are_exact_to_a_place_and_prompts_of_a_task_equal_whatever_the_weights(
    tasks: list[tuple[int, float]], shuffle: bool, seed: int
) -> None:
    counts, weights = (tuple(column) for column in zip(*tasks, strict=True))
    total = sum(counts)
    if any(total * weight / sum(weights) < 1.0 for weight in weights):
        with pytest.raises(TaskError, match="less than one of the"):
            WeightedTasks(counts, weights)
        return
    made = Turns(total, seed, shuffle=shuffle, levels=None, tasks=WeightedTasks(counts, weights))
    seen = np.zeros(total, np.int64)
    for epoch in range(3):
        order = made.of_epoch(epoch)
        places = np.bincount(task_of(order, counts), minlength=len(counts))
        assert np.all(np.abs(places - total * np.array(weights) / sum(weights)) < 1.0)
        seen += np.bincount(order, minlength=total)
        assert all(np.ptp(part) <= 1 for part in np.split(seen, np.cumsum(counts)[:-1]))


def test_another_seed_has_another_order_and_the_same_seed_the_same() -> None:
    assert np.array_equal(turns(3).of_epoch(2), turns(3).of_epoch(2))
    assert not np.array_equal(turns(3).of_epoch(2), turns(4).of_epoch(2))
    assert not np.array_equal(turns(3).of_epoch(2), turns(3).of_epoch(3))


def test_the_place_left_over_goes_to_the_largest_remainder() -> None:
    assert WeightedTasks((5, 5), (0.66, 0.34)).places == (7, 3)


def test_tasks_are_mixed_and_walked_anew_by_the_seed() -> None:
    tasks = WeightedTasks((50, 50), (1.0, 1.0))
    made = Turns(100, 3, shuffle=True, levels=None, tasks=tasks)
    first, second = made.of_epoch(0), made.of_epoch(1)
    assert task_of(first, (50, 50)).tolist() != task_of(second, (50, 50)).tolist()
    assert first[first < 50].tolist() != (first[first >= 50] - 50).tolist(), "two tasks do not walk in step"


def test_unshuffled_a_task_goes_through_its_prompts_by_id() -> None:
    order = turns(shuffle=False).of_epoch(0)
    assert order[task_of(order) == 1].tolist() == list(range(60, 85))
    order = turns(shuffle=False).of_epoch(1)
    assert order[task_of(order) == 1].tolist() == [*range(85, 90), *range(60, 80)]


def test_a_run_s_places_follow_the_same_sequence_as_its_leases() -> None:
    one, other = (PromptOrder(100, 3, shuffle=True, tasks=WeightedTasks(PROMPTS, WEIGHTS)) for _ in range(2))
    taken = [one.take((), 0) for _ in range(250)]
    assert [other.at(place) for place in range(250)] == taken


def test_a_weighted_order_goes_on_in_the_middle_of_an_epoch() -> None:
    def made() -> PromptOrder:
        return PromptOrder(100, 3, shuffle=True, tasks=WeightedTasks(PROMPTS, WEIGHTS))

    order, later = made(), made()
    for _ in range(130):
        order.take((), 0)
    later.restore(order.position())
    assert [order.take((), 0) for _ in range(200)] == [later.take((), 0) for _ in range(200)]


def test_a_small_task_with_a_large_share_starves_nobody_while_its_prompts_are_busy() -> None:
    order = PromptOrder(42, 3, shuffle=True, tasks=WeightedTasks((2, 40), (9.0, 1.0)))
    busy: list[int] = []
    seen: Counter[int] = Counter()
    for _ in range(2000):
        prompt = order.take(busy, len(busy))
        assert prompt not in busy
        seen[prompt] += 1
        busy.append(prompt)
        if len(busy) == 8:
            order.freed(busy.pop(0))
    assert len(seen) == 42
    others = [seen[prompt] for prompt in range(2, 42)]
    assert max(others) - min(others) <= 2
