"""The controller under random actions: whatever happens, every promise is checked after each of them."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.controller.events import Missing, StepReported, Ticked
from entrostat.protocol.entropy_settings import FixedLaw
from entrostat.protocol.messages import GroupReport, GroupsMissing, Lease, TrainOrder
from tests.made_messages import LEASE_SECONDS, frame, group_of, owed, published, run_of, scene, step_of, sums_up

# What makes progress comes more often, so that orders, stragglers and losses are all met.
DEEDS = ["pulse", "pulse", *["finish"] * 4, "round", "order", "train", "publish", "load"]
MISHAPS = ["repeat", "forget", "tick", *["lose"] * 4, "reborn"]


def actions_of(seed: int) -> list[tuple[str, int, int]]:
    """An even mix of 400 actions; lists drawn one by one are too short and too alike to get far."""
    draw = random.Random(seed)
    return [(draw.choice(DEEDS * 4 + MISHAPS), draw.randint(0, 1), draw.randint(0, 6)) for _ in range(400)]


ENDS = ("trained", "filtered", "expired", "stale", "lost")
SEEDS = st.integers(0, 2**32)


class Chaos:
    """Two actors, a learner and a network that do whatever a list of actions says; every promise checked each time."""

    def __init__(self, *, batch: int, staleness: int, prompts: int, refill: float = 0.0) -> None:
        self.batch, self.staleness, self.prompts, self.refill = batch, staleness, prompts, refill
        self.settings = run_of(batch=batch, staleness=staleness, law=FixedLaw(coefficient=0.1), refill=refill)
        self.levels = ["easy", "hard"] * (prompts // 2)
        self.s = scene(prompts, batch=batch, staleness=staleness, law=FixedLaw(coefficient=0.1), refill=refill)
        self.lives = [1, 1]
        self.serves = [0, 0]
        self.newest = 0
        self.running: list[list[tuple[Lease, int]]] = [[], []]  # with the step each was started at
        self.reported: list[tuple[Lease, int, int, int]] = []  # lease, slot, life, started
        self.granted: set[int] = set()
        self.order: TrainOrder | None = None
        self.started: dict[int, int] = {}
        self.trained: Counter[int] = Counter()
        self.trained_leases: set[int] = set()
        self.silent: set[int] = set()  # leases whose groups have no advantage signal
        self.untrained: dict[int, int] = {}  # prompts by their last lease, unless that was trained

    def group(self, lease: Lease, *, slot: int, life: int, started: int) -> GroupReport:
        """The group of a lease: with a filter two in five have no signal, one of them all wrong."""
        correct = (0, 4, 1, 2, 3)[lease.id % 5] if self.refill else 2
        if correct in (0, 4):
            self.silent.add(lease.id)
        return group_of(lease, slot=slot, incarnation=life, started=started, correct=correct)

    def do(self, action: str, slot: int, number: int) -> None:
        s = self.s
        if action == "pulse":
            self.pulse(slot, room=number)
        elif action == "finish" and len(self.running[slot]) > (number > 0):
            # Mostly the newest and not the last, so that some lease grows old.
            lease, started = self.running[slot].pop(0 if number == 0 else -1)
            self.started[lease.id] = started
            self.reported.append((lease, slot, self.lives[slot], started))
            self.pulse(slot, reports=(self.group(lease, slot=slot, life=self.lives[slot], started=started),))
        elif action == "repeat" and self.reported:
            lease, other, life, started = self.reported[number % len(self.reported)]
            self.pulse(other, reports=(self.group(lease, slot=other, life=life, started=started),), life=life)
        elif action == "forget":
            self.running[slot].clear()
        elif action == "tick":
            s.at += number / 2
            s.apply(Ticked(at=s.at))
        elif action == "order":
            self.take_order()
        elif action == "round":
            for part in ("order", "train", "publish", "load"):
                self.do(part, slot, number)
        elif action == "train" and self.order is not None:
            s.apply(StepReported(report=step_of(self.order), at=s.at))
            self.trained.update(group.prompt_id for group in self.order.groups)
            done = {group.lease_id for group in self.order.groups}
            assert not done & self.trained_leases
            self.trained_leases |= done
            self.untrained = {prompt: lease for prompt, lease in self.untrained.items() if lease not in done}
            self.order = None
        elif action == "lose" and self.order is not None:
            gone = tuple(group.lease_id for group in self.order.groups[: number % (self.batch + 1)])
            s.apply(Missing(missing=GroupsMissing(version=self.order.version, lease_ids=gone), at=s.at))
            self.order = None
        elif action == "publish":
            self.newest = s.controller.version.step
            s.apply(published(self.newest))
        elif action == "load":
            self.serves[slot] = self.newest
        elif action == "reborn":
            self.lives[slot] += 1
            self.running[slot].clear()
        self.check()

    def pulse(
        self, slot: int, *, room: int = 0, reports: tuple[GroupReport, ...] = (), life: int | None = None
    ) -> None:
        mine = self.running[slot] if life in (None, self.lives[slot]) else []
        reply = self.s.pulse(
            slot=slot,
            incarnation=self.lives[slot] if life is None else life,
            serves=self.serves[slot],
            room=room,
            running=tuple(lease.id for lease, _ in mine),
            reports=reports,
        )
        if life is not None and life < self.lives[slot]:
            # A slot's older life may speak before the newer one has: then it is not fenced yet, and gets no leases.
            assert reply.leases == ()
            return
        assert len(reply.leases) <= room
        self.running[slot] = [(lease, at) for lease, at in self.running[slot] if lease.id not in reply.ended]
        for lease in reply.leases:
            assert lease.id not in self.granted
            self.granted.add(lease.id)
            self.untrained[lease.prompt_id] = lease.id
            self.running[slot].append((lease, self.serves[slot]))
        if reply.leases:
            self.check_places(self.serves[slot])

    def check_places(self, serves: int) -> None:
        """Whoever serves `serves` was granted no place beyond its bound; all-wrong groups that wait hold none."""
        counts = self.s.controller.counts
        waiting = self.batch // 2 if self.refill else 0
        ordered = self.batch if counts.ordered else 0
        places = self.s.controller.version.step * self.batch + ordered + counts.ready - waiting + counts.running
        assert places <= (serves + self.staleness + 1) * self.batch

    def take_order(self) -> None:
        order = self.s.order()
        if order is None:
            return
        assert self.order is None or order is self.order
        self.order = order
        assert len({group.lease_id for group in order.groups}) == len(order.groups)
        assert sum(group.in_policy for group in order.groups) == self.batch
        along = {group.lease_id for group in order.groups if not group.in_policy}
        assert len(along) <= self.batch // 2
        assert along <= self.silent
        for group in order.groups:
            assert 0 <= order.version.step - self.started[group.lease_id] <= self.staleness
            assert group.lease_id not in self.s.discarded

    def check(self) -> None:
        assert sums_up(self.s.controller.counts)
        assert self.s.controller.counts.granted == len(self.granted)
        assert self.s.controller.counts.trained == sum(self.trained.values())
        # No prompt is lost, neither now nor over a restart. What was filtered was discarded, and is consumed.
        filtered = self.silent & set(self.s.discarded)
        untrained = {prompt for prompt, lease in self.untrained.items() if lease not in filtered}
        assert untrained <= owed(self.s.controller, self.settings, self.levels)


@given(SEEDS, st.integers(1, 4), st.integers(0, 2), st.sampled_from([4, 6, 20]), st.sampled_from([0.0, 1.5, 3.0]))
@settings(max_examples=80)
def test_whatever_happens_leases_add_up_staleness_is_bounded_and_no_prompt_is_lost(
    seed: int, batch: int, staleness: int, prompts: int, refill: float
) -> None:
    chaos = Chaos(batch=batch, staleness=staleness, prompts=prompts, refill=refill)
    for action in actions_of(seed):
        chaos.do(*action)
    # Then all goes well, and every prompt is trained before long.
    chaos.trained.clear()
    already = chaos.s.controller.counts.trained
    for _ in range(4 * prompts // batch + 8):
        for slot in (0, 1):
            chaos.pulse(slot, room=50)
            for lease, started in list(chaos.running[slot]):
                chaos.started[lease.id] = started  # its group has a signal, whatever its number
                chaos.pulse(
                    slot,
                    reports=(group_of(lease, slot=slot, incarnation=chaos.lives[slot], started=started),),
                )
            chaos.running[slot].clear()
        chaos.take_order()
        if chaos.order is not None:
            chaos.s.apply(StepReported(report=step_of(chaos.order), at=chaos.s.at))
            chaos.trained.update(group.prompt_id for group in chaos.order.groups)
            chaos.order = None
        chaos.newest = chaos.s.controller.version.step
        chaos.s.apply(published(chaos.newest))
        chaos.serves = [chaos.newest, chaos.newest]
        chaos.s.at += LEASE_SECONDS / 2
        chaos.s.apply(Ticked(at=chaos.s.at))
    assert set(chaos.trained) == set(range(prompts))
    assert chaos.s.controller.counts.trained == already + sum(chaos.trained.values())


def test_the_random_actions_meet_every_way_a_lease_can_end() -> None:
    met: Counter[str] = Counter()
    along = 0
    for seed in range(80):
        chaos = Chaos(batch=1 + seed % 3, staleness=seed // 2 % 2, prompts=20, refill=3.0 * (seed % 2))
        for action in actions_of(seed):
            chaos.do(*action)
        counts = chaos.s.controller.counts
        met.update(end for end in ENDS if getattr(counts, end))
        along += counts.trained - chaos.s.controller.version.step * chaos.batch
    assert all(met[end] >= 4 for end in ENDS), met
    assert along >= 4


@given(SEEDS)
@settings(max_examples=15)
def test_the_same_events_make_the_same_state(seed: int) -> None:
    twins = [Chaos(batch=2, staleness=1, prompts=6, refill=2.0) for _ in range(2)]
    for action in actions_of(seed):
        for twin in twins:
            twin.do(*action)
    first, second = (frame(twin.s.controller) for twin in twins)
    assert first == second
