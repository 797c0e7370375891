"""Entropy over the k most likely tokens and over a nucleus: definitions in float64, limits, finite differences."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from entrostat.learner import token_sets
from entrostat.learner.entropy import full_entropy, nucleus_entropy, nucleus_mass, top_k_entropy, top_k_mass
from entrostat.learner.token_sets import FewTokens, nucleus_tokens, top_k_tokens
from entrostat.protocol.errors import BadInput, ConfigError
from tests.few_tokens_oracle import (
    Estimator,
    entropy_by_definition,
    ids_of,
    nucleus,
    probabilities,
    random_logits,
    ranking,
    top_k,
)

ROWS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40)
MASSES = st.floats(0.01, 1)


@pytest.fixture(params=["listed", "masked"], autouse=True)
def writing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every guarantee holds for short sets, which are listed, and for long ones, which are masks."""
    if request.param == "masked":
        monkeypatch.setattr(token_sets, "LISTED_TOKENS", 1)
    return str(request.param)


ESTIMATORS = [top_k(1), top_k(2), top_k(5), top_k(36), nucleus(0.05), nucleus(0.5), nucleus(0.8), nucleus(0.999)]
each = pytest.mark.parametrize("estimator", ESTIMATORS, ids=["k1", "k2", "k5", "k36", "p.05", "p.5", "p.8", "p.999"])


def test_both_ways_of_writing_a_set_are_tried(writing: str) -> None:
    for kept in (top_k_tokens(random_logits(), 5), nucleus_tokens(random_logits(), 0.8)):
        assert isinstance(kept, FewTokens) == (writing == "listed")


@each
def test_set_entropy_and_mass_are_what_the_definition_says(estimator: Estimator) -> None:
    logits = random_logits()
    found = ids_of(estimator.tokens(logits), logits)
    values, outside = estimator.entropy(logits).tolist(), estimator.mass_outside(logits).tolist()
    for row, ids, value, mass in zip(logits.numpy(), found, values, outside, strict=True):
        assert ids == estimator.by_definition(row)
        entropy, dropped = entropy_by_definition(row, ids)
        assert value == pytest.approx(entropy, abs=1e-12)
        assert mass == pytest.approx(dropped, abs=1e-12)


@each
def test_the_gradient_agrees_with_finite_differences(estimator: Estimator) -> None:
    logits = random_logits(3, 11).requires_grad_()
    assert torch.autograd.gradcheck(estimator.entropy, (logits,))


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dropped_tokens_get_no_gradient_and_kept_ones_the_closed_form(estimator: Estimator, dtype: torch.dtype) -> None:
    logits = random_logits().to(dtype).requires_grad_()
    entropy = estimator.entropy(logits)
    entropy.sum().backward()
    assert logits.grad is not None
    for row, slope in zip(logits.detach().double().numpy(), logits.grad.double().tolist(), strict=True):
        kept = estimator.by_definition(row)
        value, outside = entropy_by_definition(row, kept)
        shares = [share / (1 - outside) for share in probabilities(row)]
        for token in range(len(row)):
            if token in kept:
                wanted = -shares[token] * (math.log(shares[token]) + value)
                assert slope[token] == pytest.approx(wanted, abs=8 * torch.finfo(dtype).eps)
            else:
                assert slope[token] == 0.0


def test_uniform_logits_have_the_entropy_of_the_kept_count() -> None:
    logits = torch.zeros(2, 100)
    assert top_k_entropy(logits, 7).tolist() == pytest.approx([math.log(7)] * 2, rel=1e-6)
    assert top_k_mass(logits, 7).tolist() == pytest.approx([0.93] * 2, rel=1e-6)
    assert nucleus_entropy(logits, 0.8).tolist() == pytest.approx([math.log(80)] * 2, rel=1e-6)
    assert nucleus_entropy(logits, 0.801).tolist() == pytest.approx([math.log(81)] * 2, rel=1e-6)
    assert nucleus_mass(logits, 0.8).tolist() == pytest.approx([0.2] * 2, rel=1e-6)
    assert ids_of(nucleus_tokens(logits, 0.8), logits) == [list(range(80))] * 2


def test_a_set_that_drops_nothing_has_the_full_entropy() -> None:
    logits = random_logits()
    logits[0, 3:9] = -torch.inf
    for value in (top_k_entropy(logits, 37), top_k_entropy(logits, 10**9), nucleus_entropy(logits, 1.0)):
        assert torch.equal(value, full_entropy(logits))
    for mass in (top_k_mass(logits, 37), nucleus_mass(logits, 1.0)):
        assert torch.all(mass == 0.0)


def test_the_whole_mass_keeps_tokens_whose_probability_float32_cant_hold() -> None:
    logits = torch.tensor([[0.0, -300.0, -5.0]], dtype=torch.float64, requires_grad=True)
    nucleus_entropy(logits, 1.0).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] != 0.0


