"""From hidden states to what the losses need, in chunks of rows: `T × V` logits are never held at once.

Two forms. `fused_head` is differentiable like any function; its backward pass computes each chunk's logits again, which
makes four products with the head's weight. `fused_head_loss` is given the loss, as a function of a chunk's rows, takes
each chunk's gradient while its logits are there, and makes three; losses that look across rows can't use it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from entrostat.learner import rows_torch
from entrostat.learner.rows import Estimator, HeadOutput, Kernels, Rows, joined

# Up to so many logits in all (64 MiB in float32) `fused_head` keeps them for its backward pass, which saves a product.
KEPT_LOGITS = 2**24
# Rows of the weight that are converted, or whose gradient is, at a time where the head is in half precision.
SLAB = 2**13

OUTPUTS = ("logprob", "clamped_entropy", "entropy", "clamped_mass")

RowLoss = Callable[[HeadOutput, slice], Tensor]


def fused_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    estimator: Estimator,
    chunk_tokens: int,
) -> HeadOutput:
    """`hidden [T, D]`, `weight [V, D]`, `targets [T] int64` → what `softmax(hidden · weightᵀ / temperature)` is like.

    `logprob` and `clamped_entropy` have gradients, for any weights per token. At most `chunk_tokens` rows of logits
    live at a time, unless all of them are fewer than `KEPT_LOGITS`. Sums are in float32 for half precision, else in the
    inputs' own.
    """
    columns = _Head.apply(hidden, weight, targets, _How(temperature, estimator, chunk_tokens, torch.is_grad_enabled()))
    return HeadOutput(**dict(zip(OUTPUTS, columns, strict=True)))


def fused_head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: RowLoss,
    *,
    temperature: float,
    estimator: Estimator,
    chunk_tokens: int,
) -> tuple[Tensor, HeadOutput]:
    """The sum of a loss over all rows, differentiable once, and what was measured, without gradient.

    Args:
        hidden: `[T, D]`.
        weight: `[V, D]`.
        targets: `[T] int64`.
        loss: from a chunk's measurements and its place among the T rows, `[C]` or their sum. Called once a chunk, in
            order; a row's share may depend on the rows of its chunk at most.
        temperature: what logits are divided by.
        estimator: of the entropy; None where only log-probs are read.
        chunk_tokens: rows of logits that live at a time.
    """
    how = _How(temperature, estimator, chunk_tokens, torch.is_grad_enabled())
    total, *columns = _Loss.apply(hidden, weight, targets, loss, how)
    return total, HeadOutput(**dict(zip(OUTPUTS, columns, strict=True)))


@dataclass(frozen=True)
class _How:
    """What is measured of the rows, and how many at a time."""

    temperature: float
    estimator: Estimator
    chunk_tokens: int
    graded: bool  # a backward pass may follow


class _Head(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed
    """`OUTPUTS`, `[T]` each; the first two have gradients."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, how: _How) -> tuple[Tensor, ...]:
        chunks = _Chunks(hidden, weight, how)
        keep = how.graded and any(ctx.needs_input_grad) and hidden.shape[0] * weight.shape[0] <= KEPT_LOGITS
        measured, kept = [], []
        for chunk in chunks:
            z = chunks.logits(chunk, fresh=keep)
            measured.append(kernels(z).measure(z, targets[chunk], how.estimator))
            kept += [z] if keep else []
        output = joined([one for one, _ in measured])
        ctx.rows, ctx.kept = [rows for _, rows in measured], kept
        ctx.how = how
        ctx.save_for_backward(hidden, weight, targets)
        ctx.mark_non_differentiable(output.entropy, output.clamped_mass)
        return tuple(getattr(output, name) for name in OUTPUTS)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # torch is not typed
    def backward(ctx: Any, logprob: Tensor, entropy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        chunks = _Chunks(hidden, weight, ctx.how)
        gradient = _Gradient(hidden, weight, ctx.needs_input_grad)
        kept, ctx.kept = ctx.kept, []  # gradients take their place
        for i, chunk in enumerate(chunks):
            z = kept[i] if kept else chunks.logits(chunk)
            chunks.gradient_(z, targets[chunk], ctx.rows[i], logprob[chunk], entropy[chunk])
            gradient.add(z, chunk)
        return gradient.hidden, gradient.of_weight(), None, None


class _Loss(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed
    """The sum of the loss, and `OUTPUTS` without gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, loss: RowLoss, how: _How
    ) -> tuple[Tensor, ...]:
        chunks = _Chunks(hidden, weight, how)
        needed = ctx.needs_input_grad[:2] if how.graded else (False, False)
        gradient = _Gradient(hidden, weight, needed)
        outputs: list[HeadOutput] = []
        total = hidden.new_zeros((), dtype=torch.float64)
        for chunk in chunks:
            z = chunks.logits(chunk)
            output, rows = kernels(z).measure(z, targets[chunk], how.estimator)
            outputs.append(output)
            value, logprob, entropy = _loss_of(loss, output, chunk)
            total += value
            if any(needed):
                chunks.gradient_(z, targets[chunk], rows, logprob, entropy)
                gradient.add(z, chunk)
        output = joined(outputs)
        ctx.gradients = (gradient.hidden, gradient.of_weight())
        columns = tuple(getattr(output, name) for name in OUTPUTS)
        ctx.mark_non_differentiable(*columns)
        return total, *columns

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # torch is not typed
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the loss taken inside the head can be differentiated once: its gradients are handed out"
            )
        (hidden, weight), ctx.gradients = ctx.gradients, None
        if scale.is_cuda or scale.item() != 1.0:
            for gradient in (hidden, weight):
                if gradient is not None:
                    gradient *= scale.to(gradient.dtype)
        return hidden, weight, None, None, None


def _loss_of(loss: RowLoss, output: HeadOutput, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The chunk's loss, and what it asks of each row's log-prob and entropy, `[C]`."""
    leaves = [output.logprob.detach().requires_grad_(), output.clamped_entropy.detach().requires_grad_()]
    with torch.enable_grad():
        value = loss(replace(output, logprob=leaves[0], clamped_entropy=leaves[1]), chunk).sum()
    asked = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else (None, None)
    logprob, entropy = (torch.zeros_like(leaf) if one is None else one for one, leaf in zip(asked, leaves, strict=True))
    return value.detach(), logprob, entropy


class _Chunks:
    """The head's logits, a chunk at a time, all in one place unless asked otherwise."""

    def __init__(self, hidden: Tensor, weight: Tensor, how: _How) -> None:
        self._hidden, self._weight, self._temperature = hidden, weight, how.temperature
        self._size = min(how.chunk_tokens, len(hidden)) or 1
        self._place: Tensor | None = None

    def __iter__(self) -> Iterator[slice]:
        """Where the chunks are; one, which is empty, where there are no rows."""
        for start in range(0, len(self._hidden) or 1, self._size):
            yield slice(start, min(start + self._size, len(self._hidden)))

    def logits(self, chunk: slice, *, fresh: bool = False) -> Tensor:
        """`[C, V]` at the temperature; valid until the next call unless `fresh`."""
        if self._place is None or fresh:
            self._place = self._hidden.new_empty(self._size, len(self._weight), dtype=_precise(self._hidden.dtype))
        some = self._hidden[chunk]
        logits = self._place[: len(some)]
        if _is_half_on_gpu(some):
            torch.mm(some, self._weight.t(), out_dtype=logits.dtype, out=logits)
        else:
            some = some.to(logits.dtype)
            for slab, weight in _slabs(self._weight):
                torch.mm(some, weight.t(), out=logits[:, slab])
        return logits if self._temperature == 1.0 else logits.div_(self._temperature)

    def gradient_(self, logits: Tensor, targets: Tensor, rows: Rows, logprob: Tensor, entropy: Tensor) -> None:
        """The gradient with respect to the product itself, in the logits' place."""
        kernels(logits).gradient_(logits, targets, rows, logprob / self._temperature, entropy / self._temperature)


class _Gradient:
    """What the chunks add up to: `[T, D]` and `[V, D]`, the latter in float32 until it is read."""

    def __init__(self, hidden: Tensor, weight: Tensor, needed: Sequence[bool]) -> None:
        self._inputs, self._weights = hidden, weight
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self._weight = torch.zeros_like(weight, dtype=_precise(weight.dtype)) if needed[1] else None

    def add(self, logits: Tensor, chunk: slice) -> None:
        """The chunk's, from `∂/∂(hidden · weightᵀ)` `[C, V]`."""
        some = self._inputs[chunk]
        if _is_half_on_gpu(some):
            self._add_half(logits.to(some.dtype), some, chunk)
            return
        some = some.to(logits.dtype)
        of_hidden = torch.zeros_like(some)
        for slab, weight in _slabs(self._weights):
            if self.hidden is not None:
                of_hidden.addmm_(logits[:, slab], weight)
            if self._weight is not None:
                self._weight[slab].addmm_(logits[:, slab].t(), some)
        if self.hidden is not None:
            self.hidden[chunk] = of_hidden

    def _add_half(self, asked: Tensor, some: Tensor, chunk: slice) -> None:
        if self.hidden is not None:
            torch.mm(asked, self._weights, out=self.hidden[chunk])
        if self._weight is not None:
            for start in range(0, len(self._weight), SLAB):
                slab = slice(start, start + SLAB)
                self._weight[slab] += torch.mm(asked[:, slab].t(), some)

    def of_weight(self) -> Tensor | None:
        """`[V, D]` in the weight's precision."""
        return None if self._weight is None else self._weight.to(self._weights.dtype)


def _slabs(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The weight in the precision of sums: as it is, or where that is another, some of its rows at a time.

    A CPU without bfloat16 instructions takes seven times as long for a product in bfloat16 as in float32.
    """
    precise = _precise(weight.dtype)
    size = len(weight) if weight.dtype == precise else SLAB
    for start in range(0, len(weight), size):
        slab = slice(start, min(start + size, len(weight)))
        yield slab, weight[slab].to(precise)


def kernels(logits: Tensor) -> Kernels:
    """Those of the device that the logits are on."""
    if logits.is_cuda:
        from entrostat.learner import rows_cuda  # triton is not there without a GPU

        return rows_cuda
    return rows_torch


def _precise(dtype: torch.dtype) -> torch.dtype:
    """Half precision is too coarse for sums over a vocabulary."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _is_half_on_gpu(values: Tensor) -> bool:
    return bool(values.is_cuda) and values.dtype != _precise(values.dtype)
