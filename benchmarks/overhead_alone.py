"""Parts of the control plane, each alone in a process: the state machine, a group's decoding, ten million prompts.

python -m benchmarks.overhead_alone REQUEST.json RESULT.json
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
from msgspec.structs import replace

from benchmarks.overhead_stations import TOKENS, made_samples
from entrostat.controller.desk import Desk
from entrostat.controller.events import Command, Event, Order, OrderRequested, Published, Pulsed, Reply, StepReported
from entrostat.controller.journal import Folder
from entrostat.controller.state import Controller
from entrostat.protocol import wire
from entrostat.protocol.messages import Group, GroupReport, Lease, Pulse, Rollout, Verdict
from entrostat.protocol.settings import Stations
from tests.made_messages import group_of, run_of, step_of, version

BATCH, SAMPLES, ACTORS = 32, 16, 8
REPORTS = 20_000
PROMPTS = 10_000
MOST_HELD = 12  # leases of an actor
STEPS_OF_DECODING = 200
LEVELS = ("3 terms", "4 terms", "5 terms")
Result = dict[str, Any]


def settings(prompts_per_batch: int = BATCH) -> Stations:
    """A run of that batch."""
    made = run_of(batch=prompts_per_batch, staleness=2)
    rollout = replace(made.rollout, samples_per_prompt=SAMPLES)
    return replace(made, rollout=rollout, total_steps=1_000_000)


class Machine(Protocol):
    """The state machine, or the desk, which writes its journal."""

    def apply(self, event: Event) -> tuple[Command, ...]:
        """Takes an event in."""
        ...


class Clock:
    """Applies events, and counts the processor time of nothing else."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.seconds = 0.0

    def apply(self, event: Event) -> tuple[Command, ...]:
        """What the controller commands."""
        began = time.process_time()
        commands = self._machine.apply(event)
        self.seconds += time.process_time() - began
        return commands


def state_machine() -> Result:
    """Reports a second of the state machine."""
    return reports_of(Controller(settings(), levels_of(PROMPTS)))


def journaled() -> Result:
    """The same with its journal, on disk before each order leaves."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(settings(), levels_of(PROMPTS), Folder(Path(folder, "journal")), time.monotonic)
        return reports_of(desk, desk.sync)


def reports_of(machine: Machine, sync: Callable[[], None] | None = None) -> Result:
    """Reports and the processor time they take, with all that goes with them: leases, renewals, orders and laws.

    Each of eight actors says in every pulse what it holds, reports two groups and asks for as many as it has room for;
    the learner asks after each pulse, as in the shell, where each change wakes it.
    """
    clock = Clock(machine)
    held: list[list[Lease]] = [[] for _ in range(ACTORS)]
    reported = serves = rounds = orders = 0
    synced: list[float] = []
    while reported < REPORTS:
        rounds += 1
        for slot in range(ACTORS):
            at = time.monotonic()
            done, held[slot] = held[slot][:2], held[slot][2:]
            reports = tuple(group_of(lease, slot=slot, correct=lease.prompt_id % (SAMPLES + 1)) for lease in done)
            running = tuple(lease.id for lease in held[slot])
            asked = pulse(slot, rounds, serves, MOST_HELD - len(running), running, reports)
            (reply,) = [one for one in clock.apply(Pulsed(pulse=asked, at=at)) if isinstance(one, Reply)]
            held[slot] += reply.leases
            reported += len(reports)
            order = next((one.order for one in clock.apply(OrderRequested(at=at)) if isinstance(one, Order)), None)
            if order is not None:
                if sync is not None:
                    synced.append(_timed(sync))
                clock.apply(StepReported(report=step_of(order), at=at))
                serves, orders = order.version.step + 1, orders + 1
                clock.apply(Published(version=version(serves), checksum=0))
    return {"reports": reported, "seconds": clock.seconds, "pulses": rounds * ACTORS, "orders": orders, "sync": synced}


def pulse(
    slot: int, number: int, serves: int, room: int, running: tuple[int, ...], reports: tuple[GroupReport, ...]
) -> Pulse:
    """What an actor says."""
    return Pulse(
        slot=slot,
        incarnation=1,
        number=number,
        version=version(serves),
        room=room,
        running=running,
        reports=reports,
    )


def levels_of(count: int) -> list[str]:
    """Levels of so many prompts."""
    return [LEVELS[i % len(LEVELS)] for i in range(count)]


def decoding() -> Result:
    """Encoding and decoding a group: bytes, seconds of each, and whether arrays stay where they are."""
    frame = wire.encode(made_group())
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(STEPS_OF_DECODING):
        group = made_group()
        seconds["encode"].append(_timed(partial(wire.encode, group)))
        seconds["decode"].append(_timed(lambda: wire.decode(frame, Group)))
    samples = wire.decode(frame, Group).rollout.samples
    shared = all(np.shares_memory(array, frame) for array in (samples.tokens, samples.logprobs))
    return {"bytes": int(frame.nbytes), "shared": shared, **seconds}


def made_group() -> Group:
    """A group of 16 samples of 2,048 tokens."""
    lease = Lease(id=1, prompt_id=1, samples=SAMPLES, version=version(0), seed=1, deadline_seconds=60.0)
    rollout = Rollout(
        lease=lease,
        slot=0,
        incarnation=1,
        started=version(0),
        prompt_tokens=np.arange(20, dtype=np.int32),
        samples=made_samples(SAMPLES, TOKENS),
        seconds=1.0,
    )
    return Group(rollout=rollout, verdicts=(Verdict(reward=1.0, status="correct", seconds=0.1),) * SAMPLES)


def prompts(count: int) -> Result:
    """How much a controller of so many prompts adds to the process, after it has granted some leases. Bytes."""
    levels = levels_of(count)
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.perf_counter()
    controller = Controller(settings(), levels)
    controller.apply(Pulsed(pulse=pulse(0, 1, 0, BATCH, (), ()), at=0.0))
    seconds = time.perf_counter() - began
    gc.collect()
    return {"prompts": count, "bytes": process.memory_info().rss - before, "seconds": seconds}


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main(source: str, target: str) -> None:
    """Makes what the request names."""
    asked = json.loads(Path(source).read_text())
    parts: dict[str, Callable[[], Result]] = {
        "state_machine": state_machine,
        "journaled": journaled,
        "decoding": decoding,
        "prompts": lambda: prompts(asked["prompts"]),
    }
    Path(target).write_text(json.dumps(parts[asked["part"]]()))


if __name__ == "__main__":
    main(*sys.argv[1:])
