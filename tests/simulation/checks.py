"""The promises, checked after every event of the controller and at every step of the learner."""

from collections import Counter
from typing import NamedTuple

from entrostat.controller.desk import Desk
from entrostat.controller.difficulty import DifficultyTable
from entrostat.controller.events import Command, Event, Order, Pulsed, Reply, Restarted, Rewound
from entrostat.controller.journal import Frames, Storage, check_first, name_of
from entrostat.controller.prompts import PromptOrder
from entrostat.controller.replay import replay
from entrostat.controller.snapshot import BookState, ControllerState
from entrostat.controller.state import Controller
from entrostat.controller.turns import WeightedTasks
from entrostat.protocol import wire
from entrostat.protocol.arrays import Int32
from entrostat.protocol.entropy_settings import WeightSettings
from entrostat.protocol.messages import Group, Lease, LeaseCounts, Pulse, TrainOrder
from tests.made_messages import sums_up
from tests.simulation.scenario import Scenario
from tests.simulation.world import Violation, World


class Granted(NamedTuple):
    """A lease, and who got it."""

    lease: Lease
    slot: int
    incarnation: int


class Trained(NamedTuple):
    """A step of the surviving history."""

    leases: tuple[int, ...]
    prompts: tuple[int, ...]
    digest: bytes


