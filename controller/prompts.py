"""Which prompt is leased next: epochs of seeded permutations, with what came back leased first."""

from collections import deque
from collections.abc import Callable, Container, Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from entrostat.controller.turns import Turns, WeightedTasks
from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import CheckpointDamaged

BLOCK = 4096  # places whose numbers are drawn at once
DRAW = 3  # last word of their seeds, as in turns.py


class PromptPosition(msgspec.Struct, frozen=True, kw_only=True):
    """Where an order of prompts stands."""

    epoch: int
    index: int  # prompts of the epoch already taken
    returned: Int32  # [n] prompt ids to be leased before the epoch goes on
    held: Int32  # [n] busy when their turn came, and still so
    passed_over: int = 0  # turns since the run began


class PromptOrder:
    """Prompts in the order of their turns (turns.py), which follows from the seed alone; 4 bytes a prompt.

    A prompt that is busy (a group of it is being sampled or waits for a batch) is not taken again while any other is
    free: it is held back, and comes first once `put_back` or `freed` names it.

    With `chance` a prompt whose turn comes is drawn with this probability, and else passed over until its next turn.
    That is decided once a turn: whatever is put back or held was drawn. The random number of a place follows from seed,
    epoch and place, so that a position says all.

    Args:
        prompts: how many there are; ids are dense from 0.
        seed: of the permutations.
        shuffle: False takes them by id.
        levels: `[prompts]` number of each one's level; without them all are of one.
        tasks: with their weights; None where they have none.
        chance: the probability of a prompt's being drawn now, which must be bounded away from 0; None draws all.
    """

    def __init__(
        self,
        prompts: int,
        seed: int,
        *,
        shuffle: bool,
        levels: Int32 | None = None,
        tasks: WeightedTasks | None = None,
        chance: Callable[[int], float] | None = None,
    ) -> None:
        self._prompts = prompts
        self._seed = seed
        self._turns = Turns(prompts, seed, shuffle=shuffle, levels=levels, tasks=tasks)
        self._chance = chance
        self._epoch = 0
        self._index = 0
        self.passed_over = 0  # turns since the run began
        self._returned: deque[int] = deque()
        self._held: dict[int, None] = {}  # busy when its turn came; in the order in which that was
        self._order = self._turns.of_epoch(0)
        self._epochs: dict[int, Int32] = {}  # those that `at` was asked for
        self._block: tuple[int, int] | None = None  # epoch, and place over BLOCK, of …
        self._uniform: NDArray[np.float64] = np.empty(0)

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
        """The prompt whose turn a place of the endless sequence of epochs is; nobody is passed over here."""
        epoch, index = divmod(place, self._prompts)
        if epoch not in self._epochs:
            # A place that is taken again may belong to the epoch before.
            self._epochs = {known: order for known, order in self._epochs.items() if known >= epoch - 1}
            self._epochs[epoch] = self._turns.of_epoch(epoch)
        return int(self._epochs[epoch][index])

    def position(self) -> PromptPosition:
        """Where the order stands."""
        returned, held = (np.array(list(prompts), dtype=np.int32) for prompts in (self._returned, self._held))
        return PromptPosition(
            epoch=self._epoch, index=self._index, returned=returned, held=held, passed_over=self.passed_over
        )

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
        self._epoch, self._index, self.passed_over = position.epoch, position.index, position.passed_over
        self._returned = deque(position.returned.tolist())
        self._held = dict.fromkeys(position.held.tolist())
        self._order = self._turns.of_epoch(self._epoch)

    def _advance(self) -> int:
        """The next place's prompt that is not passed over."""
        while True:
            if self._index == self._prompts:
                self._epoch, self._index = self._epoch + 1, 0
                self._order = self._turns.of_epoch(self._epoch)
            index, prompt = self._index, int(self._order[self._index])
            self._index += 1
            if self._chance is None or self._drawn(index) < self._chance(prompt):
                return prompt
            self.passed_over += 1

    def _drawn(self, index: int) -> float:
        """A number in [0, 1) that follows from the seed, the epoch and the place in it."""
        block, within = divmod(index, BLOCK)
        if self._block != (self._epoch, block):
            self._block = (self._epoch, block)
            self._uniform = np.random.default_rng([self._seed, self._epoch, block, DRAW]).random(BLOCK)
        return self._uniform.item(within)
