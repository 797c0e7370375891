"""An order cut into parts: every group whole, every sample once in each epoch."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.batching import Sample
from entrostat.learner.minibatches import minibatches
from tests.unit.test_batching import sample


def samples_of(sizes: list[int], *, response: int = 3) -> list[Sample]:
    of = [g for g, size in enumerate(sizes) for _ in range(size)]
    return [replace(sample(i, 2, response), group=g) for i, g in enumerate(of)]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**48 - 1),
)
@settings(max_examples=100)
def test_each_epoch_takes_every_sample_once_and_groups_whole(
    sizes: list[int], count: int, epochs: int, seed: int
) -> None:
    samples = samples_of(sizes)
    parts = list(minibatches(samples, count, epochs, seed))
    of_epoch = min(count, len(sizes))
    assert len(parts) == of_epoch * epochs
    for start in range(0, len(parts), of_epoch):
        epoch = parts[start : start + of_epoch]
        assert sorted(one.index for part in epoch for one in part) == list(range(len(samples)))
        groups = [{one.group for one in part} for part in epoch]
        assert sum(map(len, groups)) == len(sizes)
        assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_a_single_part_is_the_order_as_it_came() -> None:
    samples = samples_of([2, 3])
    assert list(minibatches(samples, 1, 2, 7)) == [tuple(samples)] * 2


def test_the_seed_shuffles_and_each_epoch_is_cut_anew() -> None:
    samples = samples_of([1] * 16)

    def cut(seed: int) -> list[list[int]]:
        return [sorted(one.group for one in part) for part in minibatches(samples, 4, 2, seed)]

    assert cut(1) == cut(1) != cut(2)
    assert cut(1)[:4] != cut(1)[4:]
    assert cut(1)[0] != [0, 1, 2, 3]


def test_groups_without_a_response_token_make_no_part() -> None:
    samples = [*samples_of([1, 1]), replace(sample(2, 2, 0), group=2)]
    parts = list(minibatches(samples, 3, 1, 0))
    assert sorted(one.index for part in parts for one in part) == [0, 1]
    assert len(parts) == 2
    empty = [replace(sample(0, 2, 0), group=0)]
    assert list(minibatches(empty, 3, 1, 0)) == [tuple(empty)]
