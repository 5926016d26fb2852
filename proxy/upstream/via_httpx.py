"""The same interface as wire.py, on the engine of httpx: for an outbound proxy, HTTP/2, or distrust of our own code.

Beneath httpx.AsyncClient lies httpcore; it is used without the client, which would add redirects, cookies, proxies of
the environment and decompression, none of which a call may meet. h11 takes answers that httptools does not (both
framings, repeated lengths, folded lines, a second answer kept for the next call), so `Framing` reads the same bytes,
and what it refuses is refused. A connection carries one exchange at a time in HTTP/2, too: httpcore does not tell a
server that one of several streams was left, and only the end of the connection lets Ollama know.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpcore
import httptools

from proxy.errors import BrokenAnswer, StaleConnection, Unreachable
from proxy.upstream.network import Network, Stream, unless
from proxy.upstream.wire import (
    IDLE_SECONDS,
    MAX_HEAD,
    MAX_IDLE_CONNECTIONS,
    MAX_INTERIM_ANSWERS,
    MAX_OVERHEAD,
    READ_BYTES,
    Endpoint,
)

# What httpcore raises when a connection or what comes on it is no good.
_FAULTS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    ssl.SSLError,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An outbound proxy. Its address is the endpoint's; it resolves the names of backends itself."""

    scheme: str
    host: str
    port: int
    credential: tuple[bytes, bytes] | None = field(repr=False, default=None)  # user and password
    tls: ssl.SSLContext | None = None  # where its scheme is https


