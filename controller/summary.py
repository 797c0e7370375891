"""What an order's groups look like to people: rewards, verdicts, ages, and the entropy the actors saw.

Everything but the ages is over all groups completed for the order, those that a filter left out too: a mean reward over
the groups that survive a filter says how the filter works, not how the policy fares.
"""

from collections import Counter
from collections.abc import Sequence
from functools import reduce

import msgspec

from entrostat.protocol.messages import STATUSES, GroupReport
from entrostat.protocol.moments import Moments


class OrderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last order; zeros before the first."""

    staleness: tuple[int, ...]  # ordered groups by age in versions: [max_staleness + 1], longer if one is older
    reward: float = 0.0  # mean over samples
    pass_rate: float = 0.0  # share of correct samples
    statuses: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # in `Status`'s order
    actor_entropy: float = 0.0  # mean −log μ over tokens, μ the policies that drew them, nats
    response_tokens: int = 0
    truncated: int = 0  # samples


def summarise(
    ordered: Sequence[GroupReport], step: int, max_staleness: int, left_out: Sequence[GroupReport] = ()
) -> OrderSummary:
    """The summary of at least one group ordered at policy step `step`, and of those filtered since the last order."""
    ages = Counter(max(step - report.started.step, 0) for report in ordered)
    completed = (*ordered, *left_out)
    rewards = [reward for report in completed for reward in report.rewards]
    seen = Counter(status for report in completed for status in report.statuses)
    correct, wrong, unparsable, timeout, error = (seen[status] for status in STATUSES)
    surprise = reduce(Moments.merge, (report.surprise for report in completed))
    return OrderSummary(
        # An age above the bound must be seen: it would be a broken promise.
        staleness=tuple(ages[age] for age in range(max(max_staleness, *ages) + 1)),
        reward=sum(rewards) / len(rewards),
        pass_rate=correct / seen.total(),
        statuses=(correct, wrong, unparsable, timeout, error),
        actor_entropy=surprise.mean,
        response_tokens=sum(sum(report.lengths) for report in completed),
        truncated=sum(report.truncated for report in completed),
    )
