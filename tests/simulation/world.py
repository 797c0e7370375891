"""Virtual time: what is to happen, in order, and who lives. One seed decides all of it."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

TRACED = 60  # last events that a failure shows


class Violation(AssertionError):
    """A promise was broken."""


class World:
    """A heap of actions, and the only source of chance."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.trace: deque[str] = deque(maxlen=TRACED)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def clock(self) -> float:
        """Seconds since the world began."""
        return self.now

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Something happens `delay` seconds from now."""
        heapq.heappush(self._heap, (self.now + delay, next(self._serial), action))

    def run(self, done: Callable[[], bool], deadline: float) -> bool:
        """Lets things happen until `done`; False when the deadline passes first."""
        while not done():
            if not self._heap or self._heap[0][0] > deadline:
                self.now = max(self.now, deadline)
                return False
            self.now, _, action = heapq.heappop(self._heap)
            self.events += 1
            action()
        return True

    def note(self, text: str) -> None:
        """Keeps a line for a failure's report."""
        self.trace.append(f"{self.now:9.3f}  {text}")

    def chance(self, share: float) -> bool:
        """True in such a share of cases."""
        return self.random.random() < share


class Life:
    """One life of a party: what it sends after its end does not leave, what it is sent does not arrive."""

    def __init__(self, world: World, name: str, node: str, wake: Callable[[], None] = lambda: None) -> None:
        self.world, self.name, self.node = world, name, node
        self.alive = True
        self.paused_until = 0.0
        self.wake = wake
        self.pending: dict[Any, None] = {}  # calls that it has taken and not answered, in their order
        self.ended: list[Callable[[], None]] = []  # told of its end

    def end(self, why: str) -> None:
        """It dies."""
        if self.alive:
            self.alive = False
            self.world.note(f"{self.name} ends: {why}")
            for told in self.ended:
                told()

    def every(self, seconds: float, action: Callable[[], None]) -> None:
        """Calls `action` again and again while it lives, but not while it is paused."""

        def again() -> None:
            if not self.alive:
                return
            if self.world.now >= self.paused_until:
                action()
            self.world.after(max(seconds, self.paused_until - self.world.now), again)

        self.world.after(seconds, again)
