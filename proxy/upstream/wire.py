"""Keep-alive HTTP/1.1 towards one backend, on asyncio transports and httptools.

An answer exists only between `exchange()` and its `close()`. The connection goes back to the pool when the answer was
read to its end and the backend did not object; in every other case it is aborted, which is how Ollama learns that
nobody waits any more. Deadlines are the caller's (Call.deadline); only connecting has one here.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from itertools import chain

import httptools

from proxy.errors import BrokenAnswer, StaleConnection, Unreachable
from proxy.upstream.delivery import was_not_received

# The most that is read from a backend, and handed on, at once.
READ_BYTES = 32 << 10
# Reading pauses when a client is this far behind.
HIGH_WATER = 32 << 10
MAX_HEAD = 64 << 10
# Bytes of framing (chunk sizes and extensions, trailers) between two bytes of the body.
MAX_OVERHEAD = 64 << 10
# What a piece of the body costs besides its bytes; a backend that sends them one by one must not fill our memory.
PIECE_COST = 64
MAX_INTERIM_ANSWERS = 8
MAX_IDLE_CONNECTIONS = 64
# Dropped before a proxy in front of the backend would; Ollama itself never does.
IDLE_SECONDS = 20.0

_BODILESS = frozenset((204, 304))
# Our own line of a request's head: no value of a client's header can hold it, for it cannot hold a line break.
_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to connect. `addresses` are literals: a call never waits for DNS."""

    addresses: tuple[str, ...]
    port: int
    tls: ssl.SSLContext | None
    server_hostname: str | None
    connect_seconds: float


