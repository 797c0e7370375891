"""The whole state of the controller as values: what a checkpoint holds, and what a process that takes over starts from.

Everything is in it, leases under way too, so that `Controller(settings, levels, state)` goes on as if nothing had been;
a `Rewound` event takes from it what a new branch needs, and voids the rest.
"""

import msgspec

from entrostat.controller.coefficient import LawState
from entrostat.controller.difficulty import DifficultySnapshot
from entrostat.controller.prompts import PromptPosition
from entrostat.controller.summary import OrderSummary
from entrostat.controller.thermometer import AnchorMix
from entrostat.protocol.messages import GroupReport, Lease, LeaseCounts, PolicyVersion, TrainOrder


class RunningLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease under way."""

    lease: Lease
    slot: int
    incarnation: int
    granted: float  # seconds on the events' clock
    deadline: float
    place: int
    pulse: int  # number of the pulse that was answered with it


class SieveState(msgspec.Struct, frozen=True, kw_only=True):
    """Of a `Sieve`."""

    left_out: tuple[tuple[int, int], ...]  # order, groups
    waiting: tuple[GroupReport, ...]
    filtered: tuple[GroupReport, ...]  # not yet taken
    count: int


class BookState(msgspec.Struct, frozen=True, kw_only=True):
    """Of a `LeaseBook`."""

    start: int  # the branch's first step
    counts: LeaseCounts
    number: int  # of the next lease
    consumed: int
    typical_seconds: float
    running: tuple[RunningLease, ...]
    ready: tuple[GroupReport, ...]
    ordered: tuple[GroupReport, ...]
    along: tuple[int, ...]
    sieve: SieveState
    next_place: int
    again: tuple[int, ...]  # places to be granted anew, of a deterministic run
    places: tuple[tuple[int, int], ...]  # lease, its place: of the groups above, in a deterministic run


class RoundState(msgspec.Struct, frozen=True, kw_only=True):
    """Of a `Rounds`."""

    order: TrainOrder | None
    summary: OrderSummary
    completed: tuple[tuple[str, int], ...]
    share: float
    silent: int
    left_out: tuple[GroupReport, ...]
    told: tuple[GroupReport, ...]
    filled_up: int
    filled_orders: int


class ActorState(msgspec.Struct, frozen=True, kw_only=True):
    """Who lives in a slot."""

    slot: int
    incarnation: int
    seen: float  # seconds, the last pulse
    judging: int
    number: int  # of its last pulse


class ControllerState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """controller → checkpoint, journal → controller. All it knows."""

    version: PolicyVersion
    newest: PolicyVersion  # that actors may serve
    term: int
    now: float
    law: LawState
    mix: AnchorMix
    measured: float
    difficulty: DifficultySnapshot
    observed: int  # of a deterministic run: the last step whose groups the difficulty knows
    position: PromptPosition
    book: BookState
    round: RoundState
    actors: tuple[ActorState, ...]
    wanted_actors: int
    late_reports: int
    fenced_pulses: int
