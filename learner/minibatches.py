"""An order cut into the samples of each of its optimizer steps."""

from collections.abc import Iterator, Sequence

import numpy as np

from entrostat.learner.batching import Sample


def minibatches(samples: Sequence[Sample], count: int, epochs: int, seed: int) -> Iterator[tuple[Sample, ...]]:
    """`count` parts of nearly equal numbers of whole groups, `epochs` times over, each time cut anew by the seed.

    Groups without a response token take no part, unless all are; with fewer groups than `count` there are as many parts
    as groups. A single part holds all samples as they came.
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
        for places in np.array_split(shuffled, min(count, len(taught))):
            yield tuple(sample for place in places for sample in taught[place])
