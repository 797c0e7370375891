"""What the pool, its fork server and its workers say to each other: msgpack behind a length, over socket pairs.

pool → server    Hello, then any number of Fork (with the worker's end of its socket pair) and Kill
server → pool    Ready (or the reason why not), then Forked and Ended
pool → worker    any number of batches of items
worker → pool    Ready (or the reason why not), then one verdict per item, each as soon as it is known; Spent if it goes
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
    """pool → server, first of all: what its workers will judge, their limits, and where their folders lie."""

    tasks: tuple[TaskSettings, ...]
    root: str  # removed when the server ends
    memory_bytes: int
    cpu_seconds: int  # for one item
    loose: bool  # limits on files can be raised by a child: there is a verifier that starts some


class Fork(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """pool → server. Make a worker; its socket comes along."""

    number: int
    scratch: str  # a folder of its own, removed when it ended


class Kill(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """pool → server. End a worker and all that it started."""

    number: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """server or worker → pool. Libraries are imported, or limits set; `failure` says why not."""

    failure: str = ""
    threads: int = 1  # of the server: more than one makes forking it unsafe


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """server → pool. The worker's process, which leads a process group of that number."""

    number: int
    pid: int


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """server → pool. The worker and its group are no more; a negative `code` is a signal's number."""

    number: int
    code: int
    failure: str = ""  # why it could not be forked


class Spent(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """worker → pool. It has grown too large and goes; what it was handed and did not answer, it did not begin."""


class Item(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """pool → worker. One response to be judged."""

    prompt: Prompt
    text: str


Batch = tuple[Item, ...]
Order = Fork | Kill
ServerReply = Ready | Forked | Ended
WorkerReply = Ready | Verdict | Spent
_encoder = msgspec.msgpack.Encoder()


def pack(value: Hello | Order | ServerReply | Batch | WorkerReply) -> bytes:
    """A value and its length in front.

    Raises:
        UnicodeEncodeError: a text in it holds half a surrogate pair.
    """
    body = _encoder.encode(value)
    return LENGTH.pack(len(body)) + body


def take(buffer: bytearray, decoder: msgspec.msgpack.Decoder[T], largest: int = LARGEST_REPLY_BYTES) -> T | None:
    """The first frame in `buffer`, which it is taken from; None while it is incomplete.

    Raises:
        msgspec.DecodeError: it is longer than `largest` bytes, or is not what the decoder expects.
    """
    if len(buffer) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(buffer)
    if length > largest:
        raise msgspec.DecodeError(f"a message of {length} bytes; expected at most {largest}")
    end = LENGTH.size + length
    if len(buffer) < end:
        return None
    value = decoder.decode(memoryview(buffer)[LENGTH.size : end].tobytes())
    del buffer[:end]
    return value
