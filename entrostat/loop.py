"""One round of the learner's loop: an order, its step, and the controller told of it. What it asks is a protocol."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from entrostat.protocol.messages import ControllerView, GroupsMissing, StepOutcome, TrainOrder


class Asked(Protocol):
    """The stations as the loop asks them; each call has a deadline."""

    def next_order(self, wait_seconds: float) -> TrainOrder | None:
        """The next order, or None when none could be made within the time."""
        ...

    def train(self, order: TrainOrder, wait_seconds: float) -> StepOutcome | GroupsMissing:
        """One optimizer step; its weights are offered to the actors before this returns."""
        ...

    def report(self, outcome: StepOutcome) -> ControllerView:
        """Tells the controller of a step and its weights; returns what it makes of them."""
        ...

    def missing(self, missing: GroupsMissing) -> None:
        """Tells the controller that an order can't be trained."""
        ...


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """An order that was trained."""

    order: TrainOrder
    outcome: StepOutcome
    view: ControllerView
    waited: float  # seconds, for the order


def one_round(
    stations: Asked,
    *,
    before: Callable[[], None],
    after: Callable[[bool], None],
    clock: Callable[[], float],
    poll_seconds: float,
) -> Round | GroupsMissing:
    """Has the next order trained; of one whose groups are gone the controller is told, and it makes another.

    Args:
        stations: whom it asks.
        before: called each time before it asks for an order.
        after: called each time after that, with whether there was one.
        clock: seconds.
        poll_seconds: the longest it waits for one answer while there is no order.
    """
    since, order = clock(), None
    while order is None:
        before()
        order = stations.next_order(poll_seconds)
        after(order is not None)
    waited = clock() - since
    outcome = stations.train(order, waited)
    if isinstance(outcome, GroupsMissing):
        stations.missing(outcome)
        return outcome
    return Round(order=order, outcome=outcome, view=stations.report(outcome), waited=waited)
