"""Bytes ↔ messages.

One message is one frame, handed to Ray as one `uint8` array:

    magic "ENTR" · schema u16 · reserved u16 · body bytes u64 · frame bytes u64 · xxh3-64 of all that follows u64
    body (msgpack) · padding · arrays, each starting at a multiple of 64 bytes

An array stands in the body as `[offset, shape, dtype]`; decoding returns views of the frame and copies nothing.
"""

import struct
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, TypeVar, overload

import msgspec
import numpy as np
import xxhash

from entrostat.protocol.arrays import UInt8, aligned, dtype_of
from entrostat.protocol.errors import ChecksumMismatch, SchemaMismatch, WireError

SCHEMA_VERSION = 6
MAGIC = b"ENTR"
HEADER = struct.Struct("<4sHHQQQ")

T = TypeVar("T")
Natural = Annotated[int, msgspec.Meta(ge=0)]


def encode(message: msgspec.Struct) -> UInt8:
    """One message as one frame `[bytes] uint8`.

    Raises:
        WireError: a field holds something that is neither a message, a plain value nor an array.
    """
    arrays: list[np.ndarray[Any, Any]] = []
    offsets: list[int] = []
    end = 0

    def reference(value: Any) -> object:
        nonlocal end
        if type(value) is not np.ndarray:  # isinstance would make its dtype unknown to the type checker
            raise WireError(f"{type(message).__name__} holds a {type(value).__name__}, which no message may carry")
        array = np.ascontiguousarray(value)
        arrays.append(array)
        offsets.append(end)
        end = aligned(end + array.nbytes)
        return [offsets[-1], list(array.shape), array.dtype.str]

    body = msgspec.msgpack.Encoder(enc_hook=reference).encode(message)
    start = aligned(HEADER.size + len(body))
    size = start + (offsets[-1] + arrays[-1].nbytes if arrays else 0)
    frame = _aligned_buffer(size)
    frame[HEADER.size : HEADER.size + len(body)] = np.frombuffer(body, np.uint8)
    frame[HEADER.size + len(body) : start] = 0
    for offset, array in zip(offsets, arrays, strict=True):
        stop = start + offset + array.nbytes
        frame[start + offset : stop] = array.reshape(-1).view(np.uint8)
        frame[stop : aligned(stop)] = 0  # equal messages are equal bytes
    digest = xxhash.xxh3_64_intdigest(frame.data[HEADER.size :])
    frame[: HEADER.size] = np.frombuffer(HEADER.pack(MAGIC, SCHEMA_VERSION, 0, len(body), size, digest), np.uint8)
    return frame


@overload
def decode(frame: UInt8 | bytes, kind: type[T]) -> T: ...
@overload
def decode(frame: UInt8 | bytes, kind: UnionType) -> Any: ...
def decode(frame: UInt8 | bytes, kind: Any) -> Any:
    """The message in a frame; its arrays are read-only views of the frame.

    Args:
        frame: `[bytes] uint8`, as `encode` made it.
        kind: the message type, or a union of them, that the reader expects.

    Raises:
        SchemaMismatch: another version of the protocol wrote the frame.
        ChecksumMismatch: the frame changed on the way.
        WireError: it is no frame, is cut short, or holds another message.
    """
    view = (frame.data if isinstance(frame, np.ndarray) else memoryview(frame)).toreadonly()
    body_bytes = _check(view)
    start = aligned(HEADER.size + body_bytes)

    def array(annotation: type, value: object) -> object:
        dtype = dtype_of(annotation)
        offset, shape, name = _reference(value)
        if np.dtype(name) != dtype:
            raise WireError(f"an array came as {name}; expected {dtype.str}")
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(view, dtype, count, start + offset).reshape(shape)

    try:
        return _decoder(kind, array).decode(view[HEADER.size : HEADER.size + body_bytes])
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"a frame of {len(view)} bytes does not hold a {_name(kind)}: {error}") from error


def first_frame(content: memoryview) -> memoryview:
    """The frame at the start of `content`, checked.

    Raises:
        SchemaMismatch, ChecksumMismatch, WireError: as `decode`.
    """
    if len(content) >= HEADER.size:
        size = HEADER.unpack(content[: HEADER.size])[4]
        content = content[: max(HEADER.size, min(size, len(content)))]
    _check(content)
    return content


def digest(frame: UInt8) -> int:
    """The checksum in a frame's header: equal messages have equal ones."""
    found: int = HEADER.unpack(frame.data[: HEADER.size])[-1]
    return found


def _check(view: memoryview) -> int:
    """Verifies a frame's header and checksum; returns the length of its body in bytes."""
    if len(view) < HEADER.size or bytes(view[:4]) != MAGIC:
        raise WireError(f"{len(view)} bytes came that don't start with {MAGIC!r}; expected an Entrostat message")
    _, schema, reserved, body_bytes, size, digest = HEADER.unpack(view[: HEADER.size])
    if schema != SCHEMA_VERSION:
        raise SchemaMismatch(
            f"a message of protocol schema {schema} came, this process reads {SCHEMA_VERSION}: "
            "run the same release of Entrostat on every node"
        )
    if reserved or size != len(view) or HEADER.size + body_bytes > size:
        raise WireError(f"a message of {size} bytes came as {len(view)} bytes: it was cut short or padded on the way")
    if xxhash.xxh3_64_intdigest(view[HEADER.size :]) != digest:
        raise ChecksumMismatch(f"a message of {size} bytes does not match its checksum: it was damaged on the way")
    return int(body_bytes)


def _reference(value: object) -> tuple[int, list[int], str]:
    return msgspec.convert(value, tuple[Natural, list[Natural], str])


def _decoder(kind: type[T], hook: Callable[[type, object], object]) -> msgspec.msgpack.Decoder[T]:
    return msgspec.msgpack.Decoder(kind, dec_hook=hook)


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _aligned_buffer(size: int) -> UInt8:
    """`[size] uint8` whose first byte lies at a multiple of 64, so that every array in it does."""
    raw = np.empty(size + 64, np.uint8)
    shift = -raw.ctypes.data % 64
    return raw[shift : shift + size]
