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

# A block's logits: with the two copies that are worked on they fit a core's second cache.
BLOCK_ELEMENTS = 2**17
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

    def block(part: slice) -> None:
        measured = _of_drawn(z[part]) if estimator is None else _of_set(z[part], estimator)
        for name, values in measured.items():
            found[name][part] = values
        own = np.take_along_axis(z[part], drawn[part, None], -1)[:, 0]
        found["logprob"][part] = own - found["log_total"][part]

    _each(block, rows, z.shape[1])
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

    def block(part: slice) -> None:
        some, factor = z[part], -g[part, None]
        kept = _kept(some, cut[part], last[part]) if h[part].any() else None
        np.subtract(some, log_total[part, None], out=some)
        np.maximum(some, IMPOSSIBLE, out=some)
        probability = np.exp(some)
        if kept is not None:
            # −g π − h π̃ (log π̃ + H̃) = π (slope · (log π − ln κ + H̃) · [kept] − g)
            some += (held[part] - log_share[part])[:, None]
            some *= (-h[part] * np.exp(-log_share[part]))[:, None]
            some *= kept
            some -= g[part, None]
            factor = some
        np.multiply(probability, factor, out=some)
        some[np.arange(len(some)), drawn[part]] += g[part]

    _each(block, *z.shape)


def _each(work: Callable[[slice], None], rows: int, vocabulary: int) -> None:
    """The blocks of a chunk, side by side."""
    size = max(1, BLOCK_ELEMENTS // vocabulary)
    parts = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    threads = min(torch.get_num_threads(), len(parts))

    def quiet(part: slice) -> None:
        with np.errstate(invalid="ignore", divide="ignore"):  # what is not finite shows in the results
            work(part)

    if threads <= 1:
        for part in parts:
            quiet(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(quiet, parts):
            pass


def _of_drawn(z: Floats) -> dict[str, Any]:
    peak = z.max(-1)
    return {"log_total": peak + np.log(np.exp(z - peak[:, None]).sum(-1))}


def _of_set(z: Floats, estimator: EstimatorSettings) -> dict[str, Any]:
    """Everything of a block `[R, V]` besides the drawn tokens' log-probs."""
    ranked, dropped = _ranked(z, estimator)
    cut, peak = ranked[np.arange(len(z)), dropped], ranked.max(-1)
    surplus = (ranked >= cut[:, None]).sum(-1) - (z.shape[1] - dropped)
    ranked -= peak[:, None]
    # A token that can't be drawn enters with a finite factor: 0 · (−inf) is NaN.
    np.maximum(ranked, IMPOSSIBLE, out=ranked)
    weight = np.exp(ranked)
    ranked *= weight
    outside, inside = _split(weight, dropped)
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


def _ranked(z: Floats, estimator: EstimatorSettings) -> tuple[Floats, Ids]:
    """A copy of the rows with the dropped logits first and the smallest kept one after them, and how many those are."""
    dropped = dropped_tokens(estimator, z.shape[1])
    if isinstance(estimator, NucleusEntropy):
        ranked = np.sort(z, axis=-1)
        weight = np.exp(ranked[:, ::-1] - ranked[:, -1:]).cumsum(-1, dtype=np.float64)
        short = (weight < estimator.mass * weight[:, -1:]).sum(-1)
        return ranked, np.maximum(z.shape[1] - 1 - short, 0)
    return np.partition(z, dropped, axis=-1) if dropped else z.copy(), np.full(len(z), dropped)


def _split(values: Floats, at: Ids) -> tuple[Floats, Floats]:
    """The sums of each row before and from `at [R]` on."""
    starts = np.arange(len(values)) * values.shape[1]
    sums = np.add.reduceat(values.ravel(), np.stack([starts, starts + at], axis=1).ravel()).reshape(-1, 2)
    return np.where(at > 0, sums[:, 0], 0.0), sums[:, 1]


def _last(z: Floats, cut: Floats, surplus: Ids) -> Ids:
    """Of the tokens whose logit is the cut, the last that is kept when `surplus [R]` of them are dropped."""
    last = np.full(len(z), z.shape[1] - 1)
    for row in np.flatnonzero(surplus > 0):
        last[row] = np.flatnonzero(z[row] == cut[row])[-1 - surplus[row]]
    return last


def _kept(z: Floats, cut: Floats, last: Ids) -> Floats:
    """Which tokens are kept, `[R, V]`: 1 or 0."""
    kept = z >= cut[:, None]
    for row in np.flatnonzero(last < z.shape[1] - 1):
        kept[row, last[row] + 1 :] &= z[row, last[row] + 1 :] > cut[row]
    return kept.astype(z.dtype)
