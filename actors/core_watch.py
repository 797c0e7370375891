"""An engine core that dies in a process of its own is an error with a name, never a wait without end.

vLLM notices the death and shuts its client down; but whoever waits for tokens or for an answer then waits for ever.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from entrostat.protocol.errors import StationLost

LOOK_SECONDS = 0.5


class CoreWatch:
    """Wakes those who wait for a dead core.

    Args:
        core: vLLM's client of its engine core.
    """

    def __init__(self, core: Any, *, seconds: float = LOOK_SECONDS) -> None:
        self._core: Any = core
        self._seconds = seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="core-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Looks no more, and lets go of the core: the engine is about to be ended."""
        self._closed.set()
        self._thread.join(2 * self._seconds)
        self._core = None

    def _look(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        while not self._closed.wait(self._seconds):
            if self._core.resources.engine_dead:
                self._core.outputs_queue.put_nowait(EngineDeadError())
                for waiting in list(self._core.utility_results.values()):
                    if not waiting.done():
                        waiting.set_exception(EngineDeadError())
                return


@contextmanager
def core_lives() -> Iterator[None]:
    """Around whatever asks the core.

    Raises:
        StationLost: it is dead.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise StationLost(
            "vLLM's engine core, a process of its own (rollout.engine.own_process), died or failed: look for its last "
            "words in the actor's output, and for the system's killer of processes that use too much memory"
        ) from error
