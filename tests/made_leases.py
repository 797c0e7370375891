"""A small lease book, and one actor that takes leases from it."""

from entrostat.controller.leases import LeaseBook, LeaseRules
from entrostat.controller.prompts import PromptOrder
from entrostat.protocol.messages import Lease, LeaseCounts
from tests.made_messages import version

ACTOR = (0, 1)


def book(
    *,
    batch: int = 4,
    staleness: int = 1,
    prompts: int = 100,
    branch: int = 0,
    start: int = 0,
    counts: LeaseCounts | None = None,
    next_number: int = 0,
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
    return LeaseBook(rules, order, branch=branch, start=start, counts=counts, next_number=next_number)


def granted(
    leases: LeaseBook, room: int, *, serves: int = 0, newest: int | None = None, at: float = 0.0
) -> list[Lease]:
    """What `ACTOR` gets when it has this much room; nothing newer than what it serves is published by default."""
    newest = serves if newest is None else newest
    return list(leases.grant(ACTOR, room=room, serves=version(serves), newest=version(newest), at=at))
