"""A deterministic run's places: what the n-th lease samples, and under which version, follows from n alone.

With B prompts a batch, place p belongs to batch `b = p // B`, which is trained by the order of step b. It is sampled
under the version of step `max(b − S, c)`, S the staleness and c the last step up to b at which a checkpoint is made (or
at which the branch began): so a run that goes on from a checkpoint needs no weights but those in it. A lease that ends
without its group is granted again in the same place, with the same seed.
"""

from bisect import insort
from collections.abc import Container

from entrostat.controller.prompts import PromptOrder


class FixedPlaces:
    """Places in the order they are granted.

    Args:
        batch: B.
        max_staleness: S.
        every: steps between checkpoints.
        prompts: of the run.
        start: the branch's first step.
    """

    def __init__(self, *, batch: int, max_staleness: int, every: int, prompts: PromptOrder, start: int) -> None:
        self._batch, self._staleness, self._every = batch, max_staleness, every
        self._prompts = prompts
        self._start = start
        self.next = start * batch
        self.again: list[int] = []  # ended without their group, ascending

    def first(self) -> int:
        """The place that is granted next."""
        return self.again[0] if self.again else self.next

    def step_of(self, place: int) -> int:
        """The policy step that samples the place."""
        batch = place // self._batch
        return max(batch - self._staleness, batch // self._every * self._every, self._start)

    def prompt_of(self, place: int) -> int:
        """The prompt of the place."""
        return self._prompts.at(place)

    def take(self) -> int:
        """Hands out the next place."""
        if self.again:
            return self.again.pop(0)
        self.next += 1
        return self.next - 1

    def give_back(self, place: int) -> None:
        """The place's lease ended without its group."""
        insort(self.again, place)

    def batch_of(self, step: int, ready: Container[int]) -> tuple[int, ...]:
        """The places that the order of `step` trains, in order; `()` while one is not in `ready`."""
        places = range(step * self._batch, (step + 1) * self._batch)
        return tuple(places) if all(place in ready for place in places) else ()