class Framing:
    """Reads the bytes of one answer beside h11, by the rules of wire.py. Its methods are httptools' callbacks."""

    __slots__ = ("_head_bytes", "_head_done", "_head_only", "_headers", "_interim", "_overhead", "_parser", "body",
                 "broken", "ended", "keep")  # fmt: skip

    def __init__(self, head_only: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head_only = head_only
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = self._interim = self._overhead = 0
        self._head_done = False
        self.body = 0  # bytes of it that have come
        self.broken = ""  # what is wrong with the rest of it
        self.ended = False
        self.keep = False

    def feed(self, data: bytes) -> None:
        """Raises BrokenAnswer for what must not become an answer; what is wrong after its head is told by `broken`."""
        if self.ended or self.broken:
            self.keep = False
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("switched protocols")
        except (httptools.HttpParserError, BrokenAnswer) as exc:
            self._fail(f"not valid HTTP: {exc}")
        if self._overhead > MAX_OVERHEAD:
            self._fail(f"more than {MAX_OVERHEAD} bytes of head or framing")

    def _fail(self, reason: str) -> None:
        self.keep = False
        if not self._head_done:
            raise BrokenAnswer(reason)
        if not self.ended:  # else it is only what came after it
            self.broken = self.broken or reason

    def on_message_begin(self) -> None:
        if self._head_done:
            raise BrokenAnswer("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD:
            raise BrokenAnswer(f"a head of more than {MAX_HEAD} bytes")
        self._headers.append((name.lower(), value.lower()))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101:
            raise BrokenAnswer("switched protocols")
        if 100 <= status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM_ANSWERS:
                raise BrokenAnswer("too many interim answers")
            self._headers = []
            return
        encodings = [value for name, value in self._headers if name == b"transfer-encoding"]
        if encodings and any(name == b"content-length" for name, _ in self._headers):
            raise BrokenAnswer("both Content-Length and Transfer-Encoding")
        if encodings not in ([], [b"chunked"]):
            raise BrokenAnswer("a Transfer-Encoding other than chunked")
        self.keep = self._parser.should_keep_alive()
        self._head_done = True
        self.ended = self._head_only

    def on_body(self, body: bytes) -> None:
        self.body += len(body)
        self._overhead = 0

    def on_message_complete(self) -> None:
        if self._head_done:
            self.ended = True


class Connection:
    """A pool of httpcore's with one connection in it."""

    def __init__(
        self, endpoint: Endpoint, address: str, buffer: memoryview, proxy: Proxy | None, *, http2: bool
    ) -> None:
        self.endpoint = endpoint
        self.depth = int(endpoint.tls is not None) + int(proxy is not None and proxy.scheme == "https")
        self.stream: Stream | None = None
        self.framing: Framing | None = None
        self.idle_since = 0.0
        self._host = (endpoint.server_hostname or address).encode("ascii")
        self._sent = False
        self._http = httpcore.AsyncConnectionPool(
            ssl_context=endpoint.tls,
            proxy=_for_httpcore(proxy),
            max_connections=1,
            http2=http2,
            network_backend=Network(address, self, buffer),
        )

    async def exchange(self, request: Sequence[bytes], body: AsyncIterator[bytes] | None) -> httpcore.Response:
        """Sends a request; returns with the head of the answer. Raises Unreachable, StaleConnection, BrokenAnswer."""
        method, target, headers = _parsed(request[0])
        self.framing = Framing(method == b"HEAD")
        self._sent = False
        upload = None if body is None else _Upload(self, body)
        scheme = b"https" if self.endpoint.tls is not None else b"http"
        try:
            async with asyncio.timeout(self.endpoint.connect_seconds) as until_connected:

                async def trace(event: str, info: dict[str, Any]) -> None:
                    if event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
                        until_connected.reschedule(None)
                        self._begins()

                response = await self._http.handle_async_request(
                    httpcore.Request(
                        method,
                        httpcore.URL(scheme=scheme, host=self._host, port=self.endpoint.port, target=target),
                        headers=headers,
                        content=b"".join(request[1:]) if upload is None else upload,
                        extensions={"trace": trace},
                    )
                )
        except _FAULTS as exc:
            if upload is not None and exc is upload.problem:
                raise
            raise self._fault(exc) from exc
        if not 200 <= response.status < 600:
            raise BrokenAnswer(f"status {response.status}")
        return response

    def _begins(self) -> None:
        """The connection is there, and the request is about to be written."""
        assert self.stream is not None
        self._sent = True
        self.stream.requests += 1
        self.stream.pipe.heard = self.stream.pipe.unheard = False
        if self.stream.speaks_http2:
            self.framing = None

    def _fault(self, exc: Exception) -> Exception:
        said = f"{type(exc).__name__}: {exc}"
        if not self._sent:
            return Unreachable(said)
        stream = self.stream
        if stream is not None and stream.requests > 1 and stream.pipe.unheard:
            return StaleConnection(said)
        return BrokenAnswer(said)

    def received(self, data: bytes) -> None:
        if self.framing is not None and self._sent:
            self.framing.feed(data)

    @property
    def kept(self) -> bool:
        """Whether it may carry another exchange after one that was read to its end."""
        connections = self._http.connections
        whole = self.framing is None or (self.framing.ended and self.framing.keep)
        return whole and bool(connections) and all(connection.is_idle() for connection in connections)

    @property
    def usable(self) -> bool:
        if time.monotonic() - self.idle_since >= IDLE_SECONDS:
            return False
        return not any(connection.has_expired() or connection.is_closed() for connection in self._http.connections)

    async def drop(self, pieces: Any) -> None:
        """Ends the connection. `pieces`: the generator that still reads from it, if any."""
        try:
            await self._http.aclose()
            if pieces is not None:
                await pieces.aclose()
        except _FAULTS:
            pass  # it was gone before


class _Upload:
    """The body of a request as httpcore reads it; ends early when the backend has begun to answer."""

    def __init__(self, connection: Connection, body: AsyncIterator[bytes]) -> None:
        self._connection = connection
        self._body = body
        self.problem: BaseException | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = self._connection.stream
        assert stream is not None
        answer = None if stream.speaks_http2 else stream.read_ahead()
        while True:
            try:
                piece = await unless(answer, anext(self._body, None))
            except httpcore.WriteError:
                raise
            except Exception as exc:
                self.problem = exc
                raise
            if piece is None:
                return
            yield piece


class Answer:
    """Status, headers and the body still to come."""

    __slots__ = ("_broken", "_connection", "_delivered", "_ended", "_fields", "_pieces", "_pool", "_stream", "headers",
                 "status")  # fmt: skip

    def __init__(self, response: httpcore.Response, connection: Connection, pool: "Pool") -> None:
        self._connection = connection
        self._pool = pool
        self._stream = cast("Any", response.stream)  # with an aclose(), which its type does not tell
        self._pieces: AsyncIterator[bytes] = aiter(self._stream)  # an async generator, to be closed
        self._delivered = 0
        self._ended = False
        self._broken = False
        self.status = response.status
        self.headers = [(name.lower(), value) for name, value in response.headers]
        self._fields = dict(self.headers)

    def header(self, name: bytes) -> bytes:
        """A header of which there is one; b"" for none, of several the last."""
        return self._fields.get(name, b"")

    async def read(self) -> bytes:
        """The next bytes of the body, READ_BYTES or a little more; b"" at its end. Raises BrokenAnswer."""
        if self._ended:
            return b""
        try:
            data = await self._next()
            if self._all_has_come:
                await self._finish()
        except _FAULTS as exc:
            self._broken = True
            raise BrokenAnswer(f"{type(exc).__name__}: {exc}") from exc
        except BrokenAnswer:
            self._broken = True
            raise
        return data

    async def _next(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        # What h11 holds already is had without waiting.
        while not size or (size < READ_BYTES and self._holds_more):
            framing = self._connection.framing
            if framing is not None and framing.broken and not self._holds_more:
                raise BrokenAnswer(framing.broken)
            piece = await anext(self._pieces, None)
            if piece is None:
                await self._finish()
                break
            parts.append(piece)
            size += len(piece)
            self._delivered += len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _finish(self) -> None:
        """The end was read: lets httpcore see it, without waiting for anything."""
        if not self._ended:
            self._ended = True
            await anext(self._pieces, None)
            await self._stream.aclose()

    @property
    def _holds_more(self) -> bool:
        framing = self._connection.framing
        return framing is not None and framing.body > self._delivered

    @property
    def _all_has_come(self) -> bool:
        framing = self._connection.framing
        return framing is not None and framing.ended and framing.body == self._delivered

    @property
    def ready(self) -> bool:
        """Whether `read` would return at once."""
        return self._ended or self._broken or self._holds_more or self._all_has_come

    @property
    def at_end(self) -> bool:
        """Whether what was read so far is all there is. False, not True, where that cannot be known (HTTP/2)."""
        return self._ended or self._all_has_come

    def close(self) -> None:
        """Gives the connection back, or drops it where the answer was not read to its end."""
        self._pool.give_back(self._connection, self._pieces, whole=self._ended)


class Pool:
    """The connections to one backend, of one event loop."""

    def __init__(self, endpoint: Endpoint, proxy: Proxy | None = None, *, http2: bool = False) -> None:
        self.endpoint = endpoint
        self._proxy = proxy
        self._http2 = http2
        self._idle: list[Connection] = []
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._next_address = 0
        self._dropping: set[asyncio.Task[None]] = set()
        self.closed = False

    async def exchange(self, request: Sequence[bytes], body: AsyncIterator[bytes] | None = None) -> Answer:
        """As wire.Pool.exchange. Raises Unreachable (nothing was sent), BrokenAnswer, and what `body` raises."""
        addresses = self.endpoint.addresses
        if not addresses:
            raise Unreachable("its name has no address that a backend may have")
        # A body cannot be sent twice, so it gets a connection that cannot be stale.
        connection = self._pooled() if body is None else None
        tries = min(len(addresses), 2)
        while True:
            connection = connection or self._fresh()
            try:
                response = await connection.exchange(request, body)
            except StaleConnection:
                self._drop(connection)
            except Unreachable:
                self._drop(connection)
                self._next_address += 1
                tries -= 1
                if not tries:
                    raise
            except BaseException:
                self._drop(connection)
                raise
            else:
                return Answer(response, connection, self)
            connection = None

    def _pooled(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._drop(connection)
        return None

    def _fresh(self) -> Connection:
        addresses = self.endpoint.addresses
        address = addresses[self._next_address % len(addresses)]
        return Connection(self.endpoint, address, self._buffer, self._proxy, http2=self._http2)

    def give_back(self, connection: Connection, pieces: Any, *, whole: bool) -> None:
        if whole and connection.kept and not self.closed and len(self._idle) < MAX_IDLE_CONNECTIONS:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            self._drop(connection, pieces)

    def _drop(self, connection: Connection, pieces: Any = None) -> None:
        task = asyncio.ensure_future(connection.drop(pieces))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    def drop_old(self) -> None:
        """Closes idle connections past their age; the sweeper calls it."""
        old = [connection for connection in self._idle if not connection.usable]
        self._idle = [connection for connection in self._idle if connection not in old]
        for connection in old:
            self._drop(connection)

    def close(self) -> None:
        """Closes the idle connections; those in use are closed when given back."""
        self.closed = True
        for connection in self._idle:
            self._drop(connection)
        self._idle.clear()


def _for_httpcore(proxy: Proxy | None) -> httpcore.Proxy | None:
    if proxy is None:
        return None
    url = httpcore.URL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, target=b"/")
    return httpcore.Proxy(url, auth=proxy.credential, ssl_context=proxy.tls)


def _parsed(head: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """Method, target and headers of a head that dispatch.py wrote."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, _ = first.split(b" ")
    return method, target, [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
