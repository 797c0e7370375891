"""From groups to micro-batches: flat samples, sorted by length, right-padded, within a budget of tokens.

Micro-batches come in blocks. A block's prompts are computed once, and the rows of its micro-batches are responses that
go on from them (shared_prompt.py); or it has no prompts, and the rows are whole: prompt and response.

Right padding needs no attention mask: attention is causal, so a real token never sees the padding behind it, and the
padding's own outputs are never read. Without a mask the positions count from 0 in every row and attention takes its
fast path.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from entrostat.learner.advantages import advantages_of, counting, shaped_rewards
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import FINISHED_LENGTH, Group, OrderedGroup

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Columns = TypeVar("Columns", bound="DataclassInstance")

PADDING_ID = 0  # any token will do: nothing reads what comes of it
PROMPTS_SHARE = 0.5  # of the budget, at most, for a block's prompts: the rest is for the responses
# A prompt's keys and values are copied for each row. They are a fraction of what a computed token holds in memory, so
# that a micro-batch may have so many times the budget of them, the response's own included.
KEYS_PER_TOKEN = 4
# A micro-batch that is at least half full takes no sample that is shorter than so much of its longest: beyond that,
# another round costs less than the padding.
SHORTEST_SHARE = 7 / 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One response as the loss sees it."""

    index: int  # within the order: groups one after another, each with its G samples
    group: int  # within the order
    tokens: Int32  # [P + T] prompt and response
    prompt_length: int  # P
    behaviour: Float32  # [T] nats, log μ of the response
    advantage: float
    weight: float  # w̄_q
    coefficient: float  # λ_q = α·w̄_q
    balance: float  # its policy loss is scaled by so much; 1 changes nothing
    in_policy: bool  # False: it came along for its bonus alone
    counts: bool  # False: a rejected sample, which loses every term of the loss

    @property
    def prompt(self) -> Int32:
        """`[P]`."""
        return self.tokens[: self.prompt_length]

    @property
    def response_length(self) -> int:
        """T."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True, kw_only=True, slots=True)
class Denominators:
    """What the sums over an optimizer step's samples are divided by; counted before the first backward pass."""

    policy_tokens: int  # N_A: those in the policy term
    policy_samples: int  # with a token in the policy term
    response_tokens: int  # N_H: all response tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Samples that are computed together; each is in one micro-batch, and its prompt is among `prompts`, if any."""

    prompts: tuple[Int32, ...]  # distinct, longest first; none: the micro-batches hold whole rows
    batches: tuple[tuple[Sample, ...], ...]
    idle: tuple[tuple[Sample, ...], ...] = ()  # computed to keep step with other ranks; nothing of them counts

    def rounds(self) -> Iterator[tuple[tuple[Sample, ...], bool]]:
        """All that is computed, and what of it counts."""
        yield from ((batch, True) for batch in self.batches)
        yield from ((batch, False) for batch in self.idle)


@dataclass(frozen=True, kw_only=True, slots=True)
class Responses:
    """What is known of response tokens beforehand, `[T]`, those of a micro-batch's rows one after another."""

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
    the prompt's last. A row's last token is left out: nothing is predicted from it.
    """

    tokens: Tensor  # [B, L] or [B, L − 1] int64
    prompt: Tensor  # [B] int64 into Block.prompts; of whole rows, −1
    positions: Tensor  # [T] int64 into B·L: where the token's logits are computed
    targets: Tensor  # [T] int64
    responses: Responses


def flatten(
    ordered: Sequence[OrderedGroup], groups: Sequence[Group], settings: LearnerSettings, sample_balance: float = 0.0
) -> list[Sample]:
    """The order's samples with their advantages and coefficients; `groups[i]` is the group of `ordered[i]`.

    With a `sample_balance` α the policy losses of samples with A > 0 are scaled by 1 + α, those with A < 0 by 1 − α
    (EntroPIC).
    """
    samples: list[Sample] = []
    for g, (entry, group) in enumerate(zip(ordered, groups, strict=True)):
        rollout = group.rollout
        truncated = rollout.samples.finish == FINISHED_LENGTH
        rewards = np.array([verdict.reward for verdict in group.verdicts], np.float64)
        shaped = shaped_rewards(rewards, truncated, settings.truncated, settings.truncation_penalty)
        advantages = advantages_of(shaped, settings.advantages)
        counts = counting(truncated, settings.truncated)
        edges = np.concatenate([[0], np.cumsum(rollout.samples.lengths)])
        for i, (start, end) in enumerate(pairwise(edges)):
            samples.append(
                Sample(
                    index=len(samples),
                    group=g,
                    tokens=np.concatenate([rollout.prompt_tokens, rollout.samples.tokens[start:end]]),
                    prompt_length=len(rollout.prompt_tokens),
                    behaviour=rollout.samples.logprobs[start:end],
                    advantage=float(advantages[i]),
                    weight=entry.weight,
                    coefficient=entry.coefficient,
                    balance=1.0 + sample_balance * float(np.sign(advantages[i])),
                    in_policy=entry.in_policy,
                    counts=bool(counts[i]),
                )
            )
    return samples


def denominators(samples: Sequence[Sample]) -> Denominators:
    """N_A and N_H of the samples. A group without advantage counts in N_A unless it came along for its bonus alone."""
    lengths = [sample.response_length for sample in samples if sample.counts and sample.in_policy]
    return Denominators(
        policy_tokens=sum(lengths),
        policy_samples=sum(length > 0 for length in lengths),
        response_tokens=sum(sample.response_length for sample in samples),
    )


def blocks(samples: Sequence[Sample], budget: int, *, shared: bool) -> list[Block]:
    """All samples with response tokens, in blocks of at most `budget` tokens at a time, padding included.

    With `shared`, what counts is a block's prompts, once, and the responses of one micro-batch; else whole rows. A
    sample beyond the budget is a micro-batch of its own; one without response tokens teaches nothing and is left out.
    """
    taught = [sample for sample in samples if sample.response_length]

    def whole(sample: Sample) -> int:
        return len(sample.tokens)

    if not shared:
        return [
            Block(prompts=(), batches=_micro_batches(taught, whole, lambda rows, longest: rows * longest <= budget))
        ]
    families: dict[bytes, list[Sample]] = {}
    for sample in taught:
        families.setdefault(sample.prompt.tobytes(), []).append(sample)
    cuts: list[list[list[Sample]]] = []
    for family in sorted(families.values(), key=lambda family: (-family[0].prompt_length, family[0].index)):
        if cuts and (len(cuts[-1]) + 1) * cuts[-1][0][0].prompt_length <= PROMPTS_SHARE * budget:
            cuts[-1].append(family)
        else:
            cuts.append([family])
    return [_block(cut, budget) for cut in cuts]


def _block(families: Sequence[Sequence[Sample]], budget: int) -> Block:
    """The block of these prompts' samples; the first prompt is the longest."""
    width = families[0][0].prompt_length
    room = budget - len(families) * width

    def response(sample: Sample) -> int:
        return sample.response_length

    def fits(rows: int, longest: int) -> bool:
        return rows * longest <= room and rows * (width + longest) <= KEYS_PER_TOKEN * budget

    return Block(
        prompts=tuple(family[0].prompt for family in families),
        batches=_micro_batches([sample for family in families for sample in family], response, fits),
    )


