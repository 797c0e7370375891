"""Whose turn each place of an epoch is: an endless sequence that follows from the seed, the levels and the weights.

Shuffled, every stretch of an epoch holds each level in its share, within one prompt of each: batches differ less in
difficulty, and so in entropy, than a draw would make them.

Without weights an epoch has every prompt once. With weights a task takes its share of the epoch's places (as many as
there are prompts) and walks through permutations of its own, one after the other, whatever the epochs: of two prompts
of a task none ever had two turns more than the other. The tasks' walks are merged so that every stretch of an epoch
holds each task in its share, too.
"""

from collections.abc import Sequence

import numpy as np

from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import TaskError

CHUNK_ROWS = 1 << 20
WALK, MERGE = 1, 2  # last words of seeds: what is drawn by them


class WeightedTasks:
    """Tasks with weights: prompts are theirs by ranges of ids, in order.

    Args:
        prompts: of each task.
        weights: of each task, above 0.

    Raises:
        TaskError: a task's share of an epoch is less than one place.
    """

    def __init__(self, prompts: Sequence[int], weights: Sequence[float]) -> None:
        self.prompts = tuple(prompts)
        self.places = _places(self.prompts, weights)  # of each task in every epoch

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First id of each task, and the one after its last."""
        ends = np.cumsum(self.prompts).tolist()
        return [(end - count, end) for end, count in zip(ends, self.prompts, strict=True)]


class Turns:
    """The sequence of turns, epoch by epoch.

    Args:
        prompts: how many there are; ids are dense from 0.
        seed: of the permutations.
        shuffle: False takes them by id.
        levels: `[prompts]` number of each one's level; without them all are of one.
        tasks: None where they have no weights.
    """

    def __init__(
        self, prompts: int, seed: int, *, shuffle: bool, levels: Int32 | None, tasks: WeightedTasks | None
    ) -> None:
        self._prompts, self._seed, self._shuffle, self._tasks = prompts, seed, shuffle, tasks
        self._levels = np.zeros(prompts, dtype=np.int32) if levels is None else levels

    def of_epoch(self, epoch: int) -> Int32:
        """`[prompts]` the prompt of each place."""
        if self._tasks is not None:
            return self._merged(epoch, self._tasks)
        if not self._shuffle:
            return np.arange(self._prompts, dtype=np.int32)
        return stratified(self._levels, np.random.default_rng([self._seed, epoch]))

    def _merged(self, epoch: int, tasks: WeightedTasks) -> Int32:
        generator = np.random.default_rng([self._seed, epoch, 0, MERGE])
        order = np.empty(self._prompts, dtype=np.int32)
        place = np.empty(self._prompts, dtype=np.float64)
        start = 0
        for task, count in enumerate(tasks.places):
            end = start + count
            self._walk(task, tasks.ranges[task], epoch * count, order[start:end])
            # The i-th of a task's n places is somewhere in the i-th n-th of the epoch: its walk keeps its order.
            for chunk in range(0, count, CHUNK_ROWS):
                rows = np.arange(chunk, min(chunk + CHUNK_ROWS, count))
                within = generator.random(rows.size) if self._shuffle else 0.5
                place[start + chunk : start + chunk + rows.size] = (rows + within) / count
            start = end
        # A stable sort needs half as much memory again, and random places are never equal.
        by_place = np.argsort(place, kind=None if self._shuffle else "stable")
        del place
        return order[by_place]

    def _walk(self, task: int, ids: tuple[int, int], position: int, out: Int32) -> None:
        """Writes the task's prompts from a position of its walk on."""
        first, end = ids
        written = 0
        while written < out.size:
            number, skipped = divmod(position + written, end - first)
            if self._shuffle:
                generator = np.random.default_rng([self._seed, number, task, WALK])
                order = stratified(self._levels[first:end], generator)[skipped:]
            else:
                order = np.arange(skipped, end - first, dtype=np.int32)
            taken = order[: out.size - written]
            np.add(taken, first, out=out[written : written + taken.size], casting="same_kind")
            written += taken.size


def stratified(levels: Int32, generator: np.random.Generator) -> Int32:
    """A permutation in which the i-th of a level's n prompts stands somewhere in the i-th n-th.

    With 10 M prompts every array counts: what is no longer needed is given back at once.
    """
    permutation = np.arange(levels.size, dtype=np.int32)
    generator.shuffle(permutation)
    levels = levels[permutation]
    counts = np.bincount(levels)
    by_level = np.argsort(levels, kind="stable")
    rank = np.empty(levels.size, dtype=np.int32)
    rank[by_level] = np.arange(levels.size, dtype=np.int32) - np.repeat(
        (np.cumsum(counts) - counts).astype("i4"), counts
    )
    del by_level
    place = generator.random(levels.size)
    place += rank
    del rank
    for start in range(0, levels.size, CHUNK_ROWS):
        place[start : start + CHUNK_ROWS] /= counts[levels[start : start + CHUNK_ROWS]]
    del levels
    order = np.argsort(place)
    del place
    return permutation[order]


def _places(prompts: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Places of each task in an epoch: its quota, rounded so that they sum up (largest remainders first)."""
    if len(prompts) != len(weights) or min(*prompts, 0) < 0:
        raise TaskError(f"{len(weights)} tasks have weights, and prompts were told of {len(prompts)}: one for each")
    total = sum(prompts)
    quotas = [total * weight / sum(weights) for weight in weights]
    for number, quota in enumerate(quotas, start=1):
        if quota < 1.0:
            raise TaskError(
                f"task {number} has weight {weights[number - 1]:g} of {sum(weights):g} together: less than one of the "
                f"{total} places of an epoch. Raise its weight, or leave it out"
            )
    places = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda task: places[task] - quotas[task])
    for task in by_remainder[: total - sum(places)]:
        places[task] += 1
    return tuple(places)
