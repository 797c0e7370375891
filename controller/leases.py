"""The lease book: who samples which prompt, until when, and how each lease ended: exactly one way.

    granted → running ─┬→ ready ─┬→ ordered ─┬→ trained
                       │         │     ↑ ↓   └→ lost       (the buffer no longer has its group)
                       │         │    ready                (its order was given up)
                       │         ├→ stale
                       │         └→ filtered               (waited to come along, but was not needed)
                       ├→ expired
                       ├→ returned                         (by an actor that drains)
                       └→ filtered                         (without an advantage signal)

What a rewound branch leaves under way ends as rewound.

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

from entrostat.controller.batches import choose, worth_waiting
from entrostat.controller.lease_rules import LeaseRules
from entrostat.controller.places import FixedPlaces
from entrostat.controller.prompts import PromptOrder
from entrostat.controller.running import Holder, RunningLeases
from entrostat.controller.sieve import Sieve
from entrostat.controller.signals import silent
from entrostat.controller.snapshot import BookState
from entrostat.protocol.messages import GroupReport, Lease, LeaseCounts, PolicyVersion

log = logging.getLogger(__name__)

BRANCH_SHIFT = 40  # a lease's id is its branch, the controller's life and its number, so that no id means two leases
TERM_SHIFT = 32
SEED_BYTES = 6
TYPICAL_SHARE = 0.05  # of a new duration in the decayed mean: about the last twenty groups

Outcome = Literal["trained", "expired", "returned", "stale", "lost"]  # of leases that held a place


class LeaseBook:
    """All leases of one branch, and the prompts' order they are granted in.

    Args:
        rules: batch, staleness and deadlines.
        prompts: where the next prompt comes from.
        branch: of every version this book accepts.
        start: the branch's first step.
    """

    def __init__(self, rules: LeaseRules, prompts: PromptOrder, *, branch: int, start: int) -> None:
        self._rules = rules
        self._prompts = prompts
        self._branch, self._start = branch, start
        self._term = 0
        self._number = 0
        self._granted = 0
        self._ended: dict[Outcome, int] = {"trained": 0, "expired": 0, "returned": 0, "stale": 0, "lost": 0}
        self._rewound = 0
        self._consumed = 0  # groups trained in this branch
        self._running = RunningLeases(rules.lease_seconds)
        self._ready: dict[int, GroupReport] = {}
        self._ordered: dict[int, GroupReport] = {}
        self._along: set[int] = set()  # ordered leases without a place
        self._sieve = Sieve(most=rules.left_out, kept=rules.kept)
        self._filtered = 0  # before this branch
        self._busy: Counter[int] = Counter()  # prompts of running and ready groups
        self._pulse = 0  # number of the pulse that is being answered
        self._typical_seconds = 0.0  # from a grant to its report, a decayed mean
        self._fixed: FixedPlaces | None = None
        self._places: dict[int, int] = {}  # lease → place, of ready and ordered groups with fixed places
        if rules.fixed:
            self._fixed = FixedPlaces(
                batch=rules.batch, max_staleness=rules.max_staleness, every=rules.every, prompts=prompts, start=start
            )

    # ── granting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def grant(
        self, holder: Holder, *, room: int, serves: PolicyVersion, newest: PolicyVersion, at: float, pulse: int = 0
    ) -> tuple[Lease, ...]:
        """At most `room` new leases for an actor that serves `serves`; none while it is on another branch."""
        self._pulse = pulse
        if serves.branch != self._branch:
            return ()
        if self._fixed is not None:
            return self._grant_fixed(self._fixed, holder, room, serves, at)
        served = min(serves.step, newest.step)
        steps = min(served + self._rules.max_staleness + 1, self._rules.last_step) - self._start
        count = min(room, steps * self._rules.batch - self._filled() - len(self._running))
        version = PolicyVersion(branch=self._branch, step=served)
        prompts = (self._prompts.take(self._busy, len(self._busy)) for _ in range(count))
        return tuple(self._grant_one(holder, version, at, prompt, self._number) for prompt in prompts)

    def _grant_fixed(
        self, places: FixedPlaces, holder: Holder, room: int, serves: PolicyVersion, at: float
    ) -> tuple[Lease, ...]:
        granted: list[Lease] = []
        end = self._rules.last_step * self._rules.batch
        while len(granted) < room and places.first() < end and places.step_of(places.first()) == serves.step:
            place = places.take()
            granted.append(self._grant_one(holder, serves, at, places.prompt_of(place), place))
        return tuple(granted)

    def _grant_one(self, holder: Holder, version: PolicyVersion, at: float, prompt: int, place: int) -> Lease:
        number = self._number
        self._number += 1
        self._granted += 1
        lease = Lease(
            id=(self._branch << BRANCH_SHIFT) + (self._term << TERM_SHIFT) + number,
            prompt_id=prompt,
            samples=self._rules.samples,
            version=version,
            seed=derived_seed(self._rules.seed, "lease", place),
            deadline_seconds=self._rules.lease_seconds,
        )
        self._running.grant(lease, holder, at=at, place=place, pulse=self._pulse)
        self._busy[prompt] += 1
        return lease

    def offer(self, holder: Holder, newest: PolicyVersion) -> PolicyVersion:
        """The version an actor should serve: the newest, but with fixed places the one that is sampled next."""
        if self._fixed is None:
            return newest
        if mine := self._running.of(holder):
            return min(running.lease.version for running in mine.values())
        place = self._fixed.first()
        if place >= self._rules.last_step * self._rules.batch:
            return newest
        return PolicyVersion(branch=self._branch, step=min(self._fixed.step_of(place), newest.step))

    def renew(self, holder: Holder, leases: Iterable[int], at: float) -> tuple[int, ...]:
        """Moves the deadlines of the holder's running leases; returns those of `leases` that ended without it."""
        gone: list[int] = []
        for lease in leases:
            running = self._running.get(lease)
            if running is not None and running.holder == holder:
                self._running.renew(running, at)
            elif running is not None or not self.holds(lease):
                gone.append(lease)
        return tuple(gone)

    def renew_all(self, at: float, term: int) -> None:
        """Another process keeps the book from now on: actors get a whole deadline's time to find it."""
        self._term = term
        self._running.renew_all(at)

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def expire(self, at: float) -> tuple[int, ...]:
        """Ends the running leases whose deadline has passed; returns their ids."""
        return self._stop(self._running.due(at), "expired")

    def evict(self, slot: int) -> tuple[int, ...]:
        """Ends all running leases of a slot, whose actor lives no more; returns their ids."""
        return self._stop(self._running.of_slot(slot), "expired")

    def end_unheard(self, holder: Holder, running: Iterable[int], pulse: int) -> tuple[int, ...]:
        """Ends the holder's leases that it never heard of; returns their ids.

        A pulse is sent after the reply to the one before: what was granted there and is not `running` now was in a
        reply that got lost.
        """
        known = set(running)
        held = self._running.of(holder).items()
        return self._stop([lease for lease, one in held if 0 < one.pulse < pulse and lease not in known], "expired")

    def take_back(self, holder: Holder, leases: Iterable[int]) -> tuple[int, ...]:
        """Ends those of the holder's running leases that it hands back; returns their ids."""
        held = self._running.of(holder)
        return self._stop([lease for lease in leases if lease in held], "returned")

    def _stop(self, leases: list[int], outcome: Outcome) -> tuple[int, ...]:
        stopped = [self._running.leave(lease) for lease in leases]
        self._end([(running.lease.prompt_id, running.place) for running in stopped], outcome)
        return tuple(leases)

    def accept(self, report: GroupReport, at: float) -> bool:
        """Makes a running lease ready; False where the report is late: of an ended lease, or not from its holder."""
        running = self._running.get(report.lease_id)
        if (
            running is None
            or running.holder != (report.slot, report.incarnation)
            or running.lease.prompt_id != report.prompt_id
            or report.started.branch != self._branch
            or (self._fixed is not None and report.started != running.lease.version)
        ):
            return False
        self._running.leave(report.lease_id)
        share = TYPICAL_SHARE if self._typical_seconds else 1.0
        self._typical_seconds += share * (at - running.granted - self._typical_seconds)
        if self._fixed is not None:
            self._places[report.lease_id] = running.place
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

    def held(self) -> list[int]:
        """All leases that `holds` is true of."""
        return [*self._running, *self._ready, *self._ordered, *self._sieve.waiting]

    def _filled(self) -> int:
        """Places of batches taken by finished groups since the branch's start."""
        return self._consumed + len(self._ready) + len(self._ordered) - len(self._along)

    def drop_stale(self, step: int) -> tuple[int, ...]:
        """Ends ready groups that are too old for the order of `step`; returns their leases, but not those filtered."""
        oldest = step - self._rules.max_staleness
        self._sieve.drop_older(oldest)
        stale = [lease for lease, report in self._ready.items() if report.started.step < oldest]
        self._end([(self._ready.pop(lease).prompt_id, self._places.pop(lease, 0)) for lease in stale], "stale")
        return tuple(stale)

    # ── ordering ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def order(self, step: int, at: float, *, along: bool = False) -> tuple[GroupReport, ...]:
        """Takes the batch of the order of `step` out of the ready groups; `()` while there is none to make.

        After the batch come the all-wrong groups that were kept, with `along` and where the batch has any signal;
        otherwise they are filtered.
        """
        chosen = self._batch(at) if self._fixed is None else self._fixed_batch(self._fixed, step)
        for report in chosen:
            self._ordered[report.lease_id] = self._ready.pop(report.lease_id)
            self._free(report.prompt_id)
        if not chosen:
            return ()
        extra = self._sieve.hand_over(wanted=along and not all(silent(report) for report in chosen))
        self._ordered |= extra
        self._along = set(extra)
        return (*chosen, *extra.values())

    def _batch(self, at: float) -> tuple[GroupReport, ...]:
        if len(self._ready) < self._rules.batch:
            return ()
        running = {running.lease.id: running.granted for running in self._running.all()}
        chosen = choose(self._ready.values(), self._rules.batch)
        return () if worth_waiting(chosen, self._ready, running, at, self._typical_seconds) else chosen

    def _fixed_batch(self, places: FixedPlaces, step: int) -> tuple[GroupReport, ...]:
        ready = {self._places[lease]: report for lease, report in self._ready.items()}
        return tuple(ready[place] for place in places.batch_of(step, ready))

    def train(self) -> tuple[int, ...]:
        """Ends the ordered leases as trained; returns them."""
        leases = tuple(self._ordered)
        self._ended["trained"] += len(leases)
        self._consumed += len(leases) - len(self._along)
        for lease in leases:
            self._places.pop(lease, None)
        self._ordered.clear()
        self._along.clear()
        self._sieve.forget_before(self._consumed // self._rules.batch)
        return leases

    def give_up(self, missing: Iterable[int]) -> None:
        """Takes the order back: `missing` groups are lost, the others ready again."""
        lost = [
            (self._ordered.pop(lease).prompt_id, self._places.pop(lease, 0))
            for lease in missing
            if lease in self._ordered
        ]
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

    def state(self) -> BookState:
        """All it knows but the prompts' order."""
        return BookState(
            start=self._start,
            counts=self.counts(),
            number=self._number,
            consumed=self._consumed,
            typical_seconds=self._typical_seconds,
            running=self._running.state(),
            ready=tuple(self._ready.values()),
            ordered=tuple(self._ordered.values()),
            along=tuple(sorted(self._along)),
            sieve=self._sieve.state(),
            next_place=self._fixed.next if self._fixed else 0,
            again=tuple(self._fixed.again) if self._fixed else (),
            places=tuple(self._places.items()),
        )

    def restore(self, state: BookState, term: int) -> None:
        """Goes on from a state of the same branch."""
        self._term, self._number = term, state.number
        self._take_counts(state.counts)
        self._filtered = state.counts.filtered - state.sieve.count
        self._consumed, self._typical_seconds = state.consumed, state.typical_seconds
        self._running.restore(state.running)
        self._busy.update(one.lease.prompt_id for one in state.running)
        self._ready = {report.lease_id: report for report in state.ready}
        self._busy.update(report.prompt_id for report in state.ready)
        self._ordered = {report.lease_id: report for report in state.ordered}
        self._along = set(state.along)
        self._sieve.restore(state.sieve)
        self._places = dict(state.places)
        if self._fixed is not None:
            self._fixed.next, self._fixed.again = state.next_place, list(state.again)

    def begin_anew(self, state: BookState) -> None:
        """A later branch: what was under way in an earlier one's state counts as rewound, its prompts come first."""
        before = state.counts
        self._number = state.number
        self._take_counts(before)
        self._filtered = before.filtered
        self._rewound += before.running + before.ready + before.ordered
        running = (one.lease.prompt_id for one in state.running)
        waiting = (report.prompt_id for report in (*state.ordered, *state.ready, *state.sieve.waiting))
        self._prompts.unbind((*waiting, *running))

    def _take_counts(self, counts: LeaseCounts) -> None:
        self._granted, self._rewound = counts.granted, counts.rewound
        self._ended = {outcome: getattr(counts, outcome) for outcome in self._ended}

    def _end(self, ended: list[tuple[int, int]], outcome: Outcome) -> None:
        """Ends leases of these prompts and places without their groups."""
        for prompt, place in ended:
            if outcome != "lost":  # an ordered group's prompt is free already
                self._free(prompt)
            if self._fixed is not None:
                self._fixed.give_back(place)
            else:
                self._prompts.put_back((prompt,))
        self._ended[outcome] += len(ended)
        if ended:
            prompts = [prompt for prompt, _ in ended]
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
