"""What the pool and its worker processes say to each other: msgpack behind a length, over pipes.

pool → worker    Hello, then any number of batches of items
worker → pool    Ready (or the reason why not), then one verdict per item, each as soon as it is known
"""

import struct
from typing import TypeVar

import msgspec

from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.task_settings import TaskSettings

LENGTH = struct.Struct("<I")
# A worker reads what a language model wrote: were it taken over, it could at most waste so much of its parent's memory.
LARGEST_REPLY_BYTES = 1 << 16

T = TypeVar("T")


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """pool → worker, first of all: what it will judge, and its limits."""

    tasks: tuple[TaskSettings, ...]
    memory_bytes: int
    cpu_seconds: int  # for one item


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """worker → pool. Libraries are imported and limits set; `failure` says why not."""

    failure: str = ""


class Item(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """pool → worker. One response to be judged."""

    prompt: Prompt
    text: str


Batch = tuple[Item, ...]
_encoder = msgspec.msgpack.Encoder()


def pack(value: Hello | Ready | Batch | Verdict) -> bytes:
    """A value and its length in front."""
    body = _encoder.encode(value)
    return LENGTH.pack(len(body)) + body


def take(buffer: bytearray, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    """The first frame in `buffer`, which it is taken from; None while it is incomplete.

    Raises:
        msgspec.DecodeError: it is longer than any reply, or is not what the decoder expects.
    """
    if len(buffer) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(buffer)
    if length > LARGEST_REPLY_BYTES:
        raise msgspec.DecodeError(f"a reply of {length} bytes; expected at most {LARGEST_REPLY_BYTES}")
    end = LENGTH.size + length
    if len(buffer) < end:
        return None
    value = decoder.decode(memoryview(buffer)[LENGTH.size : end].tobytes())
    del buffer[:end]
    return value
