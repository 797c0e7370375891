"""The lease book: who samples which prompt, until when, and how each lease ended: exactly one way.

    granted → running ─┬→ ready ─┬→ ordered ─┬→ trained
                       │         │     ↑ ↓   ├→ lost       (the buffer no longer has its group)
                       └→ expired└→ stale  ready           (its order was given up)

Staleness is bounded by construction. With B prompts a batch and S versions of staleness, an actor that serves step `v`
is granted leases only while `trained + running + ready + ordered < (v − start + S + 1)·B`, all counted since the
branch's start: taken in the order of leases, the group is consumed by the order of step `v + S` at the latest. A
straggler can still come too late for its order, so age is checked again when a batch is made.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from entrostat.controller.prompts import PromptOrder, PromptPosition
from entrostat.protocol.messages import GroupReport, Lease, LeaseCounts, PolicyVersion

log = logging.getLogger(__name__)

BRANCH_SHIFT = 40  # a lease's id is its branch and its number, so that no id means two leases
SEED_BYTES = 6
TYPICAL_SHARE = 0.05  # of a new duration in the decayed mean: about the last twenty groups
PATIENCE = 2.0  # in typical durations, from the grant

Outcome = Literal["trained", "expired", "stale", "lost"]
Holder = tuple[int, int]  # slot, incarnation


class Running(msgspec.Struct):
    """A lease under way."""

    lease: Lease
    holder: Holder
    granted: float  # seconds on the events' clock
    deadline: float


class LeaseRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the book grants by."""

    batch: int  # B, groups an order consumes
    max_staleness: int  # S, versions
    last_step: int  # of the run: nothing is sampled that no order would consume
    samples: int  # G
    lease_seconds: float
    seed: int


