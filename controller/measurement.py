"""What a control law is told, and what each of them keeps of it. Entropies are in nats per response token."""

import msgspec

from entrostat.protocol.messages import PolicyVersion

# Entropies below this are the same to a law that works with logarithms: a policy without any.
RESOLUTION_NATS = 1e-6


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One order's entropy: the mean over its response tokens, of the policy `version`, before the step it was for."""

    version: PolicyVersion
    entropy: float  # nats per token; NaN where it could not be measured
    tokens: int


class Intake(msgspec.Struct, frozen=True, kw_only=True):
    """What every law keeps of its measurements."""

    last_version: PolicyVersion | None = None
    accepted: int = 0
    frozen: int = 0  # measurements refused
    tokens: int = 0  # of the orders that make H_0 …
    nats: float = 0.0  # … and their summed entropy
    initial_entropy: float | None = None  # H_0, once known
