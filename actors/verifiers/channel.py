"""The pool's end of a socket pair: frames out and in, and nothing in it ever waits."""

import contextlib
import socket
from collections import deque
from typing import Generic, TypeVar

import msgspec

from entrostat.actors.verifiers.frames import take

READ_BYTES = 1 << 16  # at a time

T = TypeVar("T")


class Channel(Generic[T]):
    """Sends what fits and keeps the rest; gives what has come, decoded."""

    def __init__(self, end: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._end = end
        self._end.setblocking(False)
        self._decoder = decoder
        self._received = bytearray()
        self._unsent: deque[tuple[memoryview, socket.socket | None]] = deque()
        self.ended = False  # the other end is closed, or sent what can't be understood
        self.complaint = ""

    def fileno(self) -> int:
        """For a selector."""
        return self._end.fileno()

    @property
    def unsent(self) -> bool:
        """There is more to write as soon as the other end reads."""
        return bool(self._unsent)

    def send(self, frame: bytes, passed: socket.socket | None = None) -> None:
        """Sends a frame, and a socket along with it, which is closed here then."""
        self._unsent.append((memoryview(frame), passed))
        self.flush()

    def flush(self) -> None:
        """Writes what the other end takes now."""
        try:
            while self._unsent and not self.ended:
                view, passed = self._unsent[0]
                if passed is None:
                    sent = self._end.send(view)
                else:
                    sent = socket.send_fds(self._end, [view], [passed.fileno()])
                    passed.close()
                if sent < len(view):
                    self._unsent[0] = (view[sent:], None)
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True

    def receive(self) -> list[T]:
        """The frames that a read completes; see `ended` for the end."""
        try:
            piece = self._end.recv(READ_BYTES)
            self.ended = self.ended or not piece
            self._received += piece
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True
        frames: list[T] = []
        try:
            while (frame := take(self._received, self._decoder)) is not None:
                frames.append(frame)
        except msgspec.DecodeError as error:
            self.ended, self.complaint = True, f"it sent what is no reply ({error})"
        return frames

    def close(self) -> None:
        """Closes this end, and sockets that were to be sent."""
        for _, passed in self._unsent:
            if passed is not None:
                passed.close()
        self._unsent.clear()
        with contextlib.suppress(OSError):
            self._end.close()
