"""A small lease book, and one actor that takes leases from it."""

from entrostat.controller.lease_rules import LeaseRules
from entrostat.controller.leases import LeaseBook
from entrostat.controller.prompts import PromptOrder
from entrostat.protocol.messages import Lease
from tests.made_messages import version

ACTOR = (0, 1)


def book(
    *,
    batch: int = 4,
    staleness: int = 1,
    prompts: int = 100,
    branch: int = 0,
    start: int = 0,
    left_out: int = 0,
    kept: int = 0,
) -> LeaseBook:
    """A book of leases of eight samples, over prompts in a shuffled order."""
    rules = LeaseRules(
        batch=batch,
        max_staleness=staleness,
        last_step=1000,
        samples=8,
        lease_seconds=10.0,
        seed=7,
        left_out=left_out,
        kept=kept,
    )
    order = PromptOrder(prompts, 7, shuffle=True)
    return LeaseBook(rules, order, branch=branch, start=start)


def granted(
    leases: LeaseBook, room: int, *, serves: int = 0, newest: int | None = None, at: float = 0.0
) -> list[Lease]:
    """What `ACTOR` gets when it has this much room; nothing newer than what it serves is published by default."""
    newest = serves if newest is None else newest
    return list(leases.grant(ACTOR, room=room, serves=version(serves), newest=version(newest), at=at))


def owed(leases: LeaseBook, prompts: PromptOrder | None = None) -> list[int]:
    """The prompts that a later branch of a hundred prompts would lease before it goes on in its epoch."""
    return [int(prompt) for prompt in later_book(leases, prompts)[1].position().returned]


def later_book(leases: LeaseBook, prompts: PromptOrder | None = None) -> tuple[LeaseBook, PromptOrder]:
    """The book of the next branch, and the order of its prompts."""
    prompts = prompts or PromptOrder(100, 7, shuffle=True)
    prompts.restore(leases._prompts.position())
    rules = LeaseRules(batch=4, max_staleness=1, last_step=1000, samples=8, lease_seconds=10.0, seed=7)
    later = LeaseBook(rules, prompts, branch=1, start=0)
    later.begin_anew(leases.state())
    return later, prompts
