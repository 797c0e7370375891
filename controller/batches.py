"""Which ready groups make the next batch."""

from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest

from entrostat.protocol.messages import GroupReport

PATIENCE = 2.0  # in typical durations, from the grant


def choose(ready: Iterable[GroupReport], batch: int) -> tuple[GroupReport, ...]:
    """At most `batch` groups: oldest start first, then by lease; two of one prompt only where there are no others."""
    queue = sorted(ready, key=lambda report: (report.started.step, report.lease_id))
    first: dict[int, GroupReport] = {}
    again: list[GroupReport] = []
    for report in queue:
        if report.prompt_id in first:
            again.append(report)
        else:
            first[report.prompt_id] = report
    return tuple([*first.values(), *again][:batch])


def worth_waiting(
    chosen: Sequence[GroupReport],
    ready: Iterable[int],
    running: Mapping[int, float],
    at: float,
    typical_seconds: float,
) -> bool:
    """Whether one of the oldest leases is under way that should come along instead of a newer group.

    Groups of short responses are done first: a batch of whatever is ready would be an easy one, and the next a hard
    one. So it waits for those of the oldest leases, as many as it holds, that are under way; but for none that takes
    twice as long as is typical: its actor may be dead, or its responses of the longest.

    Args:
        chosen: the batch as it could be now.
        ready: leases of all groups that are ready.
        running: leases under way, and when each was granted, seconds.
        at: seconds, now.
        typical_seconds: from a grant to its report.
    """
    newest = max(report.lease_id for report in chosen)
    patience = PATIENCE * typical_seconds
    waited_for = [lease for lease, granted in running.items() if lease < newest and at - granted < patience]
    if not waited_for:
        return False
    return min(waited_for) in nsmallest(len(chosen), (*ready, *running))
