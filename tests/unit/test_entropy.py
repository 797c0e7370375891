"""Entropy, whole and clamped: against definitions in float64, known limits, and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from entrostat.learner.entropy import clamped_entropy, clamped_mass, full_entropy
from entrostat.learner.token_sets import kept_tokens
from entrostat.protocol.errors import BadInput, ConfigError

FRACTIONS = (0.0, 0.25, 0.33, 0.5, 0.9, 0.99)
ROWS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40)


def kept_by_definition(row: NDArray[np.float64], fraction: float) -> list[int]:
    """Ids of the kept tokens: sorted by logit, among equals the lower id first, without the last floor(pV)."""
    dropped = min(math.floor(fraction * len(row)), len(row) - 1)
    ranked = sorted(range(len(row)), key=lambda token: (-row[token], token))
    return sorted(ranked[: len(row) - dropped])


def clamped_by_definition(row: NDArray[np.float64], fraction: float) -> tuple[float, float]:
    """H̃ and the mass of what is dropped, term by term."""
    peak = max(row)
    weights = [math.exp(z - peak) for z in row]
    kept = kept_by_definition(row, fraction)
    total = sum(weights[token] for token in kept)
    entropy = 0.0
    for token in kept:
        share = weights[token] / total
        if share > 0:
            entropy -= share * math.log(share)
    return entropy, 1 - total / sum(weights)


def random_logits(rows: int = 6, vocabulary: int = 37) -> torch.Tensor:
    return torch.randn(rows, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_clamped_entropy_and_mass_are_what_the_definition_says(fraction: float) -> None:
    logits = random_logits()
    entropy, mass = clamped_entropy(logits, fraction), clamped_mass(logits, fraction)
    for row, ours, outside in zip(logits.numpy(), entropy.tolist(), mass.tolist(), strict=True):
        expected, dropped_mass = clamped_by_definition(row, fraction)
        assert ours == pytest.approx(expected, abs=1e-12)
        assert outside == pytest.approx(dropped_mass, abs=1e-12)


def test_full_entropy_is_clamped_entropy_that_drops_nothing() -> None:
    logits = random_logits()
    expected = [clamped_by_definition(row, 0.0)[0] for row in logits.numpy()]
    assert full_entropy(logits).tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(full_entropy(logits), clamped_entropy(logits, 0.0))
    assert torch.equal(full_entropy(logits), clamped_entropy(logits, 1e-9))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_gradient_agrees_with_finite_differences(fraction: float) -> None:
    logits = random_logits(3, 11).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: clamped_entropy(z, fraction), (logits,))
    assert torch.autograd.gradcheck(full_entropy, (logits,))


@pytest.mark.parametrize("fraction", FRACTIONS[1:])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dropped_tokens_get_no_gradient(fraction: float, dtype: torch.dtype) -> None:
    logits = random_logits().to(dtype).requires_grad_()
    clamped_entropy(logits, fraction).sum().backward()
    keep = kept_tokens(logits, fraction)
    assert keep is not None
    assert logits.grad is not None
    assert torch.all(logits.grad[~keep] == 0.0)
    if fraction < 0.9:
        assert torch.all(logits.grad[keep] != 0.0)


def test_the_gradient_is_the_closed_form_of_the_kept_tokens() -> None:
    logits = random_logits(1, 9).requires_grad_()
    (entropy,) = clamped_entropy(logits, 0.33)
    entropy.backward()
    row = logits.detach().numpy()[0]
    kept = kept_by_definition(row, 0.33)
    total = sum(math.exp(row[token]) for token in kept)
    expected = np.zeros(9)
    for token in kept:
        share = math.exp(row[token]) / total
        expected[token] = -share * (math.log(share) + entropy.item())
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy()[0], expected, atol=1e-12)


def test_uniform_logits_have_the_entropy_of_the_kept_count() -> None:
    logits = torch.zeros(2, 100)
    assert full_entropy(logits).tolist() == pytest.approx([math.log(100)] * 2, rel=1e-6)
    assert clamped_entropy(logits, 0.25).tolist() == pytest.approx([math.log(75)] * 2, rel=1e-6)
    assert clamped_mass(logits, 0.25).tolist() == pytest.approx([0.25] * 2, rel=1e-6)


def test_a_certain_token_has_no_entropy() -> None:
    logits = torch.full((1, 50), -torch.inf)
    logits[0, 7] = 2.0
    logits.requires_grad_()
    for entropy in (full_entropy(logits), clamped_entropy(logits, 0.5)):
        assert entropy.item() == 0.0
        (gradient,) = torch.autograd.grad(entropy.sum(), logits)
        assert torch.all(gradient == 0.0)


def test_logits_of_minus_infinity_count_as_absent_and_get_no_gradient() -> None:
    row = torch.tensor([[1.0, -torch.inf, 0.5, -torch.inf, 2.0]], dtype=torch.float64, requires_grad=True)
    without = torch.tensor([[1.0, 0.5, 2.0]], dtype=torch.float64)
    # floor(0.3 · 5) = 1 is dropped, and one −inf token is among the kept.
    for entropy in (full_entropy(row), clamped_entropy(row, 0.3)):
        assert entropy.item() == pytest.approx(full_entropy(without).item(), abs=1e-12)
        (gradient,) = torch.autograd.grad(entropy.sum(), row)
        assert torch.all(gradient.isfinite())
        assert gradient[0, 1] == gradient[0, 3] == 0.0


def test_of_equal_logits_at_the_cut_the_highest_ids_are_dropped() -> None:
    keep = kept_tokens(torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0, 0.0, 0.0]]), 0.5)
    assert keep is not None
    assert keep.tolist() == [[True, True, True, False, False, False], [True, True, True, False, False, False]]


def test_bfloat16_logits_with_many_ties_keep_exactly_the_right_number() -> None:
    logits = torch.randn(20, 2000, generator=torch.Generator().manual_seed(0)).bfloat16()
    keep = kept_tokens(logits, 1 / 3)
    assert keep is not None
    assert keep.sum(-1).tolist() == [2000 - 666] * 20
    for row, kept in zip(logits.double().numpy(), keep, strict=True):
        assert kept.nonzero().squeeze(-1).tolist() == kept_by_definition(row, 1 / 3)


def test_half_precision_is_summed_in_float32() -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert clamped_entropy(logits, 0.25).dtype == torch.float32
    exact = clamped_entropy(logits.double(), 0.25)
    torch.testing.assert_close(clamped_entropy(logits, 0.25).double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fraction", [0.25, 0.999])
def test_a_vocabulary_of_one_keeps_its_token(fraction: float) -> None:
    logits = torch.tensor([[3.0]], requires_grad=True)
    entropy = clamped_entropy(logits, fraction)
    entropy.sum().backward()
    assert entropy.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.item() == 0.0


def test_a_tiny_clamped_mass_is_not_rounded_away() -> None:
    logits = torch.tensor([[0.0, -30.0, -31.0, -32.0]])
    expected = (math.exp(-31) + math.exp(-32)) / (1 + math.exp(-30))
    assert clamped_mass(logits, 0.5).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bad", [[torch.nan], [torch.inf], [torch.inf] * 2, [torch.nan] * 4, [-torch.inf] * 4])
def test_logits_without_a_distribution_are_not_hidden_and_stay_in_their_row(bad: list[float]) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]] * 2)
    logits[0, : len(bad)] = torch.tensor(bad)
    for value in (full_entropy(logits), clamped_entropy(logits, 0.5), clamped_mass(logits, 0.5)):
        assert value.isnan().tolist() == [True, False]
    assert clamped_mass(logits, 0.0).isnan().tolist() == [True, False]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, math.nan])
def test_a_share_to_drop_that_is_out_of_range_is_named(fraction: float) -> None:
    for wrong in (clamped_entropy, clamped_mass):
        with pytest.raises(ConfigError, match=rf"drop_fraction is {fraction}; expected at least 0 and less than 1"):
            wrong(torch.zeros(2, 3), fraction)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (3, 0)])
def test_logits_of_another_shape_are_named(shape: tuple[int, ...]) -> None:
    for wrong in (full_entropy, lambda z: clamped_entropy(z, 0.25), lambda z: clamped_mass(z, 0.25)):
        with pytest.raises(BadInput, match=rf"of shape \[{', '.join(map(str, shape))}\]; expected .*\[T, V\]"):
            wrong(torch.zeros(shape))


def test_logits_that_are_whole_numbers_are_named() -> None:
    with pytest.raises(BadInput, match=r"torch\.int64 .* expected floating point"):
        full_entropy(torch.zeros(2, 3, dtype=torch.int64))


@given(ROWS, st.floats(0, 0.99))
@settings(max_examples=60)
def test_clamped_entropy_lies_between_zero_and_the_log_of_the_kept_count(row: list[float], fraction: float) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    kept = len(kept_by_definition(logits.numpy()[0], fraction))
    value = clamped_entropy(logits, fraction).item()
    assert -1e-12 <= value <= math.log(kept) + 1e-9
    assert value == pytest.approx(clamped_by_definition(logits.numpy()[0], fraction)[0], abs=1e-9)


@given(ROWS, st.floats(0, 0.99), st.integers(-50, 50))
@settings(max_examples=40)
def test_a_constant_added_to_all_logits_changes_nothing(row: list[float], fraction: float, shift: int) -> None:
    logits = torch.tensor([row], dtype=torch.float32).double()
    # Both are ranked in float32, where a shift may make neighbours equal; the value hardly notices.
    moved = clamped_entropy(logits + shift, fraction).item()
    assert moved == pytest.approx(clamped_entropy(logits, fraction).item(), abs=1e-4)


@given(st.permutations(range(12)), st.floats(0, 0.99))
@settings(max_examples=40)
def test_the_order_of_the_vocabulary_does_not_matter(order: list[int], fraction: float) -> None:
    logits = random_logits(2, 12).requires_grad_()
    shuffled = logits.detach()[:, order].requires_grad_()
    clamped_entropy(logits, fraction).sum().backward()
    values = clamped_entropy(shuffled, fraction)
    values.sum().backward()
    torch.testing.assert_close(values, clamped_entropy(logits, fraction))
    assert logits.grad is not None
    torch.testing.assert_close(shuffled.grad, logits.grad[:, order])
