"""A thousand actors and ten thousand steps through the controller, in minutes: only the actors are models.

`python -m tests.simulation.scale` tells of one size; `tests.simulation.scale_figure` of all of them.
"""

import argparse
import heapq
import json
import logging
import random
import resource
import sys
import time
from pathlib import Path

import msgspec
from msgspec.structs import replace

from entrostat.controller.events import (
    Command,
    Event,
    Order,
    OrderRequested,
    Published,
    Pulsed,
    Reply,
    StepReported,
    Ticked,
)
from entrostat.controller.state import Controller
from entrostat.protocol.messages import GroupReport, Lease, PolicyVersion, Pulse, TrainOrder
from tests.made_messages import group_of, run_of, step_of, sums_up
from tests.simulation.world import Violation

LEASE_SECONDS = 60.0
RENEWAL_SECONDS = 15.0
MEDIAN_SECONDS = 10.0
TAIL = 1.3  # Pareto's exponent: one group in a hundred takes 35 times the shortest time
LONGEST_SECONDS = 600.0
FAILING = 0.01  # of leases: their actor dies
SAMPLES = 4
ASK_SECONDS = 4.0  # mean, between two requests of an actor that got no lease
TICK_SECONDS = 0.5
CHECKED_EVERY = 997  # events
EVENTS_OF_A_STEP = 4000  # at most, on average: beyond that the run stands still


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a simulated run is."""

    actors: int
    prompts: int
    steps: int
    batch: int = 32
    staleness: int = 64
    seed: int = 1


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What it took."""

    actors: int
    prompts: int
    steps: int
    groups: int  # trained
    events: int
    virtual_hours: float
    wall_seconds: float
    controller_seconds: float  # in `apply` alone
    reports_per_second: float  # of the controller's time, everything that belongs to a report with it
    begin_seconds: float  # until the controller is made
    peak_mb: float  # the process's peak beyond what it had before, 10⁶ bytes; the list of levels given to it counts too
    held_mb: float  # the same at the end
    ends: dict[str, int]


