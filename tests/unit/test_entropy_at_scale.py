"""The estimators over a vocabulary of a real model's size, against float64 in numpy."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from entrostat.learner.entropy import (
    clamped_entropy,
    clamped_mass,
    full_entropy,
    nucleus_entropy,
    nucleus_mass,
    top_k_entropy,
    top_k_mass,
)
from entrostat.learner.token_sets import FewTokens, TokenSet, kept_tokens, nucleus_tokens, top_k_tokens

VOCABULARY = 151_936
# Probabilities that fall as rank^−s with s = 1.6, every logit off by a normal deviate of 0.3, in random order.
STEEPNESS, NOISE = 1.6, 0.3
# What a float32 softmax over so many tokens is off by; sets are held to more.
SUMMED = 1e-4


def zipf_like(rows: int = 3, steepness: float = STEEPNESS) -> torch.Tensor:
    random = torch.Generator().manual_seed(11)
    falling = -steepness * torch.arange(1, VOCABULARY + 1).log()
    noisy = falling + NOISE * torch.randn(rows, VOCABULARY, generator=random)
    return torch.stack([row[torch.randperm(VOCABULARY, generator=random)] for row in noisy])


def flat(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(12))


def mixed() -> torch.Tensor:
    """A row that few tokens fill beside one that needs most of the vocabulary, coarse, so full of equals."""
    return torch.cat([zipf_like(1, steepness=3.0), flat(1)]).bfloat16().float()


def plateaus() -> torch.Tensor:
    """One token above many equals, and those above others: in float32 their sum, token by token, is off by 1e-5."""
    logits = torch.full((2, VOCABULARY), -8.1)
    logits[:, 100_000:] = -9.0
    logits[:, 77_777] = 0.0
    return logits


LOGITS = {
    "zipf-like": zipf_like,
    "longer tail": lambda: zipf_like(steepness=1.1),
    "flat": flat,
    "mixed": mixed,
    "plateaus": plateaus,
}
shapes = pytest.mark.parametrize("shape", LOGITS)


def sorted_shares(row: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids by falling logit, lower ids first among equals, and the probabilities in that order."""
    order = np.argsort(-row, kind="stable")
    weights = np.exp(row[order].astype(np.float64) - row.max())
    return order, weights / weights.sum()


def entropy(shares: NDArray[np.float64]) -> float:
    renormalised = shares / shares.sum()
    return float(-(renormalised * np.log(renormalised)).sum())


def as_ids(kept: TokenSet, row: int) -> NDArray[np.int64]:
    assert kept is not None
    ids = kept.ids[row][kept.within[row]] if isinstance(kept, FewTokens) else kept[row].nonzero()[:, 0]
    return np.sort(ids.numpy())


@shapes
@pytest.mark.parametrize("mass", [0.5, 0.8, 0.99, 0.99999])
def test_a_nucleus_has_its_mass_to_a_millionth_and_no_strangers(shape: str, mass: float) -> None:
    logits = LOGITS[shape]()
    kept = nucleus_tokens(logits, mass)
    outside, value = nucleus_mass(logits, mass), nucleus_entropy(logits, mass)
    for row in range(len(logits)):
        order, shares = sorted_shares(logits[row].numpy())
        ids = as_ids(kept, row)
        np.testing.assert_array_equal(ids, np.sort(order[: len(ids)]))
        reached = shares[: len(ids)].sum()
        assert mass - 1e-6 <= reached < mass + shares[len(ids) - 1] + 1e-6
        assert outside[row].item() == pytest.approx(1 - reached, rel=SUMMED, abs=1e-6)
        assert value[row].item() == pytest.approx(entropy(shares[: len(ids)]), rel=SUMMED, abs=1e-6)


@shapes
@pytest.mark.parametrize("k", [20, 256, 257, 20_000])
def test_the_k_most_likely_are_exactly_those(shape: str, k: int) -> None:
    logits = LOGITS[shape]()
    kept = top_k_tokens(logits, k)
    outside, value = top_k_mass(logits, k), top_k_entropy(logits, k)
    for row in range(len(logits)):
        order, shares = sorted_shares(logits[row].numpy())
        np.testing.assert_array_equal(as_ids(kept, row), np.sort(order[:k]))
        assert outside[row].item() == pytest.approx(shares[k:].sum(), rel=SUMMED)
        assert value[row].item() == pytest.approx(entropy(shares[:k]), rel=SUMMED)


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_equals_by_the_hundred_thousand_are_counted_without_error(mass: float) -> None:
    """Weights are relative to the largest logit, so that equals add up to a whole number."""
    logits = torch.full((2, VOCABULARY), 0.3)
    expected = math.ceil(mass * VOCABULARY)
    kept = nucleus_tokens(logits, mass)
    for row in range(2):
        np.testing.assert_array_equal(as_ids(kept, row), np.arange(expected))
    assert nucleus_entropy(logits, mass).tolist() == pytest.approx([math.log(expected)] * 2, rel=SUMMED, abs=1e-6)


def test_the_clamp_takes_hardly_any_mass_and_entropy_from_a_zipf_like_vocabulary() -> None:
    """AEnt's mechanism is the tail without gradient, not another value of the entropy (ENTROPY.md, section 1)."""
    logits = zipf_like(8)
    whole, clamped = full_entropy(logits), clamped_entropy(logits, 1 / 3)
    mass = clamped_mass(logits, 1 / 3)
    assert torch.all((mass > 1e-6) & (mass <= 3e-4))
    assert torch.all((whole - clamped).abs() <= 0.003 * whole)
    assert torch.all(clamped < whole)


def test_bfloat16_ties_at_the_cut_keep_exactly_the_right_number() -> None:
    logits = zipf_like(4).bfloat16()
    keep = kept_tokens(logits, 1 / 3)
    assert keep is not None
    assert keep.sum(-1).tolist() == [VOCABULARY - VOCABULARY // 3] * 4
    lowest = torch.where(keep, logits.float(), torch.inf).amin(-1, keepdim=True)
    assert torch.all((logits.float() == lowest).sum(-1) > 50)  # the cut goes through a crowd
    for row in range(4):
        order, _ = sorted_shares(logits[row].float().numpy())
        np.testing.assert_array_equal(as_ids(keep, row), np.sort(order[: VOCABULARY - VOCABULARY // 3]))
