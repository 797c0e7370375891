"""The tokens an entropy is taken over: what the clamp leaves, the k most likely, or a nucleus.

Each row of the logits `[T, V]` is ranked by itself, in float32: the largest first, among equals the lowest ids first.
Sets have no gradient. NaN and +inf rank above everything, so that they are in the set and what is computed over it
shows them. Settings out of range are a `ConfigError`.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from entrostat.protocol.errors import ConfigError

# Up to so many tokens a row are listed; over more of them a mask is cheaper.
LISTED_TOKENS = 256
# A wider nucleus ends in one of so many bands of logits, so many to a nat; what is less likely shares the last.
BANDS, BANDS_PER_NAT = 2048, 64


@dataclass(frozen=True, eq=False, slots=True)
class FewTokens:
    """A short set for each row: what is computed over it costs nothing along the vocabulary."""

    ids: Tensor  # [T, K] int64; the padding repeats an id of the row
    within: Tensor  # [T, K] bool, False: padding


# Listed, as a mask `[T, V] bool`, or None: the whole vocabulary.
TokenSet: TypeAlias = FewTokens | Tensor | None


def kept_tokens(logits: Tensor, drop_fraction: float) -> Tensor | None:
    """The clamp's set A: all but the `floor(p · V)` smallest logits, and at least one token (AEnt, arXiv 2509.03493).

    Exactly V − floor(p · V) are kept, also among equals.
    """
    if not 0 <= drop_fraction < 1:
        raise ConfigError(f"drop_fraction is {drop_fraction}; expected at least 0 and less than 1")
    vocabulary = logits.shape[-1]
    dropped = min(int(drop_fraction * vocabulary), vocabulary - 1)
    return _largest(logits.detach().float(), vocabulary - dropped) if dropped else None


def top_k_tokens(logits: Tensor, k: int) -> TokenSet:
    """The `k` largest logits, exactly k also among equals; all V where k ≥ V."""
    if not (isinstance(k, int) and k >= 1):
        raise ConfigError(f"k is {k}; expected a whole number, at least 1")
    if k >= logits.shape[-1]:
        return None
    ranked = logits.detach().float()
    if k > LISTED_TOKENS:
        return _largest(ranked, k)
    values, ids = ranked.topk(k + 1)
    return _few(ranked, values, ids, torch.full_like(ids[:, :1], k))


def nucleus_tokens(logits: Tensor, mass: float) -> TokenSet:
    """The fewest tokens, the most likely first, whose probability together reaches `mass`; at least one.

    A set is always the head of the ranking. Probabilities are computed in float32 and summed up in float64, and `mass`
    counts as reached by a sum that is right to 1e-6: where the last tokens of a set are less likely than that, so many
    of them as make up 1e-6 may be too many or too few. Equal logits are summed up without error. `mass` = 1 keeps every
    token that can be drawn, however unlikely.
    """
    if not 0 < mass <= 1:
        raise ConfigError(f"mass is {mass}; expected more than 0 and at most 1")
    vocabulary = logits.shape[-1]
    if mass == 1 or vocabulary == 1:
        return None
    ranked = logits.detach().float()
    peak = ranked.amax(-1, keepdim=True)
    goal = (ranked - peak).exp_().sum(-1, keepdim=True).double() * mass
    values, ids = ranked.topk(min(LISTED_TOKENS + 1, vocabulary))
    kept = _reaching(values - peak, goal).clamp(max=vocabulary)
    if not (kept > LISTED_TOKENS).any() or values.shape[-1] == vocabulary:
        return _few(ranked, values, ids, kept)
    cut = _last(values, kept)
    wide = (kept > LISTED_TOKENS).squeeze(-1)
    kept[wide], cut[wide] = _wide_nucleus(ranked[wide], peak[wide], goal[wide])
    return _mask(ranked, cut, kept)


def _wide_nucleus(ranked: Tensor, peak: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens of `ranked [R, V]` reach the goal, and the smallest logit among them: `[R, 1]` each.

    A histogram of the probability tells in which band of logits the nucleus ends; only that band is sorted.
    """
    below = ranked - peak
    bands = (below * -BANDS_PER_NAT).clamp_(max=BANDS - 1).long()
    filled = goal.new_zeros(len(ranked), BANDS).scatter_add_(-1, bands, below.exp().double()).cumsum(-1)
    goal = torch.minimum(goal, filled[:, -1:])
    end = (filled < goal).sum(-1, keepdim=True)
    before = torch.where(end > 0, filled.gather(-1, (end - 1).clamp(min=0)), 0.0)
    inside = bands == end
    size = inside.sum(-1, keepdim=True)
    values = ranked.masked_fill(~inside, -torch.inf).topk(int(size.amax())).values
    needed = torch.minimum(_reaching(values - peak, goal - before), size)
    return (bands < end).sum(-1, keepdim=True) + needed, _last(values, needed)


def _reaching(values: Tensor, goal: Tensor) -> Tensor:
    """How many of `values [R, K]`, log weights in descending order, reach `goal [R, 1]`: `[R, 1]`, K + 1 if all don't.

    A row that holds NaN reaches it at once: its first token, which is NaN, then stands for it.
    """
    return (values.exp().double().cumsum(-1) < goal).sum(-1, keepdim=True) + 1


def _last(values: Tensor, kept: Tensor) -> Tensor:
    """The smallest of the `kept [R, 1]` first of `values [R, K]`, as far as they are there: `[R, 1]`."""
    return values.gather(-1, (kept - 1).clamp(max=values.shape[-1] - 1))


def _few(ranked: Tensor, values: Tensor, ids: Tensor, kept: Tensor) -> FewTokens:
    """The first `kept [T, 1]` of the largest logits `values [T, K]`, which go one further unless they are all."""
    crowded = (_last(values, kept) == _last(values, kept + 1)) & (kept < values.shape[-1])
    ids = ids[:, : int(kept.amax()) if len(kept) else 1]
    within = torch.arange(ids.shape[-1], device=ids.device) < kept
    if crowded.any():
        # Which of several equals come first is left open by topk.
        rows = crowded.squeeze(-1)
        some = ids[rows]
        chosen = _without_surplus(ranked[rows], _last(values, kept)[rows], kept[rows])
        some[within[rows]] = chosen.nonzero()[:, 1]
        ids[rows] = some
    return FewTokens(torch.where(within, ids, ids[:, :1]), within)


def _largest(ranked: Tensor, kept: int) -> Tensor:
    cut = ranked.kthvalue(ranked.shape[-1] - kept + 1, dim=-1, keepdim=True).values
    return _mask(ranked, cut, torch.full(cut.shape, kept, device=cut.device))


def _mask(ranked: Tensor, cut: Tensor, kept: Tensor) -> Tensor:
    """The largest logits down to `cut [T, 1]`, but no more than `kept [T, 1]`: `[T, V] bool`."""
    keep = ~(ranked < cut)  # NaN is kept: it must show in the result
    crowded = (keep.sum(-1, keepdim=True, dtype=torch.int32) > kept).squeeze(-1)
    if crowded.any():
        # Only rows with several equal logits at the cut pay for the count along the vocabulary.
        keep[crowded] = _without_surplus(ranked[crowded], cut[crowded], kept[crowded])
    return keep


def _without_surplus(ranked: Tensor, cut: Tensor, kept: Tensor) -> Tensor:
    """All above the cut, and of those equal to it the lowest ids until `kept` tokens are there: `[R, V] bool`."""
    above, equal = ~(ranked <= cut), ranked == cut
    room = kept - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))