def test_almost_the_whole_mass_is_a_nucleus_too() -> None:
    logits = random_logits()
    mass = math.nextafter(1, 0)
    torch.testing.assert_close(nucleus_entropy(logits, mass), full_entropy(logits), atol=1e-4, rtol=0)
    assert torch.all(nucleus_mass(logits, mass) <= 1e-6)


@pytest.mark.parametrize("vocabulary", [1, 2, 50])
def test_one_token_has_no_entropy_and_no_gradient(vocabulary: int) -> None:
    logits = random_logits(2, vocabulary).requires_grad_()
    certain = torch.full((2, vocabulary), -torch.inf)
    certain[:, -1] = 2.0
    certain.requires_grad_()
    cases = [(top_k_entropy(logits, 1), logits), (nucleus_entropy(logits, 1e-9), logits)]
    cases += [(top_k_entropy(certain, 20), certain), (nucleus_entropy(certain, 0.9), certain)]
    for entropy, given_logits in cases:
        assert torch.all(entropy == 0.0)
        (gradient,) = torch.autograd.grad(entropy.sum(), given_logits)
        assert torch.all(gradient == 0.0)


def test_logits_of_minus_infinity_that_are_kept_count_as_absent_and_get_no_gradient() -> None:
    row = torch.tensor([[1.0, -torch.inf, 0.5, -torch.inf, 2.0]], dtype=torch.float64, requires_grad=True)
    without = torch.tensor([[1.0, 0.5, 2.0]], dtype=torch.float64)
    for entropy in (top_k_entropy(row, 4), nucleus_entropy(row, 0.9999)):
        assert entropy.item() == pytest.approx(full_entropy(without).item(), abs=1e-12)
        (gradient,) = torch.autograd.grad(entropy.sum(), row)
        assert torch.all(gradient.isfinite())
        assert gradient[0, 1] == gradient[0, 3] == 0.0
    assert ids_of(top_k_tokens(row, 4), row) == [[0, 1, 2, 4]]


def test_of_equal_logits_at_the_cut_the_highest_ids_are_dropped() -> None:
    logits = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0, 0.0, 0.0]])
    assert ids_of(top_k_tokens(logits, 3), logits) == [[0, 1, 2], [0, 1, 2]]
    # The first row's shares are 0.288 twice and 0.106 four times, the second's 0.967 and 0.0065 five times.
    assert ids_of(nucleus_tokens(logits, 0.6), logits) == [[0, 1, 2], [1]]
    assert ids_of(nucleus_tokens(logits, 0.985), logits) == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3]]
    # What is dropped of the equals counts once, wherever topk had put it.
    assert top_k_mass(logits, 3).tolist() == pytest.approx([3 / (4 + 2 * math.e), 3 / (5 + math.exp(5))], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_with_many_ties_keep_exactly_the_right_tokens(dtype: torch.dtype) -> None:
    logits = (torch.randn(20, 2000, generator=torch.Generator().manual_seed(0)) * 0.1).to(dtype)
    for estimator in (top_k(20), top_k(200), nucleus(0.1)):
        for row, kept in zip(logits.double().numpy(), ids_of(estimator.tokens(logits), logits), strict=True):
            assert kept == estimator.by_definition(row)
        entropy = estimator.entropy(logits)
        assert entropy.dtype == torch.float32
        torch.testing.assert_close(entropy.double(), estimator.entropy(logits.double()), atol=1e-5, rtol=0)
        mass = estimator.mass_outside(logits)
        torch.testing.assert_close(mass.double(), estimator.mass_outside(logits.double()), atol=1e-5, rtol=0)


@each
@pytest.mark.parametrize("vocabulary", [1, 4, 600])
@pytest.mark.parametrize("bad", [[torch.nan], [torch.inf], [torch.inf] * 2, [-torch.inf] * 600])
def test_logits_without_a_distribution_are_not_hidden_and_stay_in_their_row(
    estimator: Estimator, vocabulary: int, bad: list[float]
) -> None:
    logits = random_logits(2, vocabulary)
    bad = bad[:vocabulary]
    logits[0, : len(bad)] = torch.tensor(bad)
    for value in (estimator.entropy(logits), estimator.mass_outside(logits)):
        assert value.isnan().tolist() == [True, False]


def test_a_tiny_mass_outside_is_not_rounded_away() -> None:
    logits = torch.tensor([[0.0, -30.0, -31.0, -32.0]])
    expected = (math.exp(-31) + math.exp(-32)) / (1 + math.exp(-30))
    assert top_k_mass(logits, 2).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("k", [0, -3, 2.5, math.nan])
def test_a_count_that_is_out_of_range_is_named(k: int) -> None:
    for wrong in (top_k_entropy, top_k_mass):
        with pytest.raises(ConfigError, match=rf"k is {k}; expected a whole number, at least 1"):
            wrong(torch.zeros(2, 3), k)


@pytest.mark.parametrize("mass", [0.0, -0.5, 1.01, math.nan])
def test_a_mass_that_is_out_of_range_is_named(mass: float) -> None:
    for wrong in (nucleus_entropy, nucleus_mass):
        with pytest.raises(ConfigError, match=rf"mass is {mass}; expected more than 0 and at most 1"):
            wrong(torch.zeros(2, 3), mass)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (3, 0)])
