"""Faults built in on purpose, one at a time: a simulation that does not find them proves nothing.

`python -m tests.simulation.mutants --seeds 200` tells how many seeds each of them takes to be found.
"""

import argparse
import contextlib
import inspect
import itertools
import logging
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from entrostat.actors.deliveries import Deliveries
from entrostat.actors.pulses import Pulses
from entrostat.actors.rollout import RolloutWorker
from entrostat.controller.desk import Desk
from entrostat.controller.leases import LeaseBook
from entrostat.controller.places import FixedPlaces
from entrostat.controller.prompts import PromptOrder
from entrostat.controller.state import Controller
from entrostat.learner.buffer import SampleBuffer, Taken
from entrostat.protocol.messages import GroupReport, Lease, Pulse
from tests.simulation import stations
from tests.simulation.simulate import simulate

ASKED = itertools.count()


def accept_from_anybody(self: LeaseBook, report: GroupReport, at: float) -> bool:
    """A report is accepted without a look at whose it is and of which branch."""
    if report.lease_id not in self._running:
        return False
    running = self._running.leave(report.lease_id)
    if self._fixed is not None:
        self._places[report.lease_id] = running.place
    self._ready[report.lease_id] = report
    return True


def never_fence(self: Controller, pulse: Pulse, original: Callable[..., Any]) -> Any:
    """An older life of a slot is answered as if it were the newest."""
    actor = self._actors.get(pulse.slot)
    if actor is not None and pulse.incarnation < actor.incarnation:
        actor.incarnation = pulse.incarnation
    return original(self, pulse)


def evict_nobody(self: LeaseBook, slot: int) -> tuple[int, ...]:
    """Leases of an actor that was replaced run on."""
    return ()


def forget_the_old_life(self: LeaseBook, slot: int) -> tuple[int, ...]:
    """Leases of an actor that was replaced are dropped, and their prompts with them."""
    for lease in self._running.of_slot(slot):
        self._busy[self._running.leave(lease).lease.prompt_id] -= 1
    return ()


def drop_stale_never(self: LeaseBook, step: int) -> tuple[int, ...]:
    """The age of a group is not looked at again when a batch is made."""
    return ()


def grant_too_many(self: LeaseBook, *arguments: Any, original: Callable[..., tuple[Lease, ...]], **named: Any) -> Any:
    """Leases are granted two versions beyond the bound on staleness."""
    rules = self._rules
    self._rules = replace(rules, max_staleness=rules.max_staleness + 2)
    try:
        return original(self, *arguments, **named)
    finally:
        self._rules = rules


def put_back_nothing(self: PromptOrder, prompts: Iterable[int]) -> None:
    """The prompt of a lease that ended without its group is not leased again."""


def draw_without_position(self: PromptOrder, index: int) -> float:
    """Whether a prompt is passed over follows from how often the process asked, not from its place."""
    return random.Random(next(ASKED)).random()


def judge_what_is_held(self: PromptOrder, prompt: int, original: Callable[..., None]) -> None:
    """A prompt that was busy when its turn came is judged a second time."""
    original(self, prompt)
    if self._chance is not None and self._returned and self._chance(self._returned[-1]) < 1.0:
        self._returned.pop()


def give_no_place_back(self: FixedPlaces, place: int) -> None:
    """The same for a place of a deterministic run."""


def take_what_is_there(self: SampleBuffer, lease_ids: Iterable[int]) -> Taken:
    """Groups that are missing are made up from others, so that the order can be trained."""
    frames = [self._frames[lease] for lease in lease_ids if lease in self._frames]
    spare = frames or list(self._frames.values())
    if not spare:
        return Taken(frames=(), missing=tuple(lease_ids))
    return Taken(frames=tuple((frames + spare * len(list(lease_ids)))[: len(list(lease_ids))]), missing=())


def forget_reports(self: Pulses, now: float, error: Exception, original: Callable[..., None]) -> None:
    """Reports of a pulse that was not answered are not sent again."""
    original(self, now, error)
    self._reports.clear()


def send_once(self: Deliveries, sent: Any, why: str) -> None:
    """A group that did not arrive is given up in silence."""


