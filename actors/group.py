"""A lease on its way to a group: sampled, judged, stored, reported. Values only, no engine and no clock."""

from collections.abc import Sequence

import msgspec
import numpy as np

from entrostat.protocol.arrays import Int32, split
from entrostat.protocol.messages import (
    FINISHED_LENGTH,
    Group,
    GroupReport,
    Lease,
    PolicyVersion,
    Prompt,
    Rollout,
    Samples,
    Verdict,
)
from entrostat.protocol.moments import Moments


class Verdicts:
    """The verdicts of one group's samples, in the samples' order, as they come in."""

    def __init__(self, samples: int) -> None:
        self._found: list[Verdict | None] = [None] * samples
        self._missing = samples

    def enter(self, index: int, verdict: Verdict) -> None:
        """Keeps the verdict on sample `index`."""
        self._missing -= self._found[index] is None
        self._found[index] = verdict

    @property
    def complete(self) -> bool:
        """Every sample has been judged."""
        return self._missing == 0

    def all(self) -> tuple[Verdict, ...]:
        """The verdicts so far: all of them once complete."""
        return tuple(verdict for verdict in self._found if verdict is not None)


class HeldLease(msgspec.Struct, kw_only=True):
    """A lease that this actor holds."""

    lease: Lease
    prompt: Prompt
    started: PolicyVersion | None = None  # what the engine served when the lease was submitted; None before
    prompt_tokens: Int32 | None = None
    submitted_at: float = 0.0
    rollout: Rollout | None = None  # once the engine is done
    verdicts: Verdicts | None = None
    group: Group | None = None  # once it is judged


def responses(samples: Samples) -> list[Int32]:
    """The response tokens of each sample, `[length] int32`, `G` of them."""
    return split(samples.tokens, samples.lengths)


def surprise(samples: Sequence[Samples]) -> Moments:
    """Moments of −log π over all tokens, nats."""
    moments = Moments()
    for one in samples:
        moments = moments.observe(-one.logprobs)
    return moments


def report_of(group: Group) -> GroupReport:
    """What the controller is told of a group that lies in the buffer."""
    rollout = group.rollout
    return GroupReport(
        lease_id=rollout.lease.id,
        prompt_id=rollout.lease.prompt_id,
        slot=rollout.slot,
        incarnation=rollout.incarnation,
        started=rollout.started,
        rewards=tuple(verdict.reward for verdict in group.verdicts),
        statuses=tuple(verdict.status for verdict in group.verdicts),
        lengths=tuple(int(length) for length in rollout.samples.lengths),
        surprise=surprise([rollout.samples]),
        truncated=int(np.count_nonzero(rollout.samples.finish == FINISHED_LENGTH)),
    )