class Checks:
    """What must hold, and what is remembered to see whether it does.

    Args:
        reference: digests of the undisturbed run, step by step; none where the run is not deterministic.
    """

    def __init__(self, world: World, scenario: Scenario, reference: list[bytes] | None) -> None:
        self._world, self._scenario, self._reference = world, scenario, reference
        self.history: list[Trained] = []  # index: the step it started from
        self.oldest_trained: Counter[int] = Counter()  # ages of groups when they were trained
        self.events = 0
        self._granted: dict[int, Granted] = {}
        self._heard: dict[int, int] = {}  # slot → newest incarnation
        self._ended: set[int] = set()
        self._before: ControllerState | None = None
        self._owed: Counter[int] = Counter()  # see `_prompts`
        self._order = PromptOrder(1, 0, shuffle=False)

    # ── of the driver and the learner ────────────────────────────────────────────────────────────────────────────────

    def branch_began(self, step: int) -> None:
        """A checkpoint was restored: what came after it is void."""
        del self.history[step:]
        self._before = None
        self._heard.clear()
        self._ended.clear()

    def trained(self, order: TrainOrder, groups: list[Group], digest: bytes) -> None:
        """The learner changes the policy."""
        step, branch = order.version.step, order.version.branch
        self._must(step == len(self.history), f"order {order.version} was trained, {len(self.history)} steps were made")
        leases = tuple(group.rollout.lease.id for group in groups)
        again = {lease for done in self.history for lease in done.leases} & set(leases)
        self._must(len(set(leases)) == len(leases) and not again, f"leases trained twice: {sorted(again) or leases}")
        for one, group in zip(order.groups, groups, strict=True):
            rollout = group.rollout
            age = step - rollout.started.step
            self._must(rollout.lease.id == one.lease_id, f"lease {one.lease_id}'s group is {rollout.lease.id}'s")
            self._must(
                rollout.started.branch == branch and rollout.lease.version.branch == branch,
                f"a group of version {rollout.started} was trained in branch {branch}",
            )
            self._must(0 <= age <= self._scenario.staleness, f"a group was trained {age} versions after its start")
            granted = self._granted[one.lease_id]
            self._must(
                (rollout.slot, rollout.incarnation) == granted[1:],
                f"lease {one.lease_id} of actor {granted[1:]} was sampled by {rollout.slot, rollout.incarnation}",
            )
            self.oldest_trained[age] += 1
        places = sum(one.in_policy for one in order.groups)
        self._must(places == self._scenario.batch, f"order {order.version} has {places} groups in its batch")
        if self._reference is not None:
            self._must(digest == self._reference[step], f"step {step} differs from that of an undisturbed run")
        self.history.append(Trained(leases, tuple(one.prompt_id for one in order.groups), digest))

    # ── of the controller ────────────────────────────────────────────────────────────────────────────────────────────

    def happened(self, event: Event, commands: tuple[Command, ...], controller: Controller) -> None:
        """The controller took an event in."""
        self.events += 1
        state = controller.state()
        if isinstance(event, Restarted | Rewound) or self._before is None:
            self._begin(state)
        before, now = _leases(self._before.book) if self._before else {}, _leases(state.book)
        self._adds_up(state.book)
        if isinstance(event, Pulsed):
            self._pulsed(event.pulse, commands, before, now, state)
        gone = before.keys() - now.keys()
        self._must(not (now.keys() & self._ended), f"leases live again: {sorted(now.keys() & self._ended)}")
        self._ended |= gone
        self._must(now.keys() <= self._granted.keys(), "a lease is held that was never granted")
        self._must(
            controller.version.step <= len(self.history),
            f"the controller is at {controller.version}, the learner at step {len(self.history)}",
        )
        for command in commands:
            if isinstance(command, Order):
                stray = [one.lease_id for one in command.order.groups if now.get(one.lease_id) != "ordered"]
                self._must(not stray, f"order {command.order.version} holds leases that are not ordered: {stray}")
        if self._scenario.deterministic:
            self._places(state)
        else:
            self._prompts(state, isinstance(event, Restarted | Rewound))
        self._before = state

    def replays(self, desk: Desk, storage: Storage) -> None:
        """The last segment of the journal leads to the same state."""
        branch, segment = storage.segments()[-1]
        frames = Frames(storage.read(branch, segment), name_of(branch, segment))
        records = iter(frames)
        opened = check_first(next(records)[1], frames.name)
        one = self._scenario
        again = Controller(one.stations(), one.levels, opened.state, task_prompts=one.task_prompts)
        for _ in replay(again, records, frames.name):
            pass
        self._must(
            wire.encode(again.state()).tobytes() == wire.encode(desk.controller.state()).tobytes(),
            "the journal leads to another state than the controller's",
        )

    def _begin(self, state: ControllerState) -> None:
        """Another process keeps the book, or another branch: what it does not know did not happen."""
        self._before = state
        self._ended -= _leases(state.book).keys()
        self._heard = {actor.slot: actor.incarnation for actor in state.actors}
        one = self._scenario
        tasks = WeightedTasks(one.task_prompts, one.weights) if one.weights else None
        self._order = PromptOrder(one.prompts, one.seed, shuffle=True, levels=_levels(one), tasks=tasks)

    def _adds_up(self, book: BookState) -> None:
        counts = book.counts
        self._must(sums_up(counts), f"the leases' counts don't add up: {counts}")
        ids = [one.lease.id for one in book.running]
        ids += [report.lease_id for report in (*book.ready, *book.ordered, *book.sieve.waiting)]
        self._must(len(set(ids)) == len(ids), f"a lease is in two places: {sorted(ids)}")
        held = (len(book.running), len(book.ready) + len(book.sieve.waiting), len(book.ordered))
        self._must(held == (counts.running, counts.ready, counts.ordered), f"{held} leases, counted as {counts}")

    def _pulsed(
        self,
        pulse: Pulse,
        commands: tuple[Command, ...],
        before: dict[int, str],
        now: dict[int, str],
        state: ControllerState,
    ) -> None:
        old = pulse.version.branch < state.version.branch or pulse.incarnation < self._heard.get(pulse.slot, 0)
        if not old:
            self._heard[pulse.slot] = pulse.incarnation
        (reply,) = [command for command in commands if isinstance(command, Reply)]
        self._must(reply.fenced == old, f"slot {pulse.slot}#{pulse.incarnation} was fenced: {reply.fenced}")
        for lease in reply.leases:
            known = lease.id in self._granted
            self._must(not known, f"lease {lease.id} was granted twice")
            self._must(lease.version.branch == state.version.branch, f"lease {lease.id} is of version {lease.version}")
            self._granted[lease.id] = Granted(lease, pulse.slot, pulse.incarnation)
        if reply.leases and not self._scenario.deterministic:
            self._bounded(reply.leases[0].version.step, state)
        for report in pulse.reports:
            taken = before.get(report.lease_id) == "running" and now.get(report.lease_id) in ("ready", "waiting")
            if taken:
                holder = self._granted[report.lease_id][1:]
                ours = holder == (report.slot, report.incarnation) == (pulse.slot, pulse.incarnation) and not old
                self._must(ours, f"lease {report.lease_id} of {holder} was reported by {pulse.slot, pulse.incarnation}")
                self._must(report.started.branch == state.version.branch, f"a group of {report.started} was accepted")

    def _bounded(self, served: int, state: ControllerState) -> None:
        """No more is under way than can be trained before what is sampled now is too old."""
        book, batch = state.book, self._scenario.batch
        places = state.version.step * batch + min(len(book.ordered), batch) + len(book.ready) + len(book.running)
        most = (served + self._scenario.staleness + 1) * batch
        self._must(places <= most, f"{places} places are taken by leases and groups; expected at most {most}")

    def _places(self, state: ControllerState) -> None:
        """Every place of a deterministic run is trained, held, or to be granted: exactly one of these."""
        book = state.book
        held = [one.place for one in book.running] + [place for _, place in book.places] + list(book.again)
        trained = state.version.step * self._scenario.batch
        expected = list(range(trained, book.next_place))
        self._must(sorted(held) == expected, f"places {sorted(held)} are held or free; expected {expected}")

    def _prompts(self, state: ControllerState, anew: bool) -> None:
        """No prompt's turn is lost.

        Turns that are neither under way nor queued were consumed, by training or by the filter, or passed over; two
        turns of one prompt may become one, while that one is still owed.
        """
        book, position = state.book, state.position
        turns = Counter(self._order.at(place) for place in range(self._turns(state)))
        owed: Counter[int] = Counter(one.lease.prompt_id for one in book.running)
        owed.update(report.prompt_id for report in (*book.ready, *book.ordered, *book.sieve.waiting))
        owed.update(position.returned.tolist())
        owed.update(position.held.tolist())
        spent = turns - owed
        self._must(not owed - turns, f"prompts are owed more often than they had turns: {owed - turns}")
        before = self._before
        if not anew and before is not None:
            consumed = _consumed(book.counts) - _consumed(before.book.counts)
            consumed += position.passed_over - before.position.passed_over
            self._must(self._scenario.floor < 1.0 or not position.passed_over, "a prompt was passed over")
            newly = spent - self._owed
            self._must(not self._owed - spent, f"prompts are owed again after they were spent: {self._owed - spent}")
            gone = sum(count for prompt, count in newly.items() if not owed[prompt])
            self._must(
                gone <= consumed <= newly.total(),
                f"prompts {newly} were spent, {consumed} turns consumed or passed over",
            )
        self._owed = spent

    def _turns(self, state: ControllerState) -> int:
        return state.position.epoch * self._scenario.prompts + state.position.index

    def _must(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Violation(otherwise)


class WatchedDesk(Desk):
    """A desk whose every event is followed by the checks."""

    checks: Checks

    def apply(self, event: Event) -> tuple[Command, ...]:
        commands = super().apply(event)
        self.checks.happened(event, commands, self.controller)
        return commands

    def checkpoint(self) -> ControllerState:
        self.checks.replays(self, self._storage)  # the segment that ends here
        return super().checkpoint()


def _leases(book: BookState) -> dict[int, str]:
    """Every lease under way, and where it is."""
    held = {one.lease.id: "running" for one in book.running}
    held |= {report.lease_id: "ready" for report in book.ready}
    held |= {report.lease_id: "waiting" for report in book.sieve.waiting}
    return held | {report.lease_id: "ordered" for report in book.ordered}


def _consumed(counts: LeaseCounts) -> int:
    return counts.trained + counts.filtered


def _levels(scenario: Scenario) -> Int32:
    """`[prompts]` number of each one's level, as the controller counts them."""
    return DifficultyTable(scenario.levels, WeightSettings()).level_numbers
