"""What can happen to the controller, and what it answers: the whole of its surface, as values.

Times are seconds on a clock that never goes back; the controller has none of its own.
"""

import msgspec

from entrostat.protocol.messages import (
    GroupsMissing,
    Pulse,
    PulseReply,
    StepReport,
    TrainOrder,
    WeightsManifest,
)


class Pulsed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A rollout actor spoke. Answered by a `Reply`."""

    pulse: Pulse
    at: float


class Ticked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Time passed: leases may have expired."""

    at: float


class OrderRequested(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The learner is ready for its next step. Answered by an `Order` once there are enough groups."""

    at: float


class StepReported(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The learner trained the order under way."""

    report: StepReport
    at: float


class Published(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A version's weights can be pulled."""

    manifest: WeightsManifest


class Missing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The order under way can't be trained: the buffer lacks groups of it."""

    missing: GroupsMissing
    at: float


Event = Pulsed | Ticked | OrderRequested | StepReported | Published | Missing


class Reply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the actor whose pulse it was."""

    reply: PulseReply


class Order(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the learner."""

    order: TrainOrder


class Discard(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the sample buffer: nobody will ask for the groups of these leases again."""

    lease_ids: tuple[int, ...]


Command = Reply | Order | Discard
