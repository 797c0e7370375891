"""Samples as the tensors of one pass through the model.

Right padding needs no attention mask: attention is causal, so a real token never sees the padding behind it, and the
padding's own outputs are never read. Without a mask the positions count from 0 in every row and attention takes its
fast path. A packed row has no padding; attention is told where its samples begin.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from entrostat.learner.batching import Block, Sample
from entrostat.learner.packing import Sequences, sequences_of
from entrostat.protocol.arrays import Int32

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Columns = TypeVar("Columns", bound="DataclassInstance")

PADDING_ID = 0  # any token will do: nothing reads what comes of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Responses:
    """What is known of response tokens beforehand, `[T]`, those of a micro-batch's samples one after another."""

    behaviour: Tensor  # nats
    advantage: Tensor
    coefficient: Tensor
    balance: Tensor
    policy: Tensor  # bool: of samples in the policy term
    counts: Tensor  # bool
    row: Tensor  # int64, the sample's place in the micro-batch
    sample: Tensor  # int64, Sample.index


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """`B` rows of tokens and `L` states each, with T response tokens in all.

    A whole row has as many tokens as states; a row that goes on from a prompt has one token less, as its first state is
    the prompt's last. A sample's last token is left out: nothing is predicted from it. Packed samples are one row.
    """

    tokens: Tensor  # [B, L] or [B, L − 1] int64
    prompt: Tensor  # [samples] int64 into Block.prompts; of whole rows, −1
    packed: Sequences | None  # the samples of the one row; None: a sample is a row
    positions: Tensor  # [T] int64 into B·L: where the token's logits are computed
    targets: Tensor  # [T] int64
    responses: Responses


def part(columns: Columns, tokens: slice) -> Columns:
    """Some of what is known of tokens: every field is `[T]`."""
    return replace(columns, **{f.name: getattr(columns, f.name)[tokens] for f in fields(columns)})


def collate(samples: Sequence[Sample], block: Block, *, device: torch.device, dtype: torch.dtype) -> MicroBatch:
    """Samples of the block as tensors; `dtype` is that of the per-token numbers."""
    place = {prompt.tobytes(): i for i, prompt in enumerate(block.prompts)}
    skipped = [sample.prompt_length if block.prompts else 0 for sample in samples]
    read = [sample.tokens[skip:-1] for sample, skip in zip(samples, skipped, strict=True)]
    sizes = [len(tokens) for tokens in read]
    ahead = 1 if block.prompts else 0  # the prompt's last state comes before the row's own
    if block.packed:
        rows, width = 1, sum(sizes)
        starts = np.cumsum([0, *sizes[:-1]])
    else:
        rows, width = len(samples), max(sizes)
        starts = np.arange(rows) * width
    tokens = np.full(rows * width, PADDING_ID, np.int64)
    positions, lengths = [], np.array([sample.response_length for sample in samples])
    for i, (sample, start) in enumerate(zip(samples, starts, strict=True)):
        tokens[start : start + sizes[i]] = read[i]
        first = start + (i + 1) * ahead + sample.prompt_length - skipped[i] - 1
        positions.append(np.arange(first, first + sample.response_length))
    prompt = np.array([place[sample.prompt.tobytes()] if place else -1 for sample in samples])

    def whole(arrays: list[Int32]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.int64)).to(device)

    def per_token(values: list[float] | list[int] | list[bool], kind: torch.dtype) -> Tensor:
        return torch.from_numpy(np.repeat(np.array(values), lengths)).to(device, kind)

    return MicroBatch(
        tokens=torch.from_numpy(tokens.reshape(rows, width)).to(device),
        prompt=torch.from_numpy(prompt).to(device),
        packed=sequences_of(sizes, device) if block.packed else None,
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        targets=whole([sample.tokens[sample.prompt_length :] for sample in samples]),
        responses=Responses(
            behaviour=torch.from_numpy(np.concatenate([sample.behaviour for sample in samples])).to(device, dtype),
            advantage=per_token([sample.advantage for sample in samples], dtype),
            coefficient=per_token([sample.coefficient for sample in samples], dtype),
            balance=per_token([sample.balance for sample in samples], dtype),
            policy=per_token([sample.counts and sample.in_policy for sample in samples], torch.bool),
            counts=per_token([sample.counts for sample in samples], torch.bool),
            row=per_token(list(range(len(samples))), torch.int64),
            sample=per_token([sample.index for sample in samples], torch.int64),
        ),
    )
