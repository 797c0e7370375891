"""What an order's groups look like to people: rewards, verdicts, ages, and the entropy the actors saw."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce

import msgspec

from entrostat.protocol.messages import STATUSES, GroupReport
from entrostat.protocol.moments import Moments


class OrderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last order; zeros before the first."""

    staleness: tuple[int, ...]  # groups by age in versions: [max_staleness + 1], longer if one is older
    reward: float = 0.0  # mean over samples
    pass_rate: float = 0.0  # share of correct samples
    statuses: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # in `Status`'s order
    actor_entropy: float = 0.0  # mean −log π over tokens, nats
    response_tokens: int = 0
    truncated: int = 0  # samples


def summarise(reports: Sequence[GroupReport], step: int, max_staleness: int) -> OrderSummary:
    """The summary of a batch of at least one group, ordered at policy step `step`."""
    ages = Counter(max(step - report.started.step, 0) for report in reports)
    rewards = [reward for report in reports for reward in report.rewards]
    seen = Counter(status for report in reports for status in report.statuses)
    correct, wrong, unparsable, timeout, error = (seen[status] for status in STATUSES)
    surprise = reduce(Moments.merge, (report.surprise for report in reports))
    return OrderSummary(
        # An age above the bound must be seen: it would be a broken promise.
        staleness=tuple(ages[age] for age in range(max(max_staleness, *ages) + 1)),
        reward=sum(rewards) / len(rewards),
        pass_rate=correct / seen.total(),
        statuses=(correct, wrong, unparsable, timeout, error),
        actor_entropy=surprise.mean,
        response_tokens=sum(sum(report.lengths) for report in reports),
        truncated=sum(report.truncated for report in reports),
    )
