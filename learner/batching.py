"""From groups to samples, and which of them are computed together, within a budget of tokens.

Micro-batches come in blocks, of three kinds. A block's prompts are computed once, and the rows of its micro-batches are
responses that go on from them (shared_prompt.py); or it has no prompts, and the rows are whole, prompt and response; or
it is packed, and each micro-batch is one row of whole samples without padding (packing.py). Rows of the first two kinds
are sorted by length and padded on the right.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from entrostat.learner.advantages import advantages_of, counting, shaped_rewards
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import EntrostatError, TaskError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import FINISHED_LENGTH, Group, OrderedGroup

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
    packed: bool = False  # the micro-batches are rows without padding; there are no prompts

    @property
    def computed(self) -> int:
        """Tokens, padding and what is computed idly included."""
        prompts = len(self.prompts) * max(map(len, self.prompts), default=0)
        return prompts + sum(sum(self._lengths(batch)) + self._padding(batch) for batch, _ in self.rounds())

    @property
    def wasted(self) -> int:
        """Those of the computed tokens that nobody reads."""
        if not self.batches:
            return self.computed
        prompts = len(self.prompts) * max(map(len, self.prompts), default=0) - sum(map(len, self.prompts))
        return prompts + sum(map(self._padding, self.batches)) + sum(sum(self._lengths(batch)) for batch in self.idle)

    def _lengths(self, batch: Sequence[Sample]) -> list[int]:
        return [sample.response_length if self.prompts else len(sample.tokens) for sample in batch]

    def _padding(self, batch: Sequence[Sample]) -> int:
        lengths = self._lengths(batch)
        return 0 if self.packed else len(lengths) * max(lengths) - sum(lengths)

    def rounds(self) -> Iterator[tuple[tuple[Sample, ...], bool]]:
        """All that is computed, and what of it counts."""
        yield from ((batch, True) for batch in self.batches)
        yield from ((batch, False) for batch in self.idle)


def check_tokens(groups: Sequence[Group], vocabulary: int) -> None:
    """That all tokens are some of the policy's: a GPU would read others from beyond its logits, without an error.

    Raises:
        EntrostatError: one is not.
    """
    for group in groups:
        for tokens in (group.rollout.prompt_tokens, group.rollout.samples.tokens):
            if len(tokens) and not (tokens.min() >= 0 and tokens.max() < vocabulary):
                raise EntrostatError(
                    f"a group of prompt {group.rollout.lease.prompt_id} has tokens from {tokens.min()} to "
                    f"{tokens.max()}; expected 0 to {vocabulary - 1}, the policy's: the engine has another model or "
                    "tokenizer than the learner. Give both the same model.path"
                )


def flatten(
    ordered: Sequence[OrderedGroup], groups: Sequence[Group], settings: LearnerSettings, sample_balance: float = 0.0
) -> list[Sample]:
    """The order's samples with their advantages and coefficients; `groups[i]` is the group of `ordered[i]`.

    With a `sample_balance` α the policy losses of samples with A > 0 are scaled by 1 + α, those with A < 0 by 1 − α
    (EntroPIC).

    Raises:
        TaskError: a group's prompt has no tokens.
    """
    samples: list[Sample] = []
    for g, (entry, group) in enumerate(zip(ordered, groups, strict=True)):
        rollout = group.rollout
        if not len(rollout.prompt_tokens):
            raise TaskError(
                f"the group of lease {entry.lease_id} came without a prompt: prompt {entry.prompt_id} has 0 tokens, "
                "and the first token of a response has nothing to go on from. Leave the prompt out of its task"
            )
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


def packed_blocks(samples: Sequence[Sample], budget: int) -> list[Block]:
    """All samples with response tokens in rows of at most `budget` tokens, none of them padding.

    The longest first, each into the first row that has room for it. A sample beyond the budget has a row of its own.
    """
    rows: list[list[Sample]] = []
    room: list[int] = []
    taught = [sample for sample in samples if sample.response_length]
    for sample in sorted(taught, key=lambda sample: (-len(sample.tokens), sample.index)):
        size = len(sample.tokens)
        place = next((i for i, left in enumerate(room) if size <= left), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(budget)
        rows[place].append(sample)
        room[place] -= size
    return [Block(prompts=(), batches=tuple(map(tuple, rows)), packed=True)]


def padding_share(blocks: Iterable[Block]) -> float:
    """Padding over all tokens of the blocks' prompts and micro-batches, 0–1; what is computed idly is padding."""
    pairs = [(block.wasted, block.computed) for block in blocks]
    computed = sum(all_of_it for _, all_of_it in pairs)
    return sum(wasted for wasted, _ in pairs) / computed if computed else 0.0
