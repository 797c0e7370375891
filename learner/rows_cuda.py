"""The rows of a chunk of logits on a GPU: Triton kernels, one program a row, no atomics, so that results repeat."""

# A kernel is compiled from its source: its types are not those that a checker of Python sees.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from entrostat.learner.cuts_cuda import reaching, select
from entrostat.learner.rows import Estimator, HeadOutput, Rows, dropped_tokens
from entrostat.protocol.entropy_settings import NucleusEntropy

BLOCK = 4096  # logits at a time
# nats: a log-probability at which exp is 0.
IMPOSSIBLE = tl.constexpr(-1e4)


def measure(logits: Tensor, targets: Tensor, estimator: Estimator) -> tuple[HeadOutput, Rows]:
    """As `rows.Kernels.measure`, of float32."""
    rows, vocabulary = logits.shape
    cut, last = _cut(logits, estimator)
    names = ("logprob", "entropy", "clamped_entropy", "clamped_mass", "log_total", "log_kept")
    found = {name: logits.new_full((rows,), torch.nan) for name in names}
    if rows:
        _sums[rows,](logits, targets, cut, last, *found.values(), vocabulary, estimator is not None, BLOCK)
    output = HeadOutput(**{name: found[name] for name in names[:4]})
    kept = Rows(
        log_total=found["log_total"],
        log_kept=found["log_kept"],
        kept_entropy=output.clamped_entropy,
        cut=cut,
        last=last,
    )
    return output, kept


def gradient_(logits: Tensor, targets: Tensor, rows: Rows, logprob: Tensor, entropy: Tensor) -> None:
    """As `rows.Kernels.gradient_`, of float32."""
    count, vocabulary = logits.shape
    if count:
        _gradient[count, triton.cdiv(vocabulary, BLOCK)](
            logits,
            targets,
            rows.log_total,
            rows.log_kept,
            rows.kept_entropy,
            rows.cut,
            rows.last,
            logprob,
            entropy,
            vocabulary,
            BLOCK,
        )


def _cut(logits: Tensor, estimator: Estimator) -> tuple[Tensor, Tensor]:
    rows, vocabulary = logits.shape
    dropped = dropped_tokens(estimator, vocabulary)
    if isinstance(estimator, NucleusEntropy):
        return reaching(logits, estimator.mass)
    if dropped:
        return select(logits, dropped)
    return logits.new_full((rows,), -torch.inf), logits.new_full((rows,), vocabulary - 1, dtype=torch.int64)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _is_kept(z: Any, at: Any, cut: Any, last: Any) -> Any:
    return (z > cut) | ((z == cut) & (at <= last)) | (z != z)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _floored(z: Any) -> Any:
    """A token that can't be drawn enters with a finite factor: 0 · (−inf) is NaN."""
    return tl.maximum(z, IMPOSSIBLE, propagate_nan=tl.PropagateNan.ALL)


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _sums(
    logits: Any,
    targets: Any,
    cuts: Any,
    lasts: Any,
    logprobs: Any,
    entropies: Any,
    clamped_entropies: Any,
    clamped_masses: Any,
    log_totals: Any,
    log_kepts: Any,
    vocabulary: Any,
    sets: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    z = logits + row * vocabulary
    cut, last = tl.load(cuts + row), tl.load(lasts + row)
    peak = -float("inf")
    # Sums of exp(z − peak), and of (z − peak) exp(z − peak), over the kept tokens and over the dropped ones.
    inside, outside = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    inside_dot, outside_dot = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    for start in range(0, vocabulary, block):
        at = start + tl.arange(0, block)
        some = tl.load(z + at, mask=at < vocabulary, other=-float("inf"))
        higher = tl.maximum(peak, tl.max(some), propagate_nan=tl.PropagateNan.ALL)
        lift = tl.where(peak == -float("inf"), 0.0, peak - higher)
        below = _floored(some - tl.where(higher == -float("inf"), 0.0, higher))  # −inf − (−inf) is NaN
        weight = tl.exp(below)
        keep = _is_kept(some, at, cut, last)
        scale = tl.exp(lift)
        if sets:
            inside_dot = (inside_dot + lift * inside) * scale + tl.where(keep, below * weight, 0.0)
            outside_dot = (outside_dot + lift * outside) * scale + tl.where(keep, 0.0, below * weight)
            outside = outside * scale + tl.where(keep, 0.0, weight)
            weight = tl.where(keep, weight, 0.0)
        inside = inside * scale + weight
        peak = higher
    kept, dropped = tl.sum(inside), tl.sum(outside)
    total = kept + dropped
    log_total = peak + tl.log(total)
    tl.store(log_totals + row, log_total)
    tl.store(logprobs + row, tl.load(z + tl.load(targets + row)) - log_total)
    if sets:
        kept_dot = tl.sum(inside_dot)
        tl.store(entropies + row, tl.log(total) - (kept_dot + tl.sum(outside_dot)) / total)
        tl.store(clamped_entropies + row, tl.log(kept) - kept_dot / kept)
        tl.store(clamped_masses + row, dropped / total)
        tl.store(log_kepts + row, peak + tl.log(kept))


@triton.jit  # type: ignore[untyped-decorator]  # triton is not typed
def _gradient(
    logits: Any,
    targets: Any,
    log_totals: Any,
    log_kepts: Any,
    kept_entropies: Any,
    cuts: Any,
    lasts: Any,
    logprob_weights: Any,
    entropy_weights: Any,
    vocabulary: Any,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    z = logits + row * vocabulary + at
    some = tl.load(z, mask=at < vocabulary, other=-float("inf"))
    g, h = tl.load(logprob_weights + row), tl.load(entropy_weights + row)
    log_total = tl.load(log_totals + row)
    logprob = _floored(some - log_total)
    factor = tl.zeros([block], tl.float32) - g
    if h != 0:
        log_share = tl.load(log_kepts + row) - log_total
        keep = _is_kept(some, at, tl.load(cuts + row), tl.load(lasts + row))
        held = -h * tl.exp(-log_share) * (logprob - log_share + tl.load(kept_entropies + row))
        factor += tl.where(keep, held, 0.0)
    found = factor * tl.exp(logprob) + tl.where(at == tl.load(targets + row), g, 0.0)
    tl.store(z, found, mask=at < vocabulary)
