"""Which prompt is leased next: epochs of seeded permutations, with what came back leased first."""

from collections import deque
from collections.abc import Container, Iterable

import msgspec
import numpy as np

from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import CheckpointDamaged

CHUNK_ROWS = 1 << 20


class PromptPosition(msgspec.Struct, frozen=True, kw_only=True):
    """Where an order of prompts stands."""

    epoch: int
    index: int  # prompts of the epoch already taken
    returned: Int32  # [n] prompt ids to be leased before the epoch goes on
    held: Int32  # [n] busy when their turn came, and still so


class PromptOrder:
    """Every prompt once an epoch, in an order that follows from the seed alone; 4 bytes a prompt.

    Shuffled, every stretch of an epoch holds each level in its share, within one prompt of each: batches differ less in
    difficulty, and so in entropy, than a draw would make them.

    A prompt that is busy (a group of it is being sampled or waits for a batch) is not taken again while any other is
    free: it is held back, and comes first once `put_back` or `freed` names it.

    Args:
        prompts: how many there are; ids are dense from 0.
        seed: of the permutations.
        shuffle: False takes them by id.
        levels: `[prompts]` number of each one's level; without them all are of one.
    """

    def __init__(self, prompts: int, seed: int, *, shuffle: bool, levels: Int32 | None = None) -> None:
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._levels = np.zeros(prompts, dtype=np.int32) if levels is None else levels
        self._epoch = 0
        self._index = 0
        self._returned: deque[int] = deque()
        self._held: dict[int, None] = {}  # busy when its turn came; in the order in which that was
        self._permutation = self._permute(0)
        self._epochs: dict[int, Int32] = {}  # permutations that `at` was asked for

    def take(self, busy: Container[int], busy_count: int) -> int:
        """The next prompt; one in `busy` (of `busy_count` different ones) only when all are."""
        if busy_count >= self._prompts:
            return self._returned.popleft() if self._returned else self._advance()
        for _ in range(len(self._returned)):
            prompt = self._returned.popleft()
            if prompt not in busy:
                return prompt
            self._held[prompt] = None
        while (prompt := self._advance()) in busy:
            self._held[prompt] = None
        return prompt

    def put_back(self, prompts: Iterable[int]) -> None:
        """Prompts whose leases ended without being trained: they are taken first."""
        for prompt in prompts:
            self._held.pop(prompt, None)
            self._returned.append(prompt)

    def freed(self, prompt: int) -> None:
        """A prompt that is no longer busy; if its turn came meanwhile, it is taken next."""
        if prompt in self._held:
            del self._held[prompt]
            self._returned.append(prompt)

    def at(self, place: int) -> int:
        """The prompt in a place of the endless sequence of epochs."""
        epoch, index = divmod(place, self._prompts)
        if epoch not in self._epochs:
            # A place that is taken again may belong to the epoch before.
            self._epochs = {known: order for known, order in self._epochs.items() if known >= epoch - 1}
            self._epochs[epoch] = self._permute(epoch)
        return int(self._epochs[epoch][index])

    def position(self) -> PromptPosition:
        """Where the order stands."""
        returned, held = (np.array(list(prompts), dtype=np.int32) for prompts in (self._returned, self._held))
        return PromptPosition(epoch=self._epoch, index=self._index, returned=returned, held=held)

    def unbind(self, outstanding: Iterable[int]) -> None:
        """Nothing is busy any more: prompts of `outstanding` leases come first, then those put back and held."""
        self._returned = deque(dict.fromkeys((*outstanding, *self._returned, *self._held)))
        self._held = {}

    def restore(self, position: PromptPosition) -> None:
        """Goes on from a position.

        Raises:
            CheckpointDamaged: it belongs to a run with fewer or more prompts.
        """
        known = (*position.returned.tolist(), *position.held.tolist())
        if position.index > self._prompts or any(prompt >= self._prompts for prompt in known):
            raise CheckpointDamaged(
                f"the controller's snapshot speaks of prompts the run does not have (it has {self._prompts}): "
                "resume with the tasks the run was started with"
            )
        self._epoch, self._index = position.epoch, position.index
        self._returned = deque(position.returned.tolist())
        self._held = dict.fromkeys(position.held.tolist())
        self._permutation = self._permute(self._epoch)

    def _advance(self) -> int:
        if self._index == self._prompts:
            self._epoch, self._index = self._epoch + 1, 0
            self._permutation = self._permute(self._epoch)
        self._index += 1
        return int(self._permutation[self._index - 1])

    def _permute(self, epoch: int) -> Int32:
        if not self._shuffle:
            return np.arange(self._prompts, dtype=np.int32)
        generator = np.random.default_rng([self._seed, epoch])
        permutation = np.arange(self._prompts, dtype=np.int32)
        generator.shuffle(permutation)
        # The i-th of a level's n prompts stands somewhere in the i-th n-th of the epoch. With 10 M prompts every array
        # counts: what is no longer needed is given back at once.
        levels = self._levels[permutation]
        counts = np.bincount(levels)
        by_level = np.argsort(levels, kind="stable")
        rank = np.empty(self._prompts, dtype=np.int32)
        rank[by_level] = np.arange(self._prompts, dtype=np.int32) - np.repeat(
            (np.cumsum(counts) - counts).astype("i4"), counts
        )
        del by_level
        place = generator.random(self._prompts)
        place += rank
        del rank
        for start in range(0, self._prompts, CHUNK_ROWS):
            place[start : start + CHUNK_ROWS] /= counts[levels[start : start + CHUNK_ROWS]]
        del levels
        order = np.argsort(place)
        del place
        return permutation[order]
