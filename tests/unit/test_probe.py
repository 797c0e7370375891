"""The probe's decision: which log-probs make a version servable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.actors.probe import Receipt, judge, sequences
from entrostat.protocol.arrays import Float32
from entrostat.protocol.messages import Probe

COMPLETE = Receipt(loaded=("a", "b"), missing=(), damaged=())
HEADLESS = Receipt(loaded=("a",), missing=("lm_head.weight",), damaged=())
DAMAGED = Receipt(loaded=("a", "b"), missing=(), damaged=("b",))


def probe(published: Float32, previous: Float32, tolerance: float = 1e-4) -> Probe:
    return Probe(
        tokens=np.arange(len(published) + 2, dtype=np.int32),
        lengths=np.asarray([3, len(published) - 1], np.int32),
        logprobs=published,
        previous=previous,
        tolerance=tolerance,
    )


def parts(values: Float32) -> list[Float32]:
    return [values[:2], values[2:]]


PUBLISHED = np.asarray([-1.0, -2.0, -0.5, -3.0], np.float32)
BEFORE = PUBLISHED + np.float32(0.01)


def test_a_probe_is_cut_into_its_sequences() -> None:
    assert [list(piece) for piece in sequences(probe(PUBLISHED, BEFORE))] == [[0, 1, 2], [3, 4, 5]]


def test_what_was_published_is_accepted() -> None:
    judgement = judge(parts(PUBLISHED + np.float32(2e-6)), probe(PUBLISHED, BEFORE), HEADLESS)
    assert judgement.accepted
    assert judgement.difference == pytest.approx(2e-6, rel=0.2)


def test_one_token_beyond_the_tolerance_is_refused() -> None:
    measured = PUBLISHED.copy()
    measured[3] += 2e-4
    judgement = judge(parts(measured), probe(PUBLISHED, BEFORE), COMPLETE)
    assert not judgement.accepted
    assert judgement.difference == pytest.approx(2e-4, rel=0.01)


def test_an_engine_that_kept_the_version_before_is_refused_even_within_the_tolerance() -> None:
    judgement = judge(parts(BEFORE), probe(PUBLISHED, BEFORE, tolerance=0.05), COMPLETE)
    assert not judgement.accepted
    assert "the version before" in judgement.reason


@pytest.mark.parametrize(("receipt", "accepted"), [(COMPLETE, True), (HEADLESS, False), (DAMAGED, False)])
def test_where_two_versions_are_too_close_to_tell_the_receipt_decides(receipt: Receipt, accepted: bool) -> None:
    near = PUBLISHED + np.float32(1e-5)
    noisy = PUBLISHED + np.asarray([2e-5, -2e-5, 2e-5, -2e-5], np.float32)
    assert judge(parts(noisy), probe(PUBLISHED, near), receipt).accepted is accepted
    assert judge(parts(PUBLISHED), probe(PUBLISHED, PUBLISHED), receipt).accepted is accepted


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    measured = PUBLISHED.copy()
    measured[1] = value
    judgement = judge(parts(measured), probe(PUBLISHED, BEFORE), COMPLETE)
    assert not judgement.accepted
    assert judgement.difference == np.inf


def test_a_wrong_number_of_log_probs_is_refused() -> None:
    assert not judge([PUBLISHED[:3]], probe(PUBLISHED, BEFORE), COMPLETE).accepted
    assert not judge([], probe(PUBLISHED, BEFORE), COMPLETE).accepted


@settings(max_examples=50)
@given(st.floats(0.0, 1.0), st.floats(0.001, 0.04))
def test_between_two_distinct_versions_the_nearer_one_is_recognised(share: float, gap: float) -> None:
    """On the way from the version before (0) to this one (1), beyond the middle's doubt there is no other answer."""
    before = PUBLISHED + np.float32(gap)
    measured = (PUBLISHED * np.float32(share) + before * np.float32(1 - share)).astype(np.float32)
    accepted = judge(parts(measured), probe(PUBLISHED, before, tolerance=0.05), HEADLESS).accepted
    if abs(share - 0.5) > 0.01:
        assert accepted is (share > 0.5)
