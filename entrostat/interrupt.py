"""The user's wish to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupt:
    """The first signal is noted, so that the step can be finished and saved; the second stops at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = False
        self._say = say

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM over for as long as the run goes."""
        earlier = {number: signal.signal(number, self._noted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _noted(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this step, and saving; once more stops at once")
