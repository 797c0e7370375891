"""The order under way, and what people are told of it: a round is an order from its groups to its step."""

import logging
from collections.abc import Sequence
from math import nan

from entrostat.controller.coefficient import Reading
from entrostat.controller.difficulty import DifficultyTable
from entrostat.controller.orders import acting_share, make_order
from entrostat.controller.signals import silent
from entrostat.controller.snapshot import RoundState
from entrostat.controller.summary import OrderSummary, summarise
from entrostat.controller.thermometer import completed_tokens
from entrostat.protocol.messages import GroupReport, PolicyVersion, TrainOrder
from entrostat.protocol.settings import Stations

log = logging.getLogger(__name__)


class Rounds:
    """One round after another.

    Args:
        settings: of the run.
        difficulty: of its prompts.
    """

    def __init__(self, settings: Stations, difficulty: DifficultyTable) -> None:
        self._settings, self._difficulty = settings, difficulty
        self.filled_up = 0  # groups that were trained without a signal …
        self.filled_orders = 0  # … and the orders that held them
        self.order: TrainOrder | None = None  # under way
        ages = settings.rollout.max_staleness + 1
        self.summary = OrderSummary(staleness=(0,) * ages, actor_ages=(nan,) * ages)  # of the last order
        self.completed: dict[str, int] = {}  # response tokens by level, of all groups completed for that order
        self.share = 1.0  # of that order's coefficient that acts: the token mean of its groups' weights
        self._silent = 0  # groups of its batch without an advantage signal
        self._left_out: list[GroupReport] = []  # filtered since the last order that was trained …
        self._told: tuple[GroupReport, ...] = ()  # … and those of them that count in the summary of the last order

    def leave_out(self, filtered: Sequence[GroupReport]) -> None:
        """Groups that were filtered: they count in the next order's summary."""
        self._left_out += filtered

    def begin(self, reports: Sequence[GroupReport], version: PolicyVersion, law: Reading) -> TrainOrder:
        """The order of these groups: the batch, and after it those that come along for their bonus alone."""
        batch = self._settings.batch
        self.order = make_order(reports, version=version, law=law, difficulty=self._difficulty, settings=self._settings)
        self.share = acting_share(self.order, reports)
        self._silent = sum(silent(report) for report in reports[: batch.prompts])
        self._told = tuple(self._left_out)
        self.summary = summarise(reports, version.step, self._settings.rollout.max_staleness, self._told)
        self.completed = completed_tokens(
            (self._difficulty.level_of(report.prompt_id), report.lengths) for report in (*reports, *self._told)
        )
        return self.order

    def end(self) -> None:
        """The order was trained."""
        self._left_out = self._left_out[len(self._told) :]
        self._count_fillers()
        self.order = None

    def give_up(self) -> None:
        """The order won't be trained; what was left out for it counts in the next one's summary."""
        self.order = None

    def state(self) -> RoundState:
        """All it knows."""
        return RoundState(
            order=self.order,
            summary=self.summary,
            completed=tuple(self.completed.items()),
            share=self.share,
            silent=self._silent,
            left_out=tuple(self._left_out),
            told=self._told,
            filled_up=self.filled_up,
            filled_orders=self.filled_orders,
        )

    def restore(self, state: RoundState) -> None:
        """Goes on from a state."""
        self.order, self.summary, self.share = state.order, state.summary, state.share
        self.completed = dict(state.completed)
        self._silent, self._left_out, self._told = state.silent, list(state.left_out), state.told
        self.filled_up, self.filled_orders = state.filled_up, state.filled_orders

    def begin_anew(self, state: RoundState) -> None:
        """A later branch: what was under way is void, what was counted stays."""
        self.filled_up, self.filled_orders = state.filled_up, state.filled_orders

    def _count_fillers(self) -> None:
        """Counts groups without a signal in a batch that was trained in spite of a filter; says so now and then."""
        batch = self._settings.batch
        if self.order is None or batch.filter == "none" or not self._silent:
            return
        self.filled_up += self._silent
        self.filled_orders += 1
        if self.filled_orders & (self.filled_orders - 1) == 0:
            log.warning(
                "%d of the %d groups of order %s have equal rewards throughout: batch.refill = %g times batch.prompts "
                "groups did not hold enough others (%d orders so far)",
                self._silent,
                batch.prompts,
                self.order.version,
                batch.refill,
                self.filled_orders,
            )
