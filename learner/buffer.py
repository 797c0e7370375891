"""The sample buffer: finished groups, as the frames they came in, until the learner takes them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import ResourceError


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The frames of an order in the order's sequence, or which of its groups are not there."""

    frames: tuple[UInt8, ...]
    missing: tuple[int, ...]  # lease ids


class SampleBuffer:
    """Frames by lease id, at most `limit_bytes` of them.

    What it holds is bounded by the leases the controller grants; one that fills up all the same is too small for its
    batches. Groups that it dropped would be sampled again and dropped again without end: it refuses instead.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._frames: dict[int, UInt8] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, lease_id: int, frame: UInt8) -> None:
        """Keeps a copy of the frame; one that was sent again takes the place of the first.

        Raises:
            ResourceError: there is no room for it.
        """
        earlier = self._frames.get(lease_id)
        size = self.bytes + frame.nbytes - (0 if earlier is None else earlier.nbytes)
        if size > self._limit:
            raise ResourceError(
                f"the sample buffer holds {len(self)} groups, {self.bytes:,} bytes, and has no room for "
                f"{frame.nbytes:,} more, its limit is {self._limit:,}: lower batch.prompts, "
                "rollout.samples_per_prompt, rollout.max_response_tokens or rollout.max_staleness, or use a machine "
                "with more memory"
            )
        # A copy: the caller's array is a view of memory that it, or Ray, takes back.
        self._frames[lease_id] = frame.copy()
        self.bytes = size

    def take(self, lease_ids: Sequence[int]) -> Taken:
        """Hands out all of these groups and forgets them; if one is missing, hands out none and keeps the others."""
        missing = tuple(lease_id for lease_id in lease_ids if lease_id not in self._frames)
        if missing:
            return Taken(frames=(), missing=missing)
        frames = tuple(self._frames[lease_id] for lease_id in lease_ids)
        self.discard(lease_ids)
        return Taken(frames=frames, missing=())

    def retain(self, lease_ids: Iterable[int]) -> None:
        """Forgets all groups but these."""
        kept = set(lease_ids)
        self.discard([lease_id for lease_id in self._frames if lease_id not in kept])

    def discard(self, lease_ids: Iterable[int]) -> None:
        """Forgets these groups; those it does not hold are none of its business."""
        for lease_id in lease_ids:
            frame = self._frames.pop(lease_id, None)
            if frame is not None:
                self.bytes -= frame.nbytes
