"""What the law is told: which entropy, and at which mix of levels."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from entrostat.controller.thermometer import (
    AnchorMix,
    Estimator,
    bonus_estimator,
    driving_estimator,
    measure,
    reweighted,
)
from entrostat.protocol.entropy_settings import (
    ClampedEntropy,
    EntropySettings,
    EstimatorSettings,
    FullEntropy,
    NucleusEntropy,
    TopKEntropy,
)
from entrostat.protocol.messages import LevelEntropy, StepReport
from tests.made_messages import plain_report

ENTROPIES = {"easy": 0.1, "hard": 0.7, "odd": 0.3}
TOKENS = st.dictionaries(st.sampled_from(list(ENTROPIES)), st.integers(1, 500), min_size=1)


def report_of(tokens: Mapping[str, int], entropies: Mapping[str, float] = ENTROPIES) -> StepReport:
    """A step over so many tokens of each level; H̃ is half of H, −log π one and a half times it."""
    total = sum(tokens.values())
    whole = sum(count * entropies[level] for level, count in tokens.items()) / total
    return replace(
        plain_report(),
        entropy=whole,
        clamped_entropy=whole / 2,
        sampled_entropy=whole * 1.5,
        response_tokens=total,
        levels=tuple(
            LevelEntropy(
                level=level,
                tokens=count,
                entropy=entropies[level],
                clamped_entropy=entropies[level] / 2,
                sampled_entropy=entropies[level] * 1.5,
            )
            for level, count in tokens.items()
        ),
    )


def course(
    orders: list[dict[str, int]], *, anchor_orders: int, completed: list[dict[str, int]] | None = None
) -> tuple[list[float], float | None]:
    """The entropies a law is told, and H_0."""
    mix, told, initial = AnchorMix(), [], None
    for number, tokens in enumerate(orders):
        everything = tokens if completed is None else completed[number]
        anchoring = number < anchor_orders
        measurement, mix = measure(report_of(tokens), "full", mix=mix, completed=everything, anchoring=anchoring)
        told.append(measurement.entropy)
        initial = measurement.initial if anchoring else initial
    return told, initial


@given(st.lists(TOKENS, min_size=1, max_size=8))
@settings(max_examples=60)
def test_batches_of_any_mix_tell_the_same_while_each_levels_entropy_stays(orders: list[dict[str, int]]) -> None:
    anchor = {"easy": 300, "hard": 100, "odd": 100}
    whole = [{**dict.fromkeys(anchor, 1), **order} for order in orders]  # every level is there
    told, initial = course([anchor, *whole], anchor_orders=1)
    assert told == pytest.approx([0.6 * 0.1 + 0.2 * 0.7 + 0.2 * 0.3] * len(told))
    assert initial == pytest.approx(told[0])


@given(st.lists(TOKENS, min_size=4, max_size=8))
@settings(max_examples=60)
def test_the_first_entropy_of_several_orders_is_taken_at_their_mix(orders: list[dict[str, int]]) -> None:
    everywhere = [{**dict.fromkeys(ENTROPIES, 1), **order} for order in orders]
    told, initial = course(everywhere, anchor_orders=3)
    by_hand = {level: sum(order[level] for order in everywhere[:3]) for level in ENTROPIES}
    expected = sum(count * ENTROPIES[level] for level, count in by_hand.items()) / sum(by_hand.values())
    assert initial == pytest.approx(expected)
    assert told[2:] == pytest.approx([expected] * (len(told) - 2))


def test_tokens_of_groups_that_a_filter_left_out_count_in_the_mix() -> None:
    trained = [{"easy": 10, "hard": 90}, {"easy": 90, "hard": 10}]
    told, initial = course(trained, anchor_orders=1, completed=[{"easy": 300, "hard": 100}] * 2)
    assert told == pytest.approx([0.75 * 0.1 + 0.25 * 0.7] * 2)
    assert initial == pytest.approx(told[0])


def test_a_level_missing_from_an_order_leaves_its_share_to_those_present() -> None:
    told, _ = course([{"easy": 50, "hard": 25, "odd": 25}, {"hard": 3, "odd": 400}], anchor_orders=1)
    assert told[1] == pytest.approx((0.7 + 0.3) / 2)


def test_a_level_that_was_not_met_before_does_not_count() -> None:
    told, _ = course([{"easy": 50, "hard": 50}, {"easy": 1, "hard": 1, "odd": 400}], anchor_orders=1)
    assert told == pytest.approx([0.4, 0.4])
    only_new, _ = course([{"easy": 50, "hard": 50}, {"odd": 400}], anchor_orders=1)
    assert only_new[1] == pytest.approx(0.3)  # nothing better is known than what the order says


def test_one_level_changes_nothing() -> None:
    told, initial = course([{"hard": 7}, {"hard": 9}], anchor_orders=1)
    assert told == [0.7, 0.7]
    assert initial is None


def test_a_report_without_levels_is_taken_as_it_is() -> None:
    report = replace(report_of({"easy": 1, "hard": 1}), levels=())
    got, _ = measure(report, "full", mix=AnchorMix(), completed={"easy": 3, "hard": 1}, anchoring=True)
    assert got.entropy == pytest.approx(0.4)
    assert (got.initial, got.tokens) == (None, 2)


def test_no_number_stays_no_number() -> None:
    broken = report_of({"easy": 1, "hard": 1}, {"easy": 0.1, "hard": math.nan})
    for report in (broken, replace(report_of({"easy": 1, "hard": 1}), entropy=math.nan)):
        got, _ = measure(report, "full", mix=AnchorMix(), completed={"easy": 3, "hard": 1}, anchoring=True)
        assert math.isnan(got.entropy)


@pytest.mark.parametrize(("driving", "factor"), [("full", 1.0), ("nucleus", 0.5), ("clamped", 0.5), ("sampled", 1.5)])
def test_the_law_is_told_the_entropy_that_drives_it(driving: Estimator, factor: float) -> None:
    report, completed = report_of({"easy": 30, "hard": 10}), {"easy": 10, "hard": 10}
    got, mix = measure(report, driving, mix=AnchorMix(), completed=completed, anchoring=True)
    assert got.entropy == pytest.approx(0.4 * factor)
    assert mix.shares == {"easy": 0.5, "hard": 0.5}


def test_what_drives_the_law_has_a_name() -> None:
    names: dict[str, EstimatorSettings] = {
        "clamped": ClampedEntropy(),
        "full": FullEntropy(),
        "top_k": TopKEntropy(),
        "nucleus": NucleusEntropy(),
    }
    for name, chosen in names.items():
        assert driving_estimator(EntropySettings(estimator=chosen)) == name
        assert driving_estimator(EntropySettings(estimator=chosen, measured="full")) == "full"
        assert driving_estimator(EntropySettings(estimator=chosen, measured="sampled")) == "sampled"
        assert bonus_estimator(EntropySettings(estimator=chosen, measured="sampled")) == name


def test_nothing_in_common_is_no_entropy() -> None:
    assert reweighted({"easy": 0.1}, {"hard": 1.0}) is None
    assert reweighted({}, {}) is None
    assert AnchorMix().entropy is None
    assert AnchorMix().shares == {}
