"""The seams: what one station asks of another, as small protocols. Ray stands behind some, a fake behind all."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.messages import (
    Group,
    PolicyVersion,
    Prompt,
    Pulse,
    PulseReply,
    Samples,
    Verdict,
    WeightsManifest,
)


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Draw `samples` responses to one prompt. `id` is the caller's, returned with the result."""

    id: str
    prompt_tokens: Int32  # [P]
    samples: int
    temperature: float
    max_tokens: int
    seed: int
    reproducible: bool = True  # the same seed draws the same samples, whatever else the engine has to do
    alone: bool = False  # nothing computed for another request may be used: the same bits whenever it is drawn
    prompt: Prompt  # a simulated engine answers from it; a real one never looks at it


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """All responses to one request."""

    id: str
    samples: Samples


class Engine(Protocol):
    """Something that draws samples. Owned by one thread, which calls `step` again and again."""

    @property
    def version(self) -> PolicyVersion:
        """The policy it serves."""
        ...

    @property
    def mismatch(self) -> float:
        """The largest probe difference of the version it serves, nats."""
        ...

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet returned or aborted."""
        ...

    def submit(self, request: SampleRequest) -> None:
        """Queues a request; it joins the running ones at the next step."""
        ...

    def abort(self, ids: Sequence[str]) -> None:
        """Forgets requests; they are never returned."""
        ...

    def step(self) -> list[Completion]:
        """Draws at least one token for the running requests; returns those that finished."""
        ...

    def load(self, manifest: WeightsManifest) -> None:
        """Loads a version between two steps, verifies it by its probe, and serves it.

        Raises:
            WeightsRefused: the probe disagrees; the version served before is served on.
        """
        ...

    def score(self, sequences: Sequence[Int32]) -> list[Float32]:
        """Log-probs `[n − 1]` of each sequence `[n]`'s tokens after its first, without temperature."""
        ...

    def close(self) -> None:
        """Ends the engine and its processes."""
        ...


class Tokenizer(Protocol):
    """Text ↔ token ids."""

    def encode(self, text: str) -> Int32:
        """`text` → `[P] int32`."""
        ...

    def decode(self, tokens: Int32) -> str:
        """`[T] int32` → text, special tokens left out."""
        ...


class Verifier(Protocol):
    """Judges one response; pure, and called in a process that may be killed."""

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth as an answer to `prompt`."""
        ...


class ControllerPort(Protocol):
    """The controller, as a rollout actor sees it: calls return at once, answers are collected later."""

    def send(self, pulse: Pulse) -> None:
        """Sends a pulse; at most one is under way at a time."""
        ...

    def receive(self) -> PulseReply | None:
        """The answer to the last pulse, once it is there.

        Raises:
            StationLost: the controller did not answer within its deadline.
        """
        ...


class BufferPort(Protocol):
    """The sample buffer, as a rollout actor sees it."""

    def send(self, group: Group) -> None:
        """Sends a group to the buffer; returns at once."""
        ...

    def stored(self) -> list[int]:
        """Lease ids of groups that the buffer has confirmed since the last call."""
        ...