class LeaseBook:
    """All leases of one branch, and the prompts' order they are granted in.

    Args:
        rules: batch, staleness and deadlines.
        prompts: where the next prompt comes from.
        branch: of every version this book accepts.
        start: the branch's first step.
        counts: those of the run so far; leases that had not ended count as rewound.
        next_number: of the next lease.
    """

    def __init__(
        self,
        rules: LeaseRules,
        prompts: PromptOrder,
        *,
        branch: int,
        start: int,
        counts: LeaseCounts | None = None,
        next_number: int = 0,
    ) -> None:
        before = counts or LeaseCounts()
        self._rules = rules
        self._prompts = prompts
        self._branch = branch
        self._start = start
        self._number = next_number
        self._granted = before.granted
        self._ended: dict[Outcome, int] = {
            "trained": before.trained,
            "expired": before.expired,
            "stale": before.stale,
            "lost": before.lost,
        }
        self._rewound = before.rewound + before.running + before.ready + before.ordered
        self._consumed = 0  # groups trained in this branch
        self._running: dict[int, Running] = {}
        self._ready: dict[int, GroupReport] = {}
        self._ordered: dict[int, GroupReport] = {}
        self._busy: Counter[int] = Counter()  # prompts of running and ready groups
        self._typical_seconds = 0.0  # from a grant to its report, a decayed mean

    # ── granting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def grant(
        self, holder: Holder, *, room: int, serves: PolicyVersion, newest: PolicyVersion, at: float
    ) -> tuple[Lease, ...]:
        """At most `room` new leases for an actor that serves `serves`; none while it is on another branch."""
        if serves.branch != self._branch:
            return ()
        served = min(serves.step, newest.step)
        steps = min(served + self._rules.max_staleness + 1, self._rules.last_step) - self._start
        outstanding = len(self._running) + len(self._ready) + len(self._ordered)
        count = min(room, steps * self._rules.batch - self._consumed - outstanding)
        version = PolicyVersion(branch=self._branch, step=served)
        return tuple(self._grant_one(holder, version, at) for _ in range(count))

    def _grant_one(self, holder: Holder, version: PolicyVersion, at: float) -> Lease:
        prompt = self._prompts.take(self._busy, len(self._busy))
        number = self._number
        self._number += 1
        self._granted += 1
        lease = Lease(
            id=(self._branch << BRANCH_SHIFT) + number,
            prompt_id=prompt,
            samples=self._rules.samples,
            version=version,
            seed=derived_seed(self._rules.seed, "lease", number),
            deadline_seconds=self._rules.lease_seconds,
        )
        self._running[lease.id] = Running(lease, holder, at, at + self._rules.lease_seconds)
        self._busy[prompt] += 1
        return lease

    def renew(self, holder: Holder, leases: Iterable[int], at: float) -> tuple[int, ...]:
        """Moves the deadlines of the holder's running leases; returns those of `leases` that ended without it."""
        gone: list[int] = []
        for lease in leases:
            running = self._running.get(lease)
            if running is not None and running.holder == holder:
                running.deadline = at + self._rules.lease_seconds
            elif lease not in self._ready and lease not in self._ordered:
                gone.append(lease)
        return tuple(gone)

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def expire(self, at: float) -> tuple[int, ...]:
        """Ends the running leases whose deadline has passed; returns their ids."""
        return self._expire([lease for lease, running in self._running.items() if running.deadline <= at])

    def evict(self, slot: int) -> tuple[int, ...]:
        """Ends all running leases of a slot, whose actor lives no more; returns their ids."""
        return self._expire([lease for lease, running in self._running.items() if running.holder[0] == slot])

    def _expire(self, leases: list[int]) -> tuple[int, ...]:
        self._end([self._running.pop(lease).lease.prompt_id for lease in leases], "expired")
        return tuple(leases)

    def accept(self, report: GroupReport, at: float) -> bool:
        """Makes a running lease ready; False where the report is late: of an ended lease, or not from its holder."""
        running = self._running.get(report.lease_id)
        if (
            running is None
            or running.holder != (report.slot, report.incarnation)
            or running.lease.prompt_id != report.prompt_id
            or report.started.branch != self._branch
        ):
            return False
        del self._running[report.lease_id]
        share = TYPICAL_SHARE if self._typical_seconds else 1.0
        self._typical_seconds += share * (at - running.granted - self._typical_seconds)
        self._ready[report.lease_id] = report
        return True

    def holds(self, lease: int) -> bool:
        """Whether the lease's group is still to be trained or being sampled, so that the buffer must keep it."""
        return lease in self._running or lease in self._ready or lease in self._ordered

    def drop_stale(self, step: int) -> tuple[int, ...]:
        """Ends ready groups that are too old for the order of `step`; returns their leases."""
        oldest = step - self._rules.max_staleness
        stale = [lease for lease, report in self._ready.items() if report.started.step < oldest]
        self._end([self._ready.pop(lease).prompt_id for lease in stale], "stale")
        return tuple(stale)

    # ── ordering ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def order(self, at: float) -> tuple[GroupReport, ...]:
        """Takes a batch of ready groups, oldest start first, then by lease; `()` while there are too few.

        Groups of short responses are done first: a batch of whatever is ready would be an easy one, and the next a hard
        one. So it waits for older leases that are under way, but for none that takes twice as long as is typical: its
        actor may be dead.

        Two groups of one prompt share a batch only where there are not enough others.
        """
        if len(self._ready) < self._rules.batch:
            return ()
        queue = sorted(self._ready.values(), key=lambda report: (report.started.step, report.lease_id))
        first: dict[int, GroupReport] = {}
        again: list[GroupReport] = []
        for report in queue:
            if report.prompt_id in first:
                again.append(report)
            else:
                first[report.prompt_id] = report
        chosen = tuple([*first.values(), *again][: self._rules.batch])
        newest = max(report.lease_id for report in chosen)
        patience = PATIENCE * self._typical_seconds
        if any(id < newest and at - running.granted < patience for id, running in self._running.items()):
            return ()
        for report in chosen:
            self._ordered[report.lease_id] = self._ready.pop(report.lease_id)
            self._free(report.prompt_id)
        return chosen

    def train(self) -> tuple[int, ...]:
        """Ends the ordered leases as trained; returns them."""
        leases = tuple(self._ordered)
        self._ended["trained"] += len(leases)
        self._consumed += len(leases)
        self._ordered.clear()
        return leases

    def give_up(self, missing: Iterable[int]) -> None:
        """Takes the order back: `missing` groups are lost, the others ready again."""
        lost = [self._ordered.pop(lease).prompt_id for lease in missing if lease in self._ordered]
        self._end(lost, "lost")
        for lease, report in self._ordered.items():
            self._ready[lease] = report
            self._busy[report.prompt_id] += 1
        self._ordered.clear()

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def next_number(self) -> int:
        """Of the next lease."""
        return self._number

    def counts(self) -> LeaseCounts:
        """How many leases were granted since the run began, and where each of them is."""
        return LeaseCounts(
            granted=self._granted,
            running=len(self._running),
            ready=len(self._ready),
            ordered=len(self._ordered),
            rewound=self._rewound,
            **self._ended,
        )

    def position(self) -> PromptPosition:
        """Where the prompts' order stands, those of unfinished leases put back."""
        running = (running.lease.prompt_id for running in self._running.values())
        waiting = (report.prompt_id for report in (*self._ordered.values(), *self._ready.values()))
        return self._prompts.position((*waiting, *running))

    def _end(self, prompts: list[int], outcome: Outcome) -> None:
        for prompt in prompts:
            if outcome != "lost":  # an ordered group's prompt is free already
                self._free(prompt)
            self._prompts.put_back((prompt,))
        self._ended[outcome] += len(prompts)
        if prompts:
            log.warning("%d leases ended as %s; their prompts are leased again: %s", len(prompts), outcome, prompts)

    def _free(self, prompt: int) -> None:
        self._busy[prompt] -= 1
        if self._busy[prompt] == 0:
            del self._busy[prompt]
            self._prompts.freed(prompt)


def derived_seed(run_seed: int, purpose: str, *numbers: int) -> int:
    """A seed in [0, 2^48) that follows from the run's seed and from what it is for."""
    text = ":".join((str(run_seed), purpose, *(str(number) for number in numbers)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=SEED_BYTES).digest(), "little")
