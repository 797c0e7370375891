"""Which ready groups make the next batch."""

from collections.abc import Iterable, Mapping

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
    ready: Iterable[int], running: Mapping[int, float], batch: int, *, at: float, typical_seconds: float
) -> bool:
    """Whether one of the oldest leases is under way that should come along instead of a newer group.

    Groups of short responses are done first: a batch of whatever is ready would be an easy one, and the next a hard
    one. So it waits for those of the oldest leases, as many as it holds, that are under way; but for none that takes
    twice as long as is typical: its actor may be dead, or its responses of the longest.

    Args:
        ready: leases of all groups that are ready.
        running: leases under way, and when each was granted, seconds.
        batch: how many groups make one.
        at: seconds, now.
        typical_seconds: from a grant to its report.
    """
    granted_since = at - PATIENCE * typical_seconds
    oldest = sorted((*ready, *running))[:batch]
    return any(running[lease] > granted_since for lease in oldest if lease in running)
