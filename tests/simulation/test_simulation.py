"""Whole runs on virtual time, from seeds: every promise holds whatever goes wrong, and a broken one is found."""

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.simulation.__main__ import told
from tests.simulation.mutants import found
from tests.simulation.scale import Size, measure
from tests.simulation.simulate import simulate

SEEDS = 100
BLOCK = 10
met: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What goes wrong on purpose fills no log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_promise_holds_whatever_goes_wrong(first: int) -> None:
    for seed in range(first, first + BLOCK):
        outcome = simulate(seed)
        assert not outcome.violation, told(outcome)
        met.update(outcome.met)


def test_the_seeds_meet_every_kind_of_fault() -> None:
    if not met:
        pytest.skip("the seeds did not run in this process")
    stations = ("controller", "buffer", "learner", "driver")
    kinds = ["loss", "repeat", "partition", "scale", "actor actor", "actor hang", "actor replaced"]
    kinds += [f"{station} kill" for station in stations] + ["controller crash", "buffer crash"]
    assert all(met[kind] for kind in kinds), met


def test_a_seed_is_lived_through_the_same_way_again() -> None:
    first, again = simulate(3), simulate(3)
    assert first == again
    assert first != simulate(4)


@pytest.mark.parametrize(
    "name",
    [
        "a replaced actor's reports count",
        "leases beyond the bound on staleness",
        "no fence between lives of a slot",
        "age not checked when a batch is made",
        "prompts of ended leases are not put back",
        "groups are sent once",
        "the journal is never synced",
        "passing over does not follow from the place",
        "held prompts are judged again",
    ],
)
def test_a_fault_built_in_on_purpose_is_found(name: str) -> None:
    assert found(name, 0, 40) is not None


def test_a_failure_says_where_it_was_and_how_to_see_it_again() -> None:
    text = told(simulate(5))
    assert "again: python -m tests.simulation --first 5 --seeds 1" in text
    assert "virtual second" in text


def test_many_actors_share_the_leases_and_their_counts_add_up() -> None:
    measured = measure(Size(actors=60, prompts=500, steps=30, batch=8, staleness=8))
    assert measured.groups == 8 * 30
    assert measured.ends["expired"] > 0