class Connection(asyncio.BufferedProtocol):
    """One connection; carries one exchange at a time. Also the callbacks of its parser.

    `buffer` is where reads go, shared by connections of one loop. (uvloop's own holds 256 KiB, more than a stream whose
    client does not read may cost.)
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_chunks",
        "_closed",
        "_ended",
        "_error",
        "_head_done",
        "_head_only",
        "_headers",
        "_interim",
        "_keep",
        "_loop",
        "_overhead",
        "_parser",
        "_paused",
        "_read_bytes",
        "_unheard",
        "_until_eof",
        "_waiter",
        "_writable",
        "idle_since",
        "requests",
        "transport",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self._loop = loop
        self._buffer = buffer
        self.transport: asyncio.Transport | None = None
        self.requests = 0
        self.idle_since = 0.0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        # What an upload waits for while the backend is behind with reading.
        self._writable: asyncio.Future[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._read_bytes = 0
        self._overhead = 0
        self._interim = 0
        self._head_done = False
        self._head_only = False
        self._ended = False
        self._keep = False
        self._until_eof = False
        self._paused = False
        self._unheard = False
        self._error: str | None = None

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        if self._ended or self._error is not None or not self.requests:
            # Bytes that nobody asked for: whatever they are, they must not become the next call's answer.
            self._fail("bytes after the end of the answer")
            return
        self._read_bytes += size
        self._overhead += size
        try:
            self._parser.feed_data(self._buffer[:size])
        except httptools.HttpParserUpgrade:
            self._fail("switched protocols")
        except (httptools.HttpParserError, BrokenAnswer) as exc:
            self._fail(f"not valid HTTP: {exc}")
        if self._overhead > MAX_OVERHEAD and not self._ended:
            self._fail(f"more than {MAX_OVERHEAD} bytes of head or framing")
        if self._buffered > HIGH_WATER and not self._paused and not self._ended and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        return False  # closes the transport; connection_lost decides what that means

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self._until_eof and exc is None and self._error is None:
            self._ended = True
        elif not self._ended and self._error is None:
            self._error = f"closed the connection ({exc or 'EOF'})"
            sock = self.transport.get_extra_info("socket") if self.transport is not None else None
            self._unheard = not self._read_bytes and was_not_received(sock, exc)
        self.resume_writing()
        self._wake()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        if self._head_done:
            raise BrokenAnswer("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # else a trailer
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status, headers = self._parser.get_status_code(), self._headers
        # One that does not end is bounded by MAX_OVERHEAD.
        if sum(map(len, chain.from_iterable(headers))) + 4 * len(headers) > MAX_HEAD:
            raise BrokenAnswer(f"a head of more than {MAX_HEAD} bytes")
        if status == 101:
            raise BrokenAnswer("switched protocols")
        if 100 <= status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM_ANSWERS:
                raise BrokenAnswer("too many interim answers")
            self._headers = []
            return
        if not 200 <= status < 600:
            raise BrokenAnswer(f"status {status}")
        self._keep = self._parser.should_keep_alive()
        fields = dict(headers)
        has_length, is_encoded = b"content-length" in fields, b"transfer-encoding" in fields
        if is_encoded:
            if has_length:
                raise BrokenAnswer("both Content-Length and Transfer-Encoding")
            if [value.lower() for name, value in headers if name == b"transfer-encoding"] != [b"chunked"]:
                raise BrokenAnswer("a Transfer-Encoding other than chunked")
        if self._head_only:
            self._ended = True
        elif not is_encoded and not has_length and status not in _BODILESS:
            self._until_eof = True
            self._keep = False
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body) + PIECE_COST
        self._overhead = 0

    def on_message_complete(self) -> None:
        if self._head_done:
            self._ended = True

    def _fail(self, reason: str) -> None:
        if self._error is None and not self._ended:
            self._error = reason
        self._keep = False
        if self.transport is not None:
            self.transport.abort()
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _changed(self) -> None:
        self._waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    # What the pool and the answer use.

    @property
    def usable(self) -> bool:
        """Idle, whole and young enough to be sent another request."""
        transport = self.transport
        if self._closed or transport is None or transport.is_closing() or self._error is not None:
            return False
        return time.monotonic() - self.idle_since < IDLE_SECONDS

    @property
    def kept(self) -> bool:
        return self._ended and self._keep and not self._closed

    async def send(self, request: Sequence[bytes], body: AsyncIterator[bytes] | None = None) -> None:
        """Writes a request and waits for the head of the answer. Raises StaleConnection, BrokenAnswer.

        With a `body`, also whatever that raises.
        """
        assert self.transport is not None
        if self.requests:
            self._reset()
        self.requests += 1
        self._head_only = request[0].startswith(b"HEAD ")
        self.transport.writelines(request)
        if body is not None:
            await self._upload(body, chunked=_CHUNKED in request[0])
        while not self._head_done:
            if self._error is not None:
                if self.requests > 1 and self._unheard:
                    raise StaleConnection(self._error)
                raise BrokenAnswer(self._error)
            await self._changed()
        if body is not None:
            self._keep = False  # some of the body may not have left yet, or never will

    async def _upload(self, body: AsyncIterator[bytes], *, chunked: bool) -> None:
        """Writes a body as it comes. Returns when all is written, or when the backend has said all it will hear."""
        writing = self._loop.create_task(self._write_all(body, chunked=chunked))
        writing.add_done_callback(lambda _: self._wake())
        try:
            while not (writing.done() or self._head_done or self._error is not None):
                await self._changed()
        finally:
            writing.cancel()
            await asyncio.wait((writing,))
        if not writing.cancelled() and (problem := writing.exception()) is not None:
            raise problem

    async def _write_all(self, body: AsyncIterator[bytes], *, chunked: bool) -> None:
        transport = self.transport
        assert transport is not None
        async for piece in body:
            if self._closed:
                return
            transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if self._writable is not None:
                await self._writable
        if chunked and not self._closed:
            transport.write(b"0\r\n\r\n")

    async def read(self) -> bytes:
        """The next bytes of the body, READ_BYTES or a little more; b"" at its end. Raises BrokenAnswer."""
        while not self._chunks:
            if self._ended:
                return b""
            if self._error is not None:
                raise BrokenAnswer(self._error)
            # As _changed() does; without a coroutine of its own for each chunk of a stream.
            self._waiter = waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None
        data = self._chunks.popleft()
        self._buffered -= len(data) + PIECE_COST
        if self._chunks:
            data = self._joined(data)
        if self._paused and self._buffered < HIGH_WATER and self.transport is not None and not self._closed:
            self._paused = False
            self.transport.resume_reading()
        return data

    def _joined(self, data: bytes) -> bytes:
        parts = [data]
        size = len(data)
        while self._chunks and size < READ_BYTES:
            part = self._chunks.popleft()
            parts.append(part)
            size += len(part)
            self._buffered -= len(part) + PIECE_COST
        return b"".join(parts)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Answer:
    """Status, headers and the body still to come."""

    __slots__ = ("_connection", "_fields", "_pool", "headers", "status")

    def __init__(self, connection: Connection, pool: "Pool") -> None:
        self._connection = connection
        self._pool = pool
        self.status: int = connection._parser.get_status_code()
        self.headers = connection._headers
        self._fields = dict(self.headers)

    def header(self, name: bytes) -> bytes:
        """A header of which there is one; b"" for none, of several the last."""
        return self._fields.get(name, b"")

    def read(self) -> Awaitable[bytes]:
        """The next bytes of the body, READ_BYTES or a little more; b"" at its end. Raises BrokenAnswer."""
        return self._connection.read()

    @property
    def ready(self) -> bool:
        """Whether `read` would return at once."""
        connection = self._connection
        return bool(connection._chunks) or connection._ended or connection._error is not None

    @property
    def at_end(self) -> bool:
        """Whether what was read so far is all there is."""
        return self._connection._ended and not self._connection._chunks

    def close(self) -> None:
        """Gives the connection back, or aborts it where the answer was not read to its end."""
        self._pool.give_back(self._connection)


class Pool:
    """The connections to one backend, of one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[Connection] = []
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._next_address = 0
        self.closed = False

    async def exchange(self, request: Sequence[bytes], body: AsyncIterator[bytes] | None = None) -> Answer:
        """Sends a request; returns with the head of the answer.

        `body`: what follows the request, piece by piece, each read when the backend has room for it; none may be
        empty. How it is framed says the head: with a length, or `transfer-encoding: chunked`. If the backend answers
        before it has it all, the rest is not read.

        A pooled connection that the backend had closed before the request reached it is replaced, once (B13).
        Raises Unreachable (nothing was sent), BrokenAnswer, and what `body` raises.
        """
        # A body cannot be sent twice, so it gets a connection that cannot be stale.
        connection = (self._pooled() if body is None else None) or await self._connect()
        while True:
            try:
                await connection.send(request, body)
            except StaleConnection:
                # A fresh connection is never stale, so this happens once.
                connection.abort()
                connection = await self._connect()
            except BaseException:
                connection.abort()
                raise
            else:
                return Answer(connection, self)

    def _pooled(self) -> Connection | None:
        # The most recently used first: the others grow old and are dropped.
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        endpoint = self.endpoint
        if not endpoint.addresses:
            raise Unreachable("its name has no address that a backend may have")
        failure: Exception | None = None
        for _ in range(min(len(endpoint.addresses), 2)):
            address = endpoint.addresses[self._next_address % len(endpoint.addresses)]
            try:
                async with asyncio.timeout(endpoint.connect_seconds):
                    _, connection = await loop.create_connection(
                        lambda: Connection(loop, self._buffer),
                        address,
                        endpoint.port,
                        ssl=endpoint.tls,
                        server_hostname=endpoint.server_hostname if endpoint.tls else None,
                    )
            except (OSError, ssl.SSLError, TimeoutError) as exc:
                failure = exc
                self._next_address += 1
            else:
                return connection
        raise Unreachable(f"{type(failure).__name__}: {failure}") from failure

    def give_back(self, connection: Connection) -> None:
        if connection.kept and not self.closed and len(self._idle) < MAX_IDLE_CONNECTIONS:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.abort()

    def drop_old(self) -> None:
        """Closes idle connections past their age; the sweeper calls it."""
        kept = [connection for connection in self._idle if connection.usable]
        for connection in self._idle:
            if connection not in kept:
                connection.abort()
        self._idle = kept

    def close(self) -> None:
        """Closes the idle connections; those in use are closed when given back."""
        self.closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