def never_sync(self: Any) -> None:
    """The journal says it is on disk when it is not."""


def same_term(self: Controller, term: int, original: Callable[..., Any]) -> Any:
    """A controller's next life numbers its leases as if it were the first."""
    return original(self, 0)


def keep_the_order(self: Controller, missing: Any) -> tuple[()]:
    """An order whose groups are gone is ordered again as it was."""
    return ()


def draw_any_version(self: RolloutWorker, lease: Lease) -> bool:
    """A lease is begun under whatever version is served."""
    return True


def forget_manifests(self: Desk, manifest: Any, original: Callable[..., None]) -> None:
    """Only the newest version can be offered."""
    self._manifests.clear()
    original(self, manifest)


def forget_what_runs(self: LeaseBook, state: Any, original: Callable[..., None]) -> None:
    """A new branch takes the counts over, and loses the prompts that were under way."""
    original(self, state)
    self._prompts._returned.clear()


Patch = tuple[type, str, Callable[..., Any]]  # class, method, what takes its place

MUTANTS: dict[str, tuple[Patch, ...]] = {
    "a replaced actor's reports count": (
        (LeaseBook, "evict", evict_nobody),
        (LeaseBook, "accept", accept_from_anybody),
    ),
    "no fence between lives of a slot": ((Controller, "_pulsed", never_fence),),
    "leases of a replaced actor are dropped": ((LeaseBook, "evict", forget_the_old_life),),
    "age not checked when a batch is made": ((LeaseBook, "drop_stale", drop_stale_never),),
    "leases beyond the bound on staleness": ((LeaseBook, "grant", grant_too_many),),
    "prompts of ended leases are not put back": ((PromptOrder, "put_back", put_back_nothing),),
    "passing over does not follow from the place": ((PromptOrder, "_drawn", draw_without_position),),
    "held prompts are judged again": ((PromptOrder, "freed", judge_what_is_held),),
    "places of ended leases are not put back": ((FixedPlaces, "give_back", give_no_place_back),),
    "missing groups are made up": ((SampleBuffer, "take", take_what_is_there),),
    "unanswered reports are forgotten": ((Pulses, "_retry_later", forget_reports),),
    "groups are sent once": ((Deliveries, "_fail", send_once),),
    "the journal is never synced": ((stations.MemorySegment, "sync", never_sync),),
    "lease ids repeat after a restart": ((Controller, "_restarted", same_term),),
    "an order without its groups is kept": ((Controller, "_missing", keep_the_order),),
    "leases begin under any version": ((RolloutWorker, "_may_begin", draw_any_version),),
    "only the newest manifest is kept": ((Desk, "_keep", forget_manifests),),
    "a new branch loses what ran": ((LeaseBook, "begin_anew", forget_what_runs),),
}


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """The product with one fault built in."""
    with contextlib.ExitStack() as patches:
        for kind, method, wrong in MUTANTS[name]:
            instead = _instead(getattr(kind, method), wrong)
            patches.enter_context(patch.object(kind, method, instead))
        yield


def _instead(original: Callable[..., Any], wrong: Callable[..., Any]) -> Callable[..., Any]:
    if "original" in inspect.signature(wrong).parameters:
        return lambda *arguments, **named: wrong(*arguments, **named, original=original)
    return lambda *arguments, **named: wrong(*arguments, **named)


def found(name: str, first: int, seeds: int) -> tuple[int, str] | None:
    """The first seed that finds a fault, and what it says; None where none of them does."""
    with mutated(name):
        for seed in range(first, first + seeds):
            try:
                violation = simulate(seed).violation
            except (AssertionError, KeyError) as error:
                violation = f"{type(error).__name__}: {error}"
            if violation:
                return seed, violation
    return None


def main() -> int:
    """One line for each fault; 1 where one was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    missed = 0
    for name in MUTANTS:
        seen = found(name, options.first, options.seeds)
        missed += seen is None
        print(f"{name}: " + ("NOT FOUND" if seen is None else f"seed {seen[0]}: {seen[1][:150]}"), flush=True)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
