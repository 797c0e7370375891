"""From groups to micro-batches: flat samples, sorted by length, right-padded, within a budget of tokens.

Right padding needs no attention mask: attention is causal, so a real token never sees the padding behind it, and the
padding's own outputs are never read. Without a mask the positions count from 0 in every row and attention takes its
fast path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from entrostat.learner.advantages import counting, group_advantages, shaped_rewards
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.messages import FINISHED_LENGTH, Group, OrderedGroup
from entrostat.protocol.settings import LearnerSettings

PADDING_ID = 0  # any token will do: nothing reads what comes of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One response as the loss sees it."""

    index: int  # within the order: groups one after another, each with its G samples
    tokens: Int32  # [P + T] prompt and response
    prompt_length: int  # P
    behaviour: Float32  # [T] nats, log μ of the response
    advantage: float
    coefficient: float  # λ_q
    counts: bool  # False: a rejected sample, which loses every term of the loss

    @property
    def response_length(self) -> int:
        """T."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True, kw_only=True, slots=True)
class Denominators:
    """What the sums over the whole order are divided by; counted before the first backward pass."""

    policy_tokens: int  # N_A: response tokens of the samples that count
    response_tokens: int  # N_H: all response tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """`B` rows of `L` tokens; everything else is per response token, `[T]`, of all rows one after another."""

    tokens: Tensor  # [B, L] int64; a row's last token is left out, as nothing is predicted from it
    positions: Tensor  # [T] int64 into B·L: where the token's logits are computed
    targets: Tensor  # [T] int64
    behaviour: Tensor  # [T] nats
    advantage: Tensor  # [T]
    coefficient: Tensor  # [T]
    counts: Tensor  # [T] bool
    sample: Tensor  # [T] int64, Sample.index


def flatten(ordered: Sequence[OrderedGroup], groups: Sequence[Group], settings: LearnerSettings) -> list[Sample]:
    """The order's samples with their advantages and coefficients; `groups[i]` is the group of `ordered[i]`."""
    samples: list[Sample] = []
    for entry, group in zip(ordered, groups, strict=True):
        rollout = group.rollout
        truncated = rollout.samples.finish == FINISHED_LENGTH
        rewards = np.array([verdict.reward for verdict in group.verdicts], np.float64)
        shaped = shaped_rewards(rewards, truncated, settings.truncated, settings.truncation_penalty)
        advantages = group_advantages(shaped, normalise=settings.normalise_advantages)
        counts = counting(truncated, settings.truncated)
        edges = np.concatenate([[0], np.cumsum(rollout.samples.lengths)])
        for i, (start, end) in enumerate(pairwise(edges)):
            samples.append(
                Sample(
                    index=len(samples),
                    tokens=np.concatenate([rollout.prompt_tokens, rollout.samples.tokens[start:end]]),
                    prompt_length=len(rollout.prompt_tokens),
                    behaviour=rollout.samples.logprobs[start:end],
                    advantage=float(advantages[i]),
                    coefficient=entry.coefficient,
                    counts=bool(counts[i]),
                )
            )
    return samples


def denominators(samples: Sequence[Sample]) -> Denominators:
    """N_A and N_H of the order. A group without advantage counts in N_A: only rejected samples don't."""
    return Denominators(
        policy_tokens=sum(sample.response_length for sample in samples if sample.counts),
        response_tokens=sum(sample.response_length for sample in samples),
    )


def micro_batches(samples: Sequence[Sample], budget: int) -> list[list[Sample]]:
    """Samples of similar length together, longest first, each batch within `budget` tokens, padding included.

    A sample longer than the budget is a batch of its own; one without response tokens teaches nothing and is left out.
    """
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: (-len(sample.tokens), sample.index)):
        if sample.response_length == 0:
            continue
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].tokens) <= budget:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


def padding_share(batches: Sequence[Sequence[Sample]]) -> float:
    """Padding over all tokens of the micro-batches, 0–1."""
    held = sum(len(batch) * len(batch[0].tokens) for batch in batches)
    real = sum(len(sample.tokens) for batch in batches for sample in batch)
    return 1.0 - real / held if held else 0.0


def collate(samples: Sequence[Sample], *, device: torch.device, dtype: torch.dtype) -> MicroBatch:
    """The samples as tensors; `dtype` is that of the per-token numbers."""
    width = max(len(sample.tokens) for sample in samples) - 1
    tokens = np.full((len(samples), width), PADDING_ID, np.int64)
    positions, lengths = [], np.array([sample.response_length for sample in samples])
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.tokens) - 1] = sample.tokens[:-1]
        first = row * width + sample.prompt_length - 1
        positions.append(np.arange(first, first + sample.response_length))

    def whole(arrays: list[Int32]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.int64)).to(device)

    def per_token(values: list[float] | list[int] | list[bool], kind: torch.dtype) -> Tensor:
        return torch.from_numpy(np.repeat(np.array(values), lengths)).to(device, kind)

    return MicroBatch(
        tokens=torch.from_numpy(tokens).to(device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        targets=whole([sample.tokens[sample.prompt_length :] for sample in samples]),
        behaviour=torch.from_numpy(np.concatenate([sample.behaviour for sample in samples])).to(device, dtype),
        advantage=per_token([sample.advantage for sample in samples], dtype),
        coefficient=per_token([sample.coefficient for sample in samples], dtype),
        counts=per_token([sample.counts for sample in samples], torch.bool),
        sample=per_token([sample.index for sample in samples], torch.int64),
    )
