"""Connections as httpcore wants them. Its own backends read as much as there is: 3 MiB a stalled stream on uvloop."""

# ruff: noqa: ASYNC109 - the signatures with a `timeout` are httpcore's

import asyncio
import select
import ssl
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol, TypeVar

import httpcore

from proxy.upstream.delivery import was_not_received

T = TypeVar("T")


class Listener(Protocol):
    """Who is told what comes on a connection."""

    # How many layers of TLS lie above what it wants to hear.
    depth: int
    stream: "Stream | None"

    def received(self, data: bytes) -> None: ...


class Network(httpcore.AsyncNetworkBackend):
    """Connects to one address, whatever name httpcore asks for: a call never waits for DNS (B14)."""

    def __init__(self, address: str, listener: Listener, buffer: memoryview) -> None:
        """`buffer`: where reads go, shared by the connections of one loop; no more than it holds is read at once."""
        self._address = address
        self._listener = listener
        self._buffer = buffer

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            _, pipe = await loop.create_connection(lambda: Pipe(loop, self._buffer), self._address, port)
        except OSError as exc:
            raise httpcore.ConnectError(str(exc)) from exc
        return Stream(pipe, self._listener, 0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Pipe(asyncio.BufferedProtocol):
    """One connection, that reads on only when what was read has been taken. Raises httpcore's errors."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self.transport: asyncio.Transport
        self.closed = False
        # Whether a byte of the answer has come; and whether the backend cannot have had all of the request.
        self.heard = False
        self.unheard = False
        self._loop = loop
        self._buffer = buffer
        self._pieces: deque[bytes] = deque()
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        self.heard = True
        self._pieces.append(bytes(self._buffer[:size]))
        self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        return False  # closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._error = exc
        if not self.heard:
            self.unheard = was_not_received(self.transport.get_extra_info("socket"), exc)
        self.resume_writing()
        self._wake()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read(self) -> bytes:
        """The next piece; b"" at the end."""
        while not self._pieces:
            if self._error is not None:
                raise httpcore.ReadError(str(self._error)) from self._error
            if self.closed:
                return b""
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        piece = self._pieces.popleft()
        if not self._pieces and not self.closed:
            self.transport.resume_reading()
        return piece

    async def write(self, data: bytes) -> None:
        if self.closed:
            raise httpcore.WriteError("the connection is closed")
        self.transport.write(data)
        if self._writable is not None:
            await self._writable

    @property
    def is_readable(self) -> bool:
        """Whether there are bytes or an end to be read, be it that only the kernel knows."""
        if self._pieces or self.closed:
            return True
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))


class Stream(httpcore.AsyncNetworkStream):
    """A pipe with so many layers of TLS (`depth`) in it."""

    def __init__(self, pipe: Pipe, listener: Listener, depth: int) -> None:
        self.pipe = pipe
        self.requests = 0
        self._listener = listener
        self._depth = depth
        # The first bytes of an answer, waited for during an upload.
        self._ahead: asyncio.Task[bytes] | None = None
        listener.stream = self

    def read_ahead(self) -> asyncio.Task[bytes]:
        """Waits for the answer while the request is being written: httpcore would do so only after it."""
        self._ahead = asyncio.ensure_future(self.pipe.read())
        return self._ahead

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        ahead, self._ahead = self._ahead, None
        data = await (ahead or self.pipe.read())
        if self._depth == self._listener.depth:
            self._listener.received(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await unless(self._ahead, self.pipe.write(buffer))

    async def aclose(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
        self.pipe.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        pipe = self.pipe
        try:
            transport = await asyncio.get_running_loop().start_tls(
                pipe.transport, pipe, ssl_context, server_hostname=server_hostname
            )
        except OSError as exc:  # ssl.SSLError is one
            pipe.transport.abort()
            raise httpcore.ConnectError(str(exc)) from exc
        if transport is None:
            raise httpcore.ConnectError("closed the connection during the handshake")
        pipe.transport = transport
        return Stream(pipe, self._listener, self._depth + 1)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self.pipe.is_readable
        return self.pipe.transport.get_extra_info(info)

    @property
    def speaks_http2(self) -> bool:
        tls = self.get_extra_info("ssl_object")
        return tls is not None and tls.selected_alpn_protocol() == "h2"


async def unless(other: asyncio.Task[bytes] | None, work: Awaitable[T]) -> T:
    """The result of some work, unless another task ends first.

    Then raises httpcore.WriteError, upon which httpcore stops writing and reads the answer.
    """
    if other is None:
        return await work
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((working, other), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise httpcore.WriteError("answered before it had all of the request")
        return working.result()
    finally:
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
