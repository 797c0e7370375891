"""The lease book: who samples which prompt, until when, and how each lease ended: exactly one way.

    granted → running ─┬→ ready ─┬→ ordered ─┬→ trained
                       │         │     ↑ ↓   └→ lost       (the buffer no longer has its group)
                       │         │    ready                (its order was given up)
                       │         ├→ stale
                       │         └→ filtered               (waited to come along, but was not needed)
                       ├→ expired
                       └→ filtered                         (without an advantage signal)

Staleness is bounded by construction. With B prompts a batch and S versions of staleness, an actor that serves step `v`
is granted leases only while `trained + running + ready + ordered < (v − start + S + 1)·B`, all counted since the
branch's start: taken in the order of leases, the group is consumed by the order of step `v + S` at the latest. A
straggler can still come too late for its order, so age is checked again when a batch is made.

With a filter a group without an advantage signal holds no place of a batch: its lease is filtered, its prompt counts as
consumed, and its place is granted anew, to an actor of whatever version it serves by then, under the same bound. At
most `left_out` groups are left out of one order; further ones hold a place like any other, so that a run whose groups
are all equal goes on, order by order, and does not sample for ever. The newest `kept` all-wrong groups since the last
order are ready without holding a place: they come along with the next one for their bonus, or are filtered then.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from entrostat.controller.coefficient import gives_bonus
from entrostat.controller.prompts import PromptOrder, PromptPosition
from entrostat.controller.sieve import Sieve
from entrostat.controller.signals import silent
from entrostat.protocol.messages import GroupReport, Lease, LeaseCounts, PolicyVersion
from entrostat.protocol.settings import Stations

log = logging.getLogger(__name__)

BRANCH_SHIFT = 40  # a lease's id is its branch and its number, so that no id means two leases
SEED_BYTES = 6
TYPICAL_SHARE = 0.05  # of a new duration in the decayed mean: about the last twenty groups
PATIENCE = 2.0  # in typical durations, from the grant

Outcome = Literal["trained", "expired", "stale", "lost"]  # of leases that held a place
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
    left_out: int = 0  # at most so many groups without a signal for one order; 0: no filter
    kept: int = 0  # of all-wrong groups that are left out, for their bonus


def lease_rules(settings: Stations) -> LeaseRules:
    """A run's rules; all-wrong groups are kept, half a batch of them, where its law has a bonus for them."""
    batch, bonus = settings.batch, gives_bonus(settings.entropy.law)
    return LeaseRules(
        batch=batch.prompts,
        max_staleness=settings.rollout.max_staleness,
        last_step=settings.total_steps,
        samples=settings.rollout.samples_per_prompt,
        lease_seconds=settings.rollout.lease_seconds,
        seed=settings.seed,
        left_out=0 if batch.filter == "none" else int((batch.refill - 1.0) * batch.prompts),
        kept=batch.prompts // 2 if bonus and settings.entropy.weight.all_wrong_share > 0.0 else 0,
    )


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
        self._along: set[int] = set()  # ordered leases without a place
        self._sieve = Sieve(most=rules.left_out, kept=rules.kept)
        self._filtered = before.filtered  # before this branch
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
        count = min(room, steps * self._rules.batch - self._filled() - len(self._running))
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
            elif running is not None or not self.holds(lease):
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
        if self._sieve.leaves_out(report, self._filled() // self._rules.batch):
            self._free(report.prompt_id)
        else:
            self._ready[report.lease_id] = report
        return True

    def take_filtered(self) -> tuple[GroupReport, ...]:
        """The groups whose leases ended as filtered since this was asked last."""
        return self._sieve.take_filtered()

    def holds(self, lease: int) -> bool:
        """Whether the lease's group may yet be trained or is being sampled, so that the buffer must keep it."""
        return any(lease in leases for leases in (self._running, self._ready, self._ordered, self._sieve.waiting))

    def _filled(self) -> int:
        """Places of batches taken by finished groups since the branch's start."""
        return self._consumed + len(self._ready) + len(self._ordered) - len(self._along)

    def drop_stale(self, step: int) -> tuple[int, ...]:
        """Ends ready groups that are too old for the order of `step`; returns their leases, but not those filtered."""
        oldest = step - self._rules.max_staleness
        self._sieve.drop_older(oldest)
        stale = [lease for lease, report in self._ready.items() if report.started.step < oldest]
        self._end([self._ready.pop(lease).prompt_id for lease in stale], "stale")
        return tuple(stale)

    # ── ordering ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def order(self, at: float, *, along: bool = False) -> tuple[GroupReport, ...]:
        """Takes a batch of ready groups, oldest start first, then by lease; `()` while there are too few.

        After the batch come the all-wrong groups that were kept, with `along` and where the batch has any signal;
        otherwise they are filtered.

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
        extra = self._sieve.hand_over(wanted=along and not all(silent(report) for report in chosen))
        self._ordered |= extra
        self._along = set(extra)
        return (*chosen, *extra.values())

    def train(self) -> tuple[int, ...]:
        """Ends the ordered leases as trained; returns them."""
        leases = tuple(self._ordered)
        self._ended["trained"] += len(leases)
        self._consumed += len(leases) - len(self._along)
        self._ordered.clear()
        self._along.clear()
        self._sieve.forget_before(self._consumed // self._rules.batch)
        return leases

    def give_up(self, missing: Iterable[int]) -> None:
        """Takes the order back: `missing` groups are lost, the others ready again."""
        lost = [self._ordered.pop(lease).prompt_id for lease in missing if lease in self._ordered]
        self._end(lost, "lost")
        along = {lease: report for lease, report in self._ordered.items() if lease in self._along}
        for lease, report in self._ordered.items():
            if lease not in along:
                self._ready[lease] = report
                self._busy[report.prompt_id] += 1
        self._sieve.give_back(along)
        self._ordered.clear()
        self._along.clear()

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
            ready=len(self._ready) + len(self._sieve.waiting),
            ordered=len(self._ordered),
            filtered=self._filtered + self._sieve.count,
            rewound=self._rewound,
            **self._ended,
        )

    def position(self) -> PromptPosition:
        """Where the prompts' order stands, those of unfinished leases put back."""
        running = (running.lease.prompt_id for running in self._running.values())
        waiting = (
            report.prompt_id
            for report in (*self._ordered.values(), *self._ready.values(), *self._sieve.waiting.values())
        )
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
