"""An order cut into the samples of each of its optimizer steps.

The controller bounds what groups without an advantage signal get of the bonus, for the order as a whole. Adam scales
what it is given to a full step, so that a part of such groups alone would be a step on nothing but their bonus. Hence
groups with and without a signal are spread evenly over the parts, and a part that holds no signal all the same has no
bonus. The bound on the share of all-wrong groups is the order's: a part keeps it as nearly as it has its share of the
groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isnan

import numpy as np

from entrostat.learner.batching import Sample


def minibatches(samples: Sequence[Sample], count: int, epochs: int, seed: int) -> Iterator[tuple[Sample, ...]]:
    """`count` parts of nearly equal numbers of whole groups, `epochs` times over, each time cut anew by the seed.

    The numbers of groups with an advantage signal differ by one at most between an epoch's parts, and so do those of
    groups without one and those of all. Groups without a response token take no part, unless all are; with fewer groups
    than `count` there are as many parts as groups. A single part holds all samples as they came.
    """
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    taught = [group for group in groups.values() if any(sample.response_length for sample in group)]
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        if count == 1 or not taught:
            yield tuple(samples)
            continue
        shuffled = random.permutation(len(taught))
        dealt = sorted(shuffled, key=lambda place: not has_signal(taught[place]))
        parts = min(count, len(taught))
        # The parts that are dealt one more are not always the first.
        for first in random.permutation(parts):
            yield tuple(sample for place in dealt[first::parts] for sample in taught[place])


def has_signal(samples: Sequence[Sample]) -> bool:
    """Whether a response token of the samples has an advantage in the policy term."""
    return any(one.counts and one.in_policy and one.advantage and one.response_length for one in samples)


def bounded(part: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """The part without a bonus, of either sign, if it holds no advantage signal: λ_q and w̄_q are 0.

    So the controller has it with an order as a whole (controller/allocation.py, controller/orders.py): a gradient of
    the entropy alone would be scaled by Adam to a nearly full step. A λ_q that is not a number stays, for the step to
    refuse it.
    """
    if has_signal(part):
        return part
    return tuple(one if isnan(one.coefficient) else replace(one, weight=0.0, coefficient=0.0) for one in part)
