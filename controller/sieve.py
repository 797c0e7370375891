"""The sieve: groups without an advantage signal, left out of the batches and counted, within a bound for each order."""

from collections import Counter

from entrostat.controller.signals import all_wrong, silent
from entrostat.controller.snapshot import SieveState
from entrostat.protocol.messages import GroupReport


class Sieve:
    """Groups that hold no place of a batch.

    A group that is left out is filtered, at once or later: the newest all-wrong ones wait for the next order, and may
    come along with it for their bonus.

    Args:
        most: groups left out for one order; 0 leaves out none.
        kept: all-wrong groups that wait.
    """

    def __init__(self, *, most: int, kept: int) -> None:
        self._most = most
        self._room = kept
        self._left_out: Counter[int] = Counter()  # by the order they were completed for
        self._waiting: dict[int, GroupReport] = {}  # by lease, the oldest first
        self._filtered: list[GroupReport] = []  # since `take_filtered` was asked
        self.count = 0  # filtered so far

    @property
    def waiting(self) -> dict[int, GroupReport]:
        """All-wrong groups that may come along with the next order, by lease."""
        return self._waiting

    def leaves_out(self, report: GroupReport, order: int) -> bool:
        """Takes the group if it has no signal and one more may be left out of `order`; False where it holds a place."""
        if not silent(report) or self._left_out[order] >= self._most:
            return False
        self._left_out[order] += 1
        self._waiting[report.lease_id] = report
        if not all_wrong(report):
            self._filter([report.lease_id])
        self._make_room()
        return True

    def hand_over(self, *, wanted: bool) -> dict[int, GroupReport]:
        """The groups that waited, to come along with an order; none where not `wanted`: then they are filtered."""
        if not wanted:
            self._filter(list(self._waiting))
        handed, self._waiting = self._waiting, {}
        return handed

    def give_back(self, groups: dict[int, GroupReport]) -> None:
        """Takes groups back whose order was given up; they are older than those that wait by now."""
        self._waiting = groups | self._waiting
        self._make_room()

    def drop_older(self, oldest: int) -> None:
        """Filters the groups that wait and were begun before policy step `oldest`."""
        self._filter([lease for lease, report in self._waiting.items() if report.started.step < oldest])

    def forget_before(self, order: int) -> None:
        """Orders before this one need no more groups."""
        for past in [past for past in self._left_out if past < order]:
            del self._left_out[past]

    def take_filtered(self) -> tuple[GroupReport, ...]:
        """The groups that were filtered since this was asked last."""
        filtered, self._filtered = tuple(self._filtered), []
        return filtered

    def state(self) -> SieveState:
        """All it knows."""
        return SieveState(
            left_out=tuple(self._left_out.items()),
            waiting=tuple(self._waiting.values()),
            filtered=tuple(self._filtered),
            count=self.count,
        )

    def restore(self, state: SieveState) -> None:
        """Goes on from a state."""
        self._left_out = Counter(dict(state.left_out))
        self._waiting = {report.lease_id: report for report in state.waiting}
        self._filtered = list(state.filtered)
        self.count = state.count

    def _make_room(self) -> None:
        self._filter(list(self._waiting)[: max(len(self._waiting) - self._room, 0)])

    def _filter(self, leases: list[int]) -> None:
        self._filtered += [self._waiting.pop(lease) for lease in leases]
        self.count += len(leases)
