"""Which groups teach anything: a group whose rewards are all equal has no advantage."""

from entrostat.protocol.messages import GroupReport


def silent(report: GroupReport) -> bool:
    """Whether all rewards of the group are equal, as its verifiers gave them."""
    return max(report.rewards) == min(report.rewards)


def all_wrong(report: GroupReport) -> bool:
    """Whether the group is silent and no sample of it is correct: its prompt is a hard one."""
    return silent(report) and "correct" not in report.statuses
