"""One TCP connection: requests in, one at a time, and the moment the caller leaves."""

import asyncio
import hashlib
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import httptools

from proxy.fake_ollama.calls import SeenCall

if TYPE_CHECKING:
    from proxy.fake_ollama.server import FakeOllama

# How long what comes after an early answer is still read (net/http's rstAvoidanceDelay).
LINGER_SECONDS = 0.5
LINGER_ZERO = struct.pack("ii", 1, 0)
MAX_PIPELINED = 64
BLOBS = b"/api/blobs/"
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
)


class Upload:
    """A body that is weighed while it comes, and not kept: it may be gigabytes."""

    def __init__(self) -> None:
        self.size = 0
        self.whole = asyncio.Event()
        self._hash = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self._hash.update(piece)

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


@dataclass(slots=True)
class Request:
    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool
    http11: bool
    host: str | None
    origin: str | None
    upload: Upload | None = None

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: "FakeOllama", number: int) -> None:
        self.server = server
        self.number = number
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.seen: SeenCall | None = None
        # Steers by /_fake/ and has carried no call of Ollama's: not counted.
        self.steering = False
        self.calls = 0
        self.closing = False
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[Request] = deque()
        self._writable: asyncio.Future[None] | None = None
        # The peer does not read: what was written waits here.
        self.paused = False
        self._lost = False
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._host: bytes | None = None
        self._origin: bytes | None = None
        self._expects = False
        self._upload: Upload | None = None

    # Of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._caller_left()
        self.resume_writing()
        self.server.closed(self)

    def eof_received(self) -> None:
        # Half-closed counts as gone: Go cancels the request's context on it.
        self._caller_left()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            self._refuse()

    def pause_writing(self) -> None:
        self.paused = True
        self.server.log.changed()

    def resume_writing(self) -> None:
        self.paused = False
        if self._writable and not self._writable.done():
            self._writable.set_result(None)

    # Of the parser

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        lower = name.lower()
        if lower == b"host":
            self._host = value
        elif lower == b"origin":
            self._origin = value
        elif lower == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        if self._expects:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._target.startswith(BLOBS) and self.parser.get_method() == b"POST":
            # Served while it comes, as Go does: the answer may be there before the body.
            self._upload = Upload()
            self._take()

    def on_body(self, body: bytes) -> None:
        if self._upload is None:
            self._body.append(body)
            return
        self._upload.add(body)
        if self.seen is not None:
            self.seen.received = self._upload.size
            self.server.log.changed()

    def on_message_complete(self) -> None:
        if self._upload is None:
            self._take()
        else:
            self._upload.whole.set()
        self._begin()

    def _take(self) -> None:
        parser = self.parser
        http11 = parser.get_http_version() == "1.1"
        if http11 and self._host is None:
            self._refuse()
            return
        request = Request(
            parser.get_method().decode("latin-1"),
            self._target.decode("latin-1"),
            self._headers,
            b"".join(self._body),
            parser.should_keep_alive() and not parser.should_upgrade(),
            http11,
            None if self._host is None else self._host.decode("latin-1"),
            None if self._origin is None else self._origin.decode("latin-1"),
            self._upload,
        )
        if self._task is None:
            self._serve(request)
            return
        self._waiting.append(request)
        if len(self._waiting) > MAX_PIPELINED:
            self.transport.pause_reading()

    # Of the server

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def stop_reading(self) -> None:
        self.transport.pause_reading()

    def go_on_reading(self) -> None:
        self.transport.resume_reading()

    async def drained(self) -> None:
        """Wait while the peer does not read."""
        while self.paused and not self._lost:
            self._writable = self.loop.create_future()
            await self._writable

    async def flushed(self) -> None:
        """Wait until what was written is with the kernel."""
        await asyncio.sleep(0)
        while not self._lost and self.transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.0005)

    def reset(self) -> None:
        self.closing = True
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.transport.abort()

    def close(self) -> None:
        self.closing = True
        if self._upload is not None and not self._upload.whole.is_set() and self.transport.can_write_eof():
            # As Go does: closing with bytes unread would reset the connection, and the reset overtake the answer.
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def abandon(self) -> None:
        """The server stops: nobody left, nothing is recorded."""
        self.closing = True
        if self._task:
            self._task.cancel()
        self.transport.abort()

    def close_when_idle(self, seconds: float) -> None:
        self.loop.call_later(seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self._task is None and not self._lost:
            self.close()

    # Inside

    def _serve(self, request: Request) -> None:
        self._task = self.loop.create_task(self.server.serve(self, request))
        self._task.add_done_callback(self._served)

    def _served(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        self.seen = None
        if self._lost or self.closing or self.transport.is_closing():
            return
        if self._waiting:
            self.transport.resume_reading()
            self._serve(self._waiting.popleft())

    def _caller_left(self) -> None:
        self._waiting.clear()
        if self._task is None:
            return
        if self.seen and not self.seen.complete and not self.closing:
            self.server.log.left(self.seen)
        self.closing = True
        self._task.cancel()

    def _refuse(self) -> None:
        self.server.log.totals.bad_requests += 1
        if self._task is None:
            self.write(BAD_REQUEST)
        self.close()
