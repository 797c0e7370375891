"""The state machine under random interleavings of every kind of event, with duplicates, reordering and loss.

After each event: counts add up, no order holds a group that is too old or was trained, no lease ends twice, no prompt
is lost. Now and then, and at the end: the events applied again, and the state taken up by another process, lead to
the same state.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from entrostat.controller.events import (
    Event,
    Missing,
    Order,
    OrderRequested,
    Pulsed,
    Reply,
    Restarted,
    Rewound,
    Scaled,
    Snapshotted,
    StepReported,
    Ticked,
)
from entrostat.controller.snapshot import ControllerState
from entrostat.controller.state import Controller
from entrostat.protocol.entropy_settings import FixedLaw
from entrostat.protocol.messages import GroupReport, GroupsMissing, Lease, PolicyVersion, Pulse, StepReport, TrainOrder
from tests.made_messages import frame, group_of, owed, published, run_of, step_of, sums_up

SLOTS = st.integers(0, 2)
SMALL = st.integers(0, 6)


class Machine(RuleBasedStateMachine):
    """Three slots and a learner that know only what they were told, some of it late, twice or never."""

    @initialize(
        batch=st.integers(1, 3),
        staleness=st.integers(0, 2),
        refill=st.sampled_from([0.0, 2.0]),
        deterministic=st.booleans(),
    )
    def begin(self, batch: int, staleness: int, refill: float, deterministic: bool) -> None:
        self.batch, self.staleness = batch, min(staleness, 1) if deterministic else staleness
        self.settings = run_of(
            batch=batch,
            staleness=self.staleness,
            law=FixedLaw(coefficient=0.1),
            refill=0.0 if deterministic else refill,
            deterministic=deterministic,
            checkpoint_every=3,
        )
        self.deterministic = deterministic
        self.levels = ["easy", "hard"] * 5
        self.controller = Controller(self.settings, self.levels)
        self.events: list[Event] = []
        self.at = 0.0
        self.lives = [1, 1, 1]
        self.numbers = [0, 0, 0]
        self.serves = [PolicyVersion(branch=0, step=0)] * 3
        self.held: list[list[tuple[Lease, PolicyVersion]]] = [[], [], []]  # with the version each was begun under
        self.finished: list[tuple[int, GroupReport]] = []  # every report ever made, by slot
        self.old_pulses: list[Pulse] = []
        self.old_steps: list[StepReport] = []
        self.order: TrainOrder | None = None
        self.started: dict[int, PolicyVersion] = {}
        self.trained: set[int] = set()
        self.states: list[ControllerState] = []
        self.untrained: dict[int, int] = {}  # prompts by their last lease, unless that was trained
        self.term = 0

    def apply(self, event: Event) -> tuple[Any, ...]:
        self.events.append(event)
        return self.controller.apply(event)

    def send(self, pulse: Pulse) -> Reply:
        (reply,) = [one for one in self.apply(Pulsed(pulse=pulse, at=self.at)) if isinstance(one, Reply)]
        return reply

    def pulse_of(self, slot: int, room: int, reports: tuple[GroupReport, ...], returned: tuple[int, ...]) -> Pulse:
        self.numbers[slot] += 1
        return Pulse(
            slot=slot,
            incarnation=self.lives[slot],
            version=self.serves[slot],
            room=room,
            running=tuple(lease.id for lease, _ in self.held[slot]),
            reports=reports,
            returned=returned,
            number=self.numbers[slot],
        )

    @rule(slot=SLOTS, room=SMALL, finished=SMALL, back=st.sampled_from([0, 0, 0, 1]), answered=st.booleans())
    def pulse(self, slot: int, room: int, finished: int, back: int, answered: bool) -> None:
        done, self.held[slot] = self.held[slot][:finished], self.held[slot][finished:]
        reports = tuple(
            group_of(lease, slot=slot, incarnation=self.lives[slot], started=at.step, correct=lease.id % 5)
            for lease, at in done
        )
        self.started |= {lease.id: at for lease, at in done}
        self.finished += [(slot, report) for report in reports]
        returned = tuple(lease.id for lease, _ in self.held[slot][:back])
        pulse = self.pulse_of(slot, room, reports, returned)
        self.held[slot] = self.held[slot][back:]
        self.old_pulses.append(pulse)
        reply = self.send(pulse)
        assert len(reply.leases) <= room
        self.granted(reply)
        if answered and not reply.fenced:
            self.held[slot] = [one for one in self.held[slot] if one[0].id not in reply.ended]
            self.held[slot] += [(lease, self.serves[slot]) for lease in reply.leases]
            if reply.offer is not None and not self.held[slot]:
                self.serves[slot] = reply.offer

    def granted(self, reply: Reply) -> None:
        for lease in reply.leases:
            assert lease.version.step >= self.controller.version.step - self.staleness
            self.untrained[lease.prompt_id] = lease.id
        if reply.leases and not self.deterministic:
            # Whoever got leases can have none that an order later than `max_staleness` versions on would consume.
            counts, book = self.controller.counts, self.controller.state().book
            waiting = len(book.sieve.waiting)
            places = book.consumed + counts.running + counts.ready - waiting + counts.ordered - len(book.along)
            newest = max(lease.version.step for lease in reply.leases)
            assert places <= (newest - book.start + self.staleness + 1) * self.batch

    @rule(upto=st.integers(1, 4), hold=st.integers(0, 2))
    def good_times(self, upto: int, hold: int) -> None:
        """Nothing goes wrong for a while, but that the last `hold` leases take long, and the last order may wait."""
        for turn in range(upto):
            for slot in range(3):
                self.pulse(slot, 4, 0, 0, True)
                self.pulse(slot, 0, max(0, len(self.held[slot]) - (hold if slot == 0 else 0)), 0, True)
            self.ask_for_an_order()
            if self.order is not None and turn < upto - 1:
                self.train()

    @rule(number=st.integers(0, 50))
    @precondition(lambda self: self.old_pulses)
    def pulse_again(self, number: int) -> None:
        """The network delivers an old message, or one twice; nobody waits for the answer."""
        self.granted(self.send(self.old_pulses[-1 - number % len(self.old_pulses)]))

    @rule(number=st.integers(0, 50))
    @precondition(lambda self: self.finished)
    def report_again(self, number: int) -> None:
        slot, report = self.finished[-1 - number % len(self.finished)]
        pulse = self.pulse_of(slot, 0, (report,), ())
        self.held[slot] = [one for one in self.held[slot] if one[0].id not in self.send(pulse).ended]

    @rule(slot=SLOTS)
    def reborn(self, slot: int) -> None:
        self.lives[slot] += 1
        self.numbers[slot] = 0
        self.held[slot] = []
        self.serves[slot] = self.controller.version

    @rule(slot=SLOTS)
    def forget(self, slot: int) -> None:
        self.held[slot] = self.held[slot][1:]

    @rule(seconds=SMALL)
    def tick(self, seconds: int) -> None:
        self.at += seconds
        self.apply(Ticked(at=self.at))

    @rule()
    def ask_for_an_order(self) -> None:
        orders = [one.order for one in self.apply(OrderRequested(at=self.at)) if isinstance(one, Order)]
        if not orders:
            return
        (self.order,) = orders
        leases = [group.lease_id for group in self.order.groups]
        assert len(set(leases)) == len(leases)
        assert not self.trained.intersection(leases)
        for lease in leases:
            started = self.started[lease]
            assert started.branch == self.order.version.branch
            assert 0 <= self.order.version.step - started.step <= self.staleness

    @rule()
    @precondition(lambda self: self.order is not None)
    def train(self) -> None:
        assert self.order is not None
        report = step_of(self.order)
        self.old_steps.append(report)
        before = self.controller.version
        self.apply(StepReported(report=report, at=self.at))
        if self.controller.version != before:
            done = {group.lease_id for group in self.order.groups}
            self.trained |= done
            self.untrained = {prompt: lease for prompt, lease in self.untrained.items() if lease not in done}
        self.order = None
        self.apply(published(self.controller.version.step, self.controller.version.branch))

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: self.old_steps)
    def step_again(self, number: int) -> None:
        before = self.controller.counts
        self.apply(StepReported(report=self.old_steps[-1 - number % len(self.old_steps)], at=self.at))
        assert self.controller.counts == before

    @rule(gone=SMALL)
    @precondition(lambda self: self.order is not None)
    def lose(self, gone: int) -> None:
        assert self.order is not None
        lost = tuple(group.lease_id for group in self.order.groups[:gone])
        self.apply(Missing(missing=GroupsMissing(version=self.order.version, lease_ids=lost), at=self.at))
        self.order = None

    @rule(step=SMALL)
    def publish_late(self, step: int) -> None:
        at = self.controller.version
        self.apply(published(min(step, at.step), at.branch))

    @rule(actors=st.integers(1, 9))
    def scale(self, actors: int) -> None:
        self.apply(Scaled(actors=actors))
        assert self.controller.wanted_actors == actors

    @rule()
    def snapshot(self) -> None:
        self.apply(Snapshotted())
        self.states.append(self.controller.state())

    @rule()
    def restart(self) -> None:
        """Another process: the state is all it has."""
        self.controller = Controller(self.settings, self.levels, self.taken_up())
        self.term += 1
        self.apply(Restarted(term=self.term, at=self.at))

    def taken_up(self) -> ControllerState:
        state = self.controller.state()
        assert frame(Controller(self.settings, self.levels, state)) == frame(self.controller)
        return state

    @rule(number=SMALL)
    @precondition(lambda self: self.states)
    def rewind(self, number: int) -> None:
        state = self.states[-1 - number % len(self.states)]
        branch = self.controller.version.branch + 1
        self.apply(Rewound(branch=branch, step=state.version.step, state=state, at=self.at))
        at = self.controller.version
        self.term, self.order, self.trained, self.untrained = 0, None, set(), {}
        self.lives, self.numbers = [life + 1 for life in self.lives], [0, 0, 0]
        self.held, self.serves = [[], [], []], [at, at, at]

    @invariant()
    def counts_add_up(self) -> None:
        assert sums_up(self.controller.counts)

    @invariant()
    def no_prompt_is_lost(self) -> None:
        if self.deterministic:
            return  # its prompts follow from the number of trained groups alone
        filtered = self.controller.state().book.sieve
        waiting = {report.lease_id for report in filtered.waiting}
        still = owed(self.controller, self.settings, self.levels)
        for prompt, lease in self.untrained.items():
            consumed = lease in self.started and lease % 5 in (0, 4) and lease not in waiting
            assert prompt in still or consumed

    def teardown(self) -> None:
        if not hasattr(self, "controller"):
            return
        again = Controller(self.settings, self.levels)
        for event in self.events:
            again.apply(event)
        assert frame(again) == frame(self.controller)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestMachine = Machine.TestCase
