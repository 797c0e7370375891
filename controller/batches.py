"""Which ready groups make the next batch."""

from collections.abc import Collection, Iterable

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
    chosen: Collection[GroupReport], running: Iterable[tuple[int, float]], *, at: float, typical_seconds: float
) -> bool:
    """Whether an older lease is under way that should come along: `running` are leases and when they were granted.

    Groups of short responses are done first: a batch of whatever is ready would be an easy one, and the next a hard
    one. So a batch waits for older leases, but for none that takes twice as long as is typical: its actor may be dead.
    """
    newest = max(report.lease_id for report in chosen)
    patience = PATIENCE * typical_seconds
    return any(lease < newest and at - granted < patience for lease, granted in running)
