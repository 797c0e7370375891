"""What a rollout actor works with, gathered: ports, verifiers and meters, each behind a small protocol."""

import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.metrics import Metric
from entrostat.protocol.ports import BufferPort, ControllerPort, Engine, Tokenizer


class Verifiers(Protocol):
    """Judges responses in other processes; both calls return at once."""

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        """Queues a response."""
        ...

    def collect(self) -> list[tuple[object, Verdict]]:
        """Verdicts since the last call, with their tickets."""
        ...


class Meter(Protocol):
    """Where measurements go; `protocol.metrics.Exporter` is one."""

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Counts up."""
        ...

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets a gauge."""
        ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Enters a value in a histogram."""
        ...


class Seams(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an actor works with."""

    engine: Engine
    controller: ControllerPort
    buffer: BufferPort
    verifiers: Verifiers
    tokenizer: Tokenizer
    meter: Meter
    clock: Callable[[], float] = time.monotonic
    idle_seconds: float = 0.005  # slept when there is nothing to do; 0 where time is not real
