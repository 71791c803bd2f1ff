"""A web server on loopback that serves videos and misbehaves on schedule."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

Behaviour = Callable[["Exchange"], None]
"""Answers one request."""


@dataclass(frozen=True)
class Exchange:
    """A request and what it asks for.

    Attributes:
        handler: The connection.
        content: All of what stands at the path.
        kind: Its media type.
        first: The first byte asked for, by Range.
        last: The last byte asked for.
        closing: Set when the server closes; who waits, waits for this.
    """

    handler: BaseHTTPRequestHandler
    content: bytes
    kind: str
    first: int
    last: int
    closing: threading.Event

    @property
    def wanted(self) -> bytes:
        return self.content[self.first : self.last + 1]

    def head(self, length: int | None = None, *, kind: str | None = None) -> None:
        """Send the status and headers of a good answer, of any declared length."""
        partial = "Range" in self.handler.headers
        self.handler.send_response(206 if partial else 200)
        self.handler.send_header("Content-Type", kind or self.kind)
        self.handler.send_header(
            "Content-Length", str(len(self.wanted) if length is None else length)
        )
        if partial:
            span = f"bytes {self.first}-{self.last}/{len(self.content)}"
            self.handler.send_header("Content-Range", span)
        self.handler.end_headers()


def serve(exchange: Exchange) -> None:
    """Answer as a good server does."""
    exchange.head()
    exchange.handler.wfile.write(exchange.wanted)


def status(code: int, **headers: str) -> Behaviour:
    """Answer with an error: `status(429, retry_after="1")`."""

    def answer(exchange: Exchange) -> None:
        exchange.handler.send_response(code)
        for name, value in headers.items():
            exchange.handler.send_header(name.replace("_", "-"), value)
        exchange.handler.send_header("Content-Length", "0")
        exchange.handler.end_headers()

    return answer


def redirect(to: str) -> Behaviour:
    return status(302, location=to)


def instead(content: bytes, kind: str) -> Behaviour:
    """Answer 200 with something else."""

    def answer(exchange: Exchange) -> None:
        exchange.head(len(content), kind=kind)
        exchange.handler.wfile.write(content)

    return answer


def truncate(share: float = 0.5, *, lie: bool) -> Behaviour:
    """Send a part of what is asked for; the declared length tells, or lies that this is all."""

    def answer(exchange: Exchange) -> None:
        part = exchange.wanted[: int(len(exchange.wanted) * share)]
        exchange.head(len(part) if lie else None)
        exchange.handler.wfile.write(part)

    return answer


def reset(exchange: Exchange) -> None:
    """Break the connection half-way; what is asked for by Range from then on is served."""
    if exchange.first:
        serve(exchange)
        return
    exchange.head()
    exchange.handler.wfile.write(exchange.wanted[: len(exchange.wanted) // 2])
    exchange.handler.wfile.flush()
    # Closing with a linger of zero sends a reset, not an end.
    linger = struct.pack("ii", 1, 0)
    exchange.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    exchange.handler.connection.close()


def stall(exchange: Exchange) -> None:
    """Send the beginning and then nothing."""
    exchange.head()
    exchange.handler.wfile.write(exchange.wanted[:100])
    exchange.closing.wait()


def drip(every_s: float) -> Behaviour:
    """Send a byte now and then."""

    def answer(exchange: Exchange) -> None:
        exchange.head()
        for byte in exchange.wanted:
            exchange.handler.wfile.write(bytes([byte]))
            if exchange.closing.wait(every_s):
                return

    return answer


def declare(length: int) -> Behaviour:
    """Promise much."""

    def answer(exchange: Exchange) -> None:
        exchange.head(length)
        exchange.handler.wfile.write(exchange.wanted)

    return answer


@dataclass(frozen=True)
class _Entry:
    content: bytes
    kind: str
    behaviours: tuple[Behaviour, ...]
    after: Behaviour


class MediaServer:
    """The server; used with `with`, or by the fixture `server`.

    Attributes:
        requests: How often each path was asked for.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self._entries: dict[str, _Entry] = {}
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.port = self._http.server_address[1]

    def put(
        self,
        path: str,
        content: bytes,
        *behaviours: Behaviour,
        then: Behaviour = serve,
        kind: str = "video/mp4",
    ) -> str:
        """Put something at a path; its requests are counted anew.

        Args:
            path: Such as `/a.mp4`; without the query.
            content: What stands there.
            behaviours: How the first requests are answered, one after the other.
            then: How all later ones are.
            kind: The media type.

        Returns:
            The URL.
        """
        del self.requests[path]
        self._entries[path] = _Entry(content, kind, behaviours, then)
        return self.url(path)

    def content(self, path: str) -> bytes:
        return self._entries[path].content

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        with self._lock:
            number = self.requests[path]
            self.requests[path] += 1
        try:
            entry = self._entries.get(path)
            if entry is None:
                handler.send_error(404)
                return
            last = len(entry.content) - 1
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", "bytes=0-"))
            assert asked
            exchange = Exchange(
                handler,
                entry.content,
                entry.kind,
                first=int(asked[1]),
                last=min(last, int(asked[2] or last)),
                closing=self._closing,
            )
            schedule = entry.behaviours[number : number + 1]
            (schedule[0] if schedule else entry.after)(exchange)
        except OSError:
            pass  # the other side has gone, as it may

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler
