"""The rows of a chunk of logits on a CPU: numpy, a few rows at a time, so that a block stays in a core's cache.

A block is read from memory once and all that is computed of it is computed there. Which tokens the clamp drops is found
by numpy's partition, which is exact and, vectorised, six times as fast as `torch.kthvalue`; what a set's sums need lies
side by side afterwards, without a mask. Blocks are shared out over torch's number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entrostat.learner.rows import Estimator, HeadOutput, Rows, dropped_tokens
from entrostat.protocol.entropy_settings import EstimatorSettings, NucleusEntropy

Floats = NDArray[Any]  # float32 or float64
Ids = NDArray[np.int64]

# Logits at a time: smaller blocks would suit the caches, and are lost in threads that wait for each other.
BLOCK_ELEMENTS = 2**18
# nats: a log-probability at which exp is 0 in float64 too.
IMPOSSIBLE = -1e4


def measure(logits: Tensor, targets: Tensor, estimator: Estimator) -> tuple[HeadOutput, Rows]:
    """As `rows.Kernels.measure`."""
    rows = len(logits)
    z, drawn = logits.numpy(), targets.numpy()
    found = {
        name: np.full(rows, np.nan, z.dtype)
        for name in ("logprob", "entropy", "clamped_entropy", "clamped_mass", "log_total", "log_kept")
    }
    found |= {"cut": np.full(rows, -np.inf, z.dtype), "last": np.full(rows, z.shape[1] - 1, np.int64)}

    def block(part: slice, desk: Desk) -> None:
        measured = _of_drawn(z[part], desk) if estimator is None else _of_set(z[part], estimator, desk)
        for name, values in measured.items():
            found[name][part] = values
        own = np.take_along_axis(z[part], drawn[part, None], -1)[:, 0]
        found["logprob"][part] = own - found["log_total"][part]

    _each(block, z)
    tensors = {name: torch.from_numpy(values) for name, values in found.items()}
    output = HeadOutput(**{name: tensors[name] for name in ("logprob", "entropy", "clamped_entropy", "clamped_mass")})
    kept = {name: tensors[name] for name in ("log_total", "log_kept", "cut", "last")}
    return output, Rows(kept_entropy=output.clamped_entropy, **kept)


def gradient_(logits: Tensor, targets: Tensor, rows: Rows, logprob: Tensor, entropy: Tensor) -> None:
    """As `rows.Kernels.gradient_`."""
    z, drawn = logits.numpy(), targets.numpy()
    log_total, log_kept, held = rows.log_total.numpy(), rows.log_kept.numpy(), rows.kept_entropy.numpy()
    cut, last, g, h = rows.cut.numpy(), rows.last.numpy(), logprob.numpy(), entropy.numpy()
    # log π̃ = log π − ln κ, with κ the kept tokens' probability.
    log_share = log_kept - log_total

    def block(part: slice, desk: Desk) -> None:
        acts = bool(h[part].any())
        # −g π − h π̃ (log π̃ + H̃) = π (slope · log π + offset) · [kept] − g π
        slope = -h[part, None] * np.exp(-log_share[part, None])
        offset = slope * (held[part] - log_share[part])[:, None]
        for start in range(0, z.shape[1], BLOCK_ELEMENTS):
            some = z[part, start : start + BLOCK_ELEMENTS]
            probability = desk.first[: some.shape[0], : some.shape[1]]
            kept = _kept(some, cut[part], last[part] - start, desk) if acts else None
            np.subtract(some, log_total[part, None], out=some)
            _floor(some)
            np.exp(some, out=probability)
            if kept is None:
                np.multiply(probability, -g[part, None], out=some)
                continue
            some *= slope
            some += offset
            some *= kept
            some -= g[part, None]
            some *= probability
        z[np.arange(part.start, part.stop), drawn[part]] += g[part]

    _each(block, z)


class Desk:
    """What a thread works on: memory that is there already, as new pages cost more than the arithmetic."""

    def __init__(self, rows: int, vocabulary: int, kind: Any) -> None:
        self.first, self.second = (np.empty((rows, vocabulary), kind) for _ in range(2))
        self.mask = np.empty((rows, vocabulary), np.bool_)


def _each(work: Callable[[slice, Desk], None], z: Floats) -> None:
    """The blocks of a chunk, shared out over the threads."""
    rows, vocabulary = z.shape
    size = max(1, min(BLOCK_ELEMENTS // vocabulary, rows))
    parts = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    threads = max(1, min(torch.get_num_threads(), len(parts)))

    def share(first: int) -> None:
        desk = Desk(size, vocabulary, z.dtype)
        with np.errstate(invalid="ignore", divide="ignore"):  # what is not finite shows in the results
            for part in parts[first::threads]:
                work(part, desk)

    if threads == 1:
        share(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(share, range(threads)):
            pass


def _of_drawn(z: Floats, desk: Desk) -> dict[str, Any]:
    peak, weight = z.max(-1), desk.first[: len(z)]
    np.subtract(z, peak[:, None], out=weight)
    return {"log_total": peak + np.log(np.exp(weight, out=weight).sum(-1))}


def _of_set(z: Floats, estimator: EstimatorSettings, desk: Desk) -> dict[str, Any]:
    """Everything of a block `[R, V]` besides the drawn tokens' log-probs."""
    ranked, weight = desk.first[: len(z)], desk.second[: len(z)]
    np.copyto(ranked, z)
    dropped = _rank(ranked, estimator)
    cut, peak = ranked[np.arange(len(z)), dropped], ranked.max(-1)
    surplus = _surplus(ranked, cut, dropped)
    ranked -= peak[:, None]
    _floor(ranked)
    np.exp(ranked, out=weight)
    outside, inside = _split(weight, dropped)
    ranked *= weight
    outside_dot, inside_dot = _split(ranked, dropped)
    total = outside + inside
    return {
        "log_total": peak + np.log(total),
        "log_kept": peak + np.log(inside),
        "entropy": np.log(total) - (outside_dot + inside_dot) / total,
        "clamped_entropy": np.log(inside) - inside_dot / inside,
        "clamped_mass": outside / total,
        "cut": np.where(dropped > 0, cut, -np.inf),
        "last": _last(z, cut, surplus),
    }


def _rank(z: Floats, estimator: EstimatorSettings) -> Ids:
    """Brings each row's dropped logits to its front, the smallest kept one after them; returns how many those are."""
    dropped = dropped_tokens(estimator, z.shape[1])
    if isinstance(estimator, NucleusEntropy):
        z.sort(axis=-1)
        weight = np.exp(z[:, ::-1] - z[:, -1:]).cumsum(-1, dtype=np.float64)
        short = (weight < estimator.mass * weight[:, -1:]).sum(-1)
        return np.maximum(z.shape[1] - 1 - short, 0)
    if dropped:
        z.partition(dropped, axis=-1)
    return np.full(len(z), dropped)


def _split(values: Floats, at: Ids) -> tuple[Floats, Floats]:
    """The sums of each row before and from `at [R]` on."""
    starts = np.arange(len(values)) * values.shape[1]
    sums = np.add.reduceat(values.ravel(), np.stack([starts, starts + at], axis=1).ravel()).reshape(-1, 2)
    return np.where(at > 0, sums[:, 0], 0.0), sums[:, 1]


def _floor(log_weight: Floats) -> None:
    """A token that can't be drawn enters with a finite factor: 0 · (−inf) is NaN."""
    if not log_weight.min() > IMPOSSIBLE:
        np.maximum(log_weight, IMPOSSIBLE, out=log_weight)


def _surplus(ranked: Floats, cut: Floats, dropped: Ids) -> Ids:
    """How many of the dropped logits of each row are equal to the smallest that is kept, `[R]`."""
    surplus = np.zeros(len(ranked), np.int64)
    for row, end in enumerate(dropped):
        if end and ranked[row, :end].max() == cut[row]:
            surplus[row] = np.count_nonzero(ranked[row, :end] == cut[row])
    return surplus


def _last(z: Floats, cut: Floats, surplus: Ids) -> Ids:
    """Of the tokens whose logit is the cut, the last that is kept when `surplus [R]` of them are dropped."""
    last = np.full(len(z), z.shape[1] - 1)
    for row in np.flatnonzero(surplus > 0):
        last[row] = np.flatnonzero(z[row] == cut[row])[-1 - surplus[row]]
    return last


def _kept(z: Floats, cut: Floats, last: Ids, desk: Desk) -> Floats:
    """Which tokens are kept, `[R, V]`: 1 or 0."""
    rows, vocabulary = z.shape
    mask, kept = desk.mask[:rows, :vocabulary], desk.second[:rows, :vocabulary]
    np.greater_equal(z, cut[:, None], out=mask)
    for row in np.flatnonzero(last < vocabulary - 1):
        beyond = slice(max(last[row] + 1, 0), None)
        mask[row, beyond] &= z[row, beyond] > cut[row]
    np.copyto(kept, mask)
    return kept