def _micro_batches(
    samples: Sequence[Sample], length: Callable[[Sample], int], fits: Callable[[int, int], bool]
) -> tuple[tuple[Sample, ...], ...]:
    """Samples of similar length together, longest first; `fits(rows, longest)` says if so many rows are allowed."""
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: (-length(sample), sample.index)):
        if batches:
            rows, longest = len(batches[-1]), length(batches[-1][0])
            alike = length(sample) >= SHORTEST_SHARE * longest
            if fits(rows + 1, longest) and (alike or fits(2 * rows, longest)):
                batches[-1].append(sample)
                continue
        batches.append([sample])
    return tuple(map(tuple, batches))


def padding_share(blocks: Iterable[Block]) -> float:
    """Padding over all tokens of the blocks' prompts and micro-batches, 0–1; what is computed idly is padding."""
    held = real = 0
    for block in blocks:
        tables = [[len(prompt) for prompt in block.prompts]]
        for batch in block.batches:
            tables.append([sample.response_length if block.prompts else len(sample.tokens) for sample in batch])
        held += sum(len(lengths) * max(lengths, default=0) for lengths in tables)
        held += sum(one.response_length if block.prompts else len(one.tokens) for batch in block.idle for one in batch)
        real += sum(map(sum, tables)) if block.batches else 0
    return 1.0 - real / held if held else 0.0


def part(columns: Columns, tokens: slice) -> Columns:
    """Some of what is known of tokens: every field is `[T]`."""
    return replace(columns, **{f.name: getattr(columns, f.name)[tokens] for f in fields(columns)})


def collate(
    samples: Sequence[Sample], prompts: Sequence[Int32] = (), *, device: torch.device, dtype: torch.dtype
) -> MicroBatch:
    """The samples as tensors, of a block with these prompts; `dtype` is that of the per-token numbers."""
    place = {prompt.tobytes(): i for i, prompt in enumerate(prompts)}
    skipped = [sample.prompt_length if prompts else 0 for sample in samples]
    ahead = 1 if prompts else 0  # the prompt's last state comes before the row's own
    width = max(len(sample.tokens) - skip for sample, skip in zip(samples, skipped, strict=True)) - 1
    tokens = np.full((len(samples), width), PADDING_ID, np.int64)
    positions, lengths = [], np.array([sample.response_length for sample in samples])
    for row, (sample, skip) in enumerate(zip(samples, skipped, strict=True)):
        tokens[row, : len(sample.tokens) - skip - 1] = sample.tokens[skip:-1]
        first = row * (width + ahead) + sample.prompt_length - skip - 1 + ahead
        positions.append(np.arange(first, first + sample.response_length))
    prompt = np.array([place[sample.prompt.tobytes()] if prompts else -1 for sample in samples])

    def whole(arrays: list[Int32]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.int64)).to(device)

    def per_token(values: list[float] | list[int] | list[bool], kind: torch.dtype) -> Tensor:
        return torch.from_numpy(np.repeat(np.array(values), lengths)).to(device, kind)

    return MicroBatch(
        tokens=torch.from_numpy(tokens).to(device),
        prompt=torch.from_numpy(prompt).to(device),
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
