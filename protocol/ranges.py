"""The ranges settings are made of, and the shape of every section."""

from typing import Annotated

import msgspec
from msgspec import Meta

# Of anything that is measured: what is beyond makes infinities somewhere, and is a slip of the pen.
LARGEST = 1e12
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Rate = Annotated[float, Meta(ge=1e-6, le=1)]  # a share that is not nothing, or what ln H may change by in an order
Ratio = Annotated[float, Meta(ge=1e-6, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]
OpenShare = Annotated[float, Meta(ge=0, lt=1)]
MOST = 2**48  # of anything that is counted
Count = Annotated[int, Meta(ge=1, le=MOST)]
CountOrZero = Annotated[int, Meta(ge=0, le=MOST)]
# Of what is waited for: at most 30 years, as clocks take no more.
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
Threads = Annotated[int, Meta(ge=1, le=4096)]  # more than any machine has cores
ThreadsOrZero = Annotated[int, Meta(ge=0, le=4096)]
# vLLM draws at 0.01 whatever is below it, which the learner would take for another policy, and allows no more than 2.
Temperature = Annotated[float, Meta(ge=0.01, le=2)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of every section: frozen, by keyword, and without room for a misspelt key."""
