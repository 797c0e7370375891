"""What an order's groups look like to people: rewards, verdicts, ages, and the entropy the actors saw.

Everything but what goes by age is over all groups completed for the order, those that a filter left out too: a mean
reward over the groups that survive a filter says how the filter works, not how the policy fares.
"""

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from math import nan

import msgspec

from entrostat.protocol.messages import STATUSES, GroupReport
from entrostat.protocol.moments import Moments


class OrderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last order; zeros before the first."""

    staleness: tuple[int, ...]  # ordered groups by age in versions: [max_staleness + 1], longer if one is older
    actor_ages: tuple[float, ...]  # of the same, mean −log μ over their tokens, nats; NaN for an age without tokens
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
    by_age = _by_age(ordered, step, max_staleness)
    completed = (*ordered, *left_out)
    rewards = [reward for report in completed for reward in report.rewards]
    seen = Counter(status for report in completed for status in report.statuses)
    correct, wrong, unparsable, timeout, error = (seen[status] for status in STATUSES)
    return OrderSummary(
        staleness=tuple(len(surprises) for surprises in by_age),
        actor_ages=tuple(_mean(surprises) for surprises in by_age),
        reward=sum(rewards) / len(rewards),
        pass_rate=correct / seen.total(),
        statuses=(correct, wrong, unparsable, timeout, error),
        actor_entropy=_mean([report.surprise for report in completed]),
        response_tokens=sum(sum(report.lengths) for report in completed),
        truncated=sum(report.truncated for report in completed),
    )


def _by_age(ordered: Sequence[GroupReport], step: int, max_staleness: int) -> list[list[Moments]]:
    """The groups' −log μ by age in versions at policy step `step`: `[max_staleness + 1]`, longer if one is older."""
    ages = [max(step - report.started.step, 0) for report in ordered]
    # An age above the bound must be seen: it would be a broken promise.
    found: list[list[Moments]] = [[] for _ in range(max(max_staleness, *ages) + 1)]
    for age, report in zip(ages, ordered, strict=True):
        found[age].append(report.surprise)
    return found


def _mean(surprises: Sequence[Moments]) -> float:
    """The mean over the groups' tokens; NaN where there are none."""
    together = reduce(Moments.merge, surprises, Moments())
    return together.mean if together.count else nan