class Fleet:
    """Actors that sample one group at a time, each as long as it happens to take, and a learner that never waits."""

    def __init__(self, size: Size) -> None:
        self.size = size
        settings = run_of(batch=size.batch, staleness=size.staleness, lease_seconds=LEASE_SECONDS)
        rollout = replace(settings.rollout, actors=size.actors, samples_per_prompt=SAMPLES)
        began = time.perf_counter()
        self.controller = Controller(replace(settings, total_steps=size.steps, rollout=rollout), ["a"] * size.prompts)
        self.begin_seconds = time.perf_counter() - began
        self.controller_seconds = 0.0
        self.events = 0
        self.now = 0.0
        self.reports = 0
        self.version = PolicyVersion(branch=0, step=0)
        self._random = random.Random(size.seed)
        self._lives = [1] * size.actors
        self._pulses = [0] * size.actors
        self._leases: list[tuple[Lease, PolicyVersion, float] | None] = [None] * size.actors
        self._started: dict[int, int] = {}
        self._order: TrainOrder | None = None
        self._turns = [0] * size.actors  # counts up with everything that makes an actor's plans void
        self._heap: list[tuple[float, int, str, int, int]] = []
        self._serial = 0

    def run(self) -> None:
        """Trains the last step."""
        self._apply(Published(version=self.version, checksum=0))
        self._at(0.0, "tick", 0)
        for slot in range(self.size.actors):
            self._plan(self._random.random(), "ask", slot)
        most = EVENTS_OF_A_STEP * self.size.steps + 1000 * self.size.actors
        while self.version.step < self.size.steps:
            self.now, _, what, slot, turn = heapq.heappop(self._heap)
            if what == "tick":
                self._apply(Ticked(at=self.now))
                self._at(TICK_SECONDS, "tick", 0)
            elif what == "learn":
                self._learn()
            elif turn == self._turns[slot]:  # else the plan was given up
                self._act(what, slot)
            if self.events % CHECKED_EVERY == 0:
                self.check()
            if self.events > most:
                raise Violation(f"step {self.version.step} of {self.size.steps} after {self.events:,} events")
        self.check()

    def check(self) -> None:
        """Every lease is under way or ended one way, and no more are granted than the bound on staleness allows."""
        counts = self.controller.counts
        places = counts.trained + counts.ordered + counts.ready + counts.running
        if not sums_up(counts):
            raise Violation(f"the leases' counts don't add up: {counts}")
        if places > (self.version.step + self.size.staleness + 1) * self.size.batch:
            raise Violation(f"{places} places are taken at step {self.version.step}: {counts}")

    def _act(self, what: str, slot: int) -> None:
        held = self._leases[slot]
        if what == "ask":
            self._pulse(slot, room=1)
        elif what == "renew":
            self._pulse(slot, room=0)
        elif what == "done" and held is not None:
            lease, serves, _ = held
            self._leases[slot] = None
            self.reports += 1
            life, correct = self._lives[slot], lease.id % (SAMPLES + 1)
            report = group_of(lease, slot=slot, incarnation=life, started=serves.step, correct=correct)
            self._pulse(slot, room=1, reports=(report,))
        elif what == "dies":
            self._leases[slot] = None
            self._lives[slot] += 1
            self._pulses[slot] = 0
            self._plan(self._random.expovariate(0.05), "ask", slot)

    def _pulse(self, slot: int, *, room: int, reports: tuple[GroupReport, ...] = ()) -> None:
        held = self._leases[slot]
        self._pulses[slot] += 1
        pulse = Pulse(
            slot=slot,
            incarnation=self._lives[slot],
            number=self._pulses[slot],
            version=self.version,
            room=room,
            running=() if held is None else (held[0].id,),
            reports=reports,
        )
        reply = next(one for one in self._apply(Pulsed(pulse=pulse, at=self.now)) if isinstance(one, Reply))
        if held is not None and reply.ended:
            self._leases[slot] = held = None
        for lease in reply.leases:
            self._begin(slot, lease)
        self._go_on(slot)
        if reports:
            self._ask_order()

    def _go_on(self, slot: int) -> None:
        """Plans what the actor does next: its lease's end, a renewal before that, or another request."""
        held = self._leases[slot]
        if held is None:
            self._plan(ASK_SECONDS * (0.5 + self._random.random()), "ask", slot)
        elif held[2] - self.now > RENEWAL_SECONDS:
            self._plan(RENEWAL_SECONDS, "renew", slot)
        else:
            fails = self._random.random() < FAILING
            self._plan(held[2] - self.now, "dies" if fails else "done", slot)

    def _begin(self, slot: int, lease: Lease) -> None:
        seconds = min(MEDIAN_SECONDS * 2.0 ** (-1.0 / TAIL) * self._random.paretovariate(TAIL), LONGEST_SECONDS)
        self._leases[slot] = (lease, self.version, self.now + seconds)
        self._started[lease.id] = self.version.step

    def _ask_order(self) -> None:
        """The learner waits: every change may make an order."""
        if self._order is None:
            orders = [one.order for one in self._apply(OrderRequested(at=self.now)) if isinstance(one, Order)]
            if orders:
                self._order = orders[0]
                self._at(0.1, "learn", 0)

    def _learn(self) -> None:
        order = self._order
        assert order is not None
        for group in order.groups:
            age = order.version.step - self._started.pop(group.lease_id)  # missing where it is trained twice
            if not 0 <= age <= self.size.staleness:
                raise Violation(f"lease {group.lease_id} was trained {age} versions after its start")
        self._apply(StepReported(report=step_of(order), at=self.now))
        self.version = PolicyVersion(branch=0, step=order.version.step + 1)
        self._apply(Published(version=self.version, checksum=0))
        self._order = None
        self._ask_order()

    def _apply(self, event: Event) -> tuple[Command, ...]:
        self.events += 1
        began = time.perf_counter()
        commands = self.controller.apply(event)
        self.controller_seconds += time.perf_counter() - began
        return commands

    def _plan(self, delay: float, what: str, slot: int) -> None:
        self._turns[slot] += 1
        self._at(delay, what, slot)

    def _at(self, delay: float, what: str, slot: int) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay, self._serial, what, slot, self._turns[slot]))


def measure(size: Size) -> Measured:
    """Runs it."""
    before, began = _held_mb(), time.perf_counter()
    fleet = Fleet(size)
    fleet.run()
    counts = fleet.controller.counts
    return Measured(
        actors=size.actors,
        prompts=size.prompts,
        steps=size.steps,
        groups=counts.trained,
        events=fleet.events,
        virtual_hours=fleet.now / 3600.0,
        wall_seconds=time.perf_counter() - began,
        controller_seconds=fleet.controller_seconds,
        reports_per_second=fleet.reports / fleet.controller_seconds,
        begin_seconds=fleet.begin_seconds,
        peak_mb=_peak_mb() - before,
        held_mb=_held_mb() - before,
        ends=msgspec.structs.asdict(counts),
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _held_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> int:
    """One size, told as JSON: each is measured in a process of its own, because a peak of memory never falls."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.scale", description=__doc__)
    parser.add_argument("--actors", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--to", type=Path, help="a file for the JSON")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # a line for each lease that ends badly
    found = measure(Size(actors=options.actors, prompts=options.prompts, steps=options.steps))
    text = json.dumps(msgspec.to_builtins(found), indent=1)
    if options.to is not None:
        options.to.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