def test_logits_of_another_shape_are_named(shape: tuple[int, ...]) -> None:
    for estimator in (top_k(2), nucleus(0.8)):
        for wrong in (estimator.entropy, estimator.mass_outside):
            with pytest.raises(BadInput, match=r"expected floating point, \[T, V\]"):
                wrong(torch.zeros(shape))


@each
def test_a_row_is_the_same_alone_and_among_others(estimator: Estimator) -> None:
    # Rows that one token fills, rows that need all of them, and a row of equals.
    logits = torch.cat([random_logits(3, 900) * 8, random_logits(3, 900) * 0.01, torch.zeros(1, 900).double()])
    together = ids_of(estimator.tokens(logits), logits)
    for row, ids, value in zip(logits.split(1), together, estimator.entropy(logits), strict=True):
        assert ids_of(estimator.tokens(row), row) == [ids]
        assert estimator.entropy(row).item() == pytest.approx(value.item(), abs=1e-12)


@given(ROWS, st.integers(1, 45))
@settings(max_examples=60)
def test_top_k_entropy_lies_between_zero_and_the_log_of_the_kept_count(row: list[float], k: int) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    value = top_k_entropy(logits, k).item()
    kept = top_k(k).by_definition(logits.numpy()[0])
    assert ids_of(top_k_tokens(logits, k), logits) == [kept]
    assert -1e-12 <= value <= math.log(len(kept)) + 1e-9
    assert value == pytest.approx(entropy_by_definition(logits.numpy()[0], kept)[0], abs=1e-9)


@given(ROWS, MASSES)
@settings(max_examples=60)
def test_a_nucleus_is_the_shortest_head_of_the_ranking_that_has_the_mass(row: list[float], mass: float) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    (kept,) = ids_of(nucleus_tokens(logits, mass), logits)
    assert kept == sorted(ranking(logits.numpy()[0])[: len(kept)])
    shares = probabilities(logits.numpy()[0])
    assert math.fsum(shares[token] for token in kept) >= mass - 1e-6
    if mass < 1 and len(kept) > 1:
        last = max(kept, key=lambda token: (-row[token], token))
        assert math.fsum(shares[token] for token in kept if token != last) < mass + 1e-6
    value = nucleus_entropy(logits, mass).item()
    assert -1e-12 <= value <= math.log(len(kept)) + 1e-9
    assert value == pytest.approx(entropy_by_definition(logits.numpy()[0], kept)[0], abs=1e-9)


@given(ROWS, st.integers(1, 45), MASSES, st.integers(-50, 50))
@settings(max_examples=40)
def test_a_constant_added_to_all_logits_changes_nothing(row: list[float], k: int, mass: float, shift: int) -> None:
    # Whole 64ths: a shift rounds none of them, so that equals stay equal and others apart.
    logits = (torch.tensor([row], dtype=torch.float64) * 64).round() / 64
    for estimator in (top_k(k), nucleus(mass)):
        assert ids_of(estimator.tokens(logits + shift), logits) == ids_of(estimator.tokens(logits), logits)
        torch.testing.assert_close(estimator.entropy(logits + shift), estimator.entropy(logits))


@given(st.permutations(range(12)), st.integers(1, 12), MASSES)
@settings(max_examples=40)
def test_the_order_of_the_vocabulary_does_not_matter(order: list[int], k: int, mass: float) -> None:
    for estimator in (top_k(k), nucleus(mass)):
        logits = random_logits(2, 12).requires_grad_()
        shuffled = logits.detach()[:, order].requires_grad_()
        value, other = estimator.entropy(logits), estimator.entropy(shuffled)
        (value.sum() + other.sum()).backward()
        torch.testing.assert_close(other, value)
        assert logits.grad is not None
        torch.testing.assert_close(shuffled.grad, logits.grad[:, order])


@given(ROWS, st.tuples(st.integers(1, 45), st.integers(1, 45)), st.tuples(MASSES, MASSES))
@settings(max_examples=60)
def test_a_larger_set_holds_the_smaller_one(
    row: list[float], counts: tuple[int, int], masses: tuple[float, float]
) -> None:
    assume(counts[0] != counts[1] and masses[0] != masses[1])
    logits = torch.tensor([row], dtype=torch.float32)
    pairs = [[top_k(k) for k in sorted(counts)], [nucleus(mass) for mass in sorted(masses)]]
    for smaller, larger in pairs:
        (few,), (more,) = ids_of(smaller.tokens(logits), logits), ids_of(larger.tokens(logits), logits)
        assert set(few) <= set(more)
        # Up to the rounding of two sums over the vocabulary.
        assert larger.mass_outside(logits).item() <= smaller.mass_outside(logits).item() + 1e-6
