"""Entropy over the k most likely tokens and over a nucleus, as they are defined: term by term, in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from entrostat.learner.entropy import nucleus_entropy, nucleus_mass, top_k_entropy, top_k_mass
from entrostat.learner.token_sets import FewTokens, TokenSet, nucleus_tokens, top_k_tokens


@dataclass(frozen=True)
class Estimator:
    """The three functions of one estimator, and its set by definition."""

    entropy: Callable[[torch.Tensor], torch.Tensor]
    mass_outside: Callable[[torch.Tensor], torch.Tensor]
    tokens: Callable[[torch.Tensor], TokenSet]
    by_definition: Callable[[NDArray[np.float64]], list[int]]


def top_k(k: int) -> Estimator:
    """The estimator over the k most likely tokens."""
    return Estimator(
        lambda z: top_k_entropy(z, k),
        lambda z: top_k_mass(z, k),
        lambda z: top_k_tokens(z, k),
        lambda row: sorted(ranking(row)[:k]),
    )


def nucleus(mass: float) -> Estimator:
    """The estimator over the fewest most likely tokens that have this mass."""
    return Estimator(
        lambda z: nucleus_entropy(z, mass),
        lambda z: nucleus_mass(z, mass),
        lambda z: nucleus_tokens(z, mass),
        lambda row: nucleus_by_definition(row, mass),
    )


def ranking(row: NDArray[np.float64]) -> list[int]:
    """Ids by falling logit, among equals the lower id first."""
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def probabilities(row: NDArray[np.float64]) -> list[float]:
    """Softmax."""
    peak = max(row)
    weights = [math.exp(z - peak) for z in row]
    return [weight / math.fsum(weights) for weight in weights]


def nucleus_by_definition(row: NDArray[np.float64], mass: float) -> list[int]:
    """The ids of the nucleus: down the ranking until the mass is reached."""
    shares = probabilities(row)
    kept: list[int] = []
    for token in ranking(row):
        if kept and math.fsum(shares[one] for one in kept) >= mass:
            break
        kept.append(token)
    return sorted(kept)


def entropy_by_definition(row: NDArray[np.float64], kept: list[int]) -> tuple[float, float]:
    """H̃ over the kept tokens and the probability of all others, term by term."""
    shares = probabilities(row)
    total = math.fsum(shares[token] for token in kept)
    entropy = 0.0
    for token in kept:
        share = shares[token] / total
        if share > 0:
            entropy -= share * math.log(share)
    return entropy, math.fsum(shares[token] for token in range(len(row)) if token not in kept)


def ids_of(kept: TokenSet, logits: torch.Tensor) -> list[list[int]]:
    """The kept ids of each row, however the set is written."""
    match kept:
        case None:
            return [list(range(logits.shape[-1]))] * len(logits)
        case FewTokens(ids=ids, within=within):
            return [sorted(row[used].tolist()) for row, used in zip(ids, within, strict=True)]
        case _:
            return [row.nonzero()[:, 0].tolist() for row in kept]


def random_logits(rows: int = 6, vocabulary: int = 37) -> torch.Tensor:
    """The same float64 logits each time, [rows, vocabulary]."""
    return torch.randn(rows, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3
