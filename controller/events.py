"""What can happen to the controller, and what it answers: the whole of its surface, as values.

Times are seconds on a clock that never goes back; the controller has none of its own.
"""

import msgspec

from entrostat.controller.snapshot import ControllerState
from entrostat.protocol.messages import GroupsMissing, Lease, PolicyVersion, Pulse, StepReport, TrainOrder


class Rewound(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A branch begins at the weights of `step`: all that came after `state` is void, its leases end as rewound."""

    branch: int
    step: int
    state: ControllerState | None  # of an earlier branch at that step; None knows nothing yet
    at: float


class Restarted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Another process took the controller's work over. Actors could not speak meanwhile: their leases are renewed."""

    term: int  # which life in this branch; part of every lease's id from now on
    at: float


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

    version: PolicyVersion
    checksum: int  # of the weights, see `WeightsManifest`


class Missing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The order under way can't be trained: the buffer lacks groups of it."""

    missing: GroupsMissing
    at: float


class Scaled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Somebody asked for another number of rollout actors."""

    actors: int


class Snapshotted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A checkpoint is made. Answered by a `Snapshot`."""


Event = (
    Rewound | Restarted | Pulsed | Ticked | OrderRequested | StepReported | Published | Missing | Scaled | Snapshotted
)


class Reply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the actor whose pulse it was: a `PulseReply`, with the name of a version instead of its manifest."""

    leases: tuple[Lease, ...]
    ended: tuple[int, ...]
    offer: PolicyVersion | None
    fenced: bool


class Order(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the learner."""

    order: TrainOrder


class Discard(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the sample buffer: nobody will ask for the groups of these leases again."""

    lease_ids: tuple[int, ...]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To the checkpoint: the digest of the controller's state, which goes along beside it."""

    version: PolicyVersion
    digest: int  # xxh3-64 of the state's frame


Command = Reply | Order | Discard | Snapshot
