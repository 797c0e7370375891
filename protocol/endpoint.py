"""A process's small HTTP server: pages to read, and at most one thing to change. Bounded in bytes and in time."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from entrostat.protocol.errors import ResourceError

CONNECTION_SECONDS = 20.0  # for all of one request: one that drips in byte by byte, too
MOST_BODY_BYTES = 1024
MOST_UNREAD_BYTES = 1 << 16  # of a body that is refused: a connection closed on unread bytes loses the answer


class Page(msgspec.Struct, frozen=True):
    """What is answered."""

    code: int
    content_type: str
    body: bytes


Get = Callable[[str], Page]  # path → page
# Path, Authorization, body; None where it is too long, of no length, or cut off.
Post = Callable[[str, str | None, bytes | None], Page]


class Endpoint:
    """Serves in threads of its own until it is closed.

    Args:
        host, port: where to listen; 0 picks a free port, see `port`.

    Raises:
        ResourceError: the port is taken.
    """

    def __init__(self, host: str, port: int, get: Get, post: Post, *, seconds: float = CONNECTION_SECONDS) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(get, post, seconds))
        except OSError as error:
            raise ResourceError(
                f"the metrics endpoint can't listen on {host}:{port} ({error.strerror}): "
                "stop what uses the port, or set monitor.port to 0 to pick a free one"
            ) from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()


def _handler(get: Get, post: Post, seconds: float) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            end = threading.Timer(seconds, self._cut)
            end.daemon = True
            end.start()
            # Whoever is cut off, or leaves, gets no answer; there is nobody to tell.
            with suppress(OSError):
                super().handle()
            end.cancel()

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

        def do_GET(self) -> None:
            self._answer(get(self.path))

        def do_POST(self) -> None:
            self._answer(post(self.path, self.headers.get("Authorization"), self._body()))

        def _body(self) -> bytes | None:
            said = self.headers.get("Content-Length", "")
            if not (said.isascii() and said.isdigit()) or len(said) > len(str(MOST_UNREAD_BYTES)):
                return None
            length = int(said)
            body = self.rfile.read(min(length, MOST_UNREAD_BYTES))
            return body if len(body) == length <= MOST_BODY_BYTES else None

        def _answer(self, page: Page) -> None:
            self.send_response(page.code)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(page.body)))
            self.end_headers()
            self.wfile.write(page.body)

        def _cut(self) -> None:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: Any) -> None:
            """A scrape every few seconds is no news."""

    return Handler
