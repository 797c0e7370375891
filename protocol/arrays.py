"""Typed arrays: what a message's field says (`Int32`) is what a reader gets, or a named error."""

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from entrostat.protocol.errors import WireError

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

ALIGNMENT_BYTES = 64


def dtype_of(annotation: Any) -> np.dtype[Any]:
    """The dtype an array annotation such as `Int32` asks for.

    Raises:
        WireError: the annotation is not a numpy array with one concrete dtype.
    """
    arguments = get_args(annotation)
    scalar = get_args(arguments[1]) if len(arguments) == 2 else ()
    if not scalar:
        raise WireError(f"a message field is annotated {annotation!r}; expected Int32, Float32 or UInt8")
    dtype: np.dtype[Any] = np.dtype(scalar[0])
    return dtype


def aligned(offset: int) -> int:
    """The first multiple of 64 at or after `offset`, both in bytes."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def split(flat: NDArray[Any], lengths: Int32) -> list[NDArray[Any]]:
    """Views of consecutive pieces: `flat [sum(lengths)]` → one `[length]` per entry, no copy."""
    return list(np.split(flat, np.cumsum(lengths)[:-1]))
