"""The server's side of one connection: what bytes become a request, how long they may take, and in which order."""

from __future__ import annotations

import asyncio
import logging
import select
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from . import refusals
from .exchange import Exchange
from .refusals import METHODS, Refusal, Refused
from .request_head import DROPPED_NAMES, PLAIN_NAMES, head_size, unknown_method, valid_host

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from .connections import Connections

logger = logging.getLogger(__name__)

ASGI = {"version": "3.0", "spec_version": "2.3"}

# Body bytes that are kept for an application that does not read them.
HIGH_WATER = 64 * 1024
# Requests kept behind the running one: from the first number reading pauses. What one slice or one body brings
# along may be more; beyond the second the client is refused.
PIPELINE_PAUSE = 4
PIPELINE_MAX = 200
# Bytes of a chunked body that are not body (sizes, extensions, trailers) between two bytes that are.
CHUNK_OVERHEAD = 64 * 1024
# A head that came in one read of this size cannot pass the caps.
SMALL_READ = 16 * 1024
# Larger reads are given to the parser in pieces.
SLICE = 4 * 1024
NO_BYTES = memoryview(b"")

# "OPTIONS " and " HTTP/1.1".
REQUEST_LINE_FRAME = 17
BLANKS = b" \t"
WEBSOCKET_PREFIX = b"/ws/"

# Exists on Linux; elsewhere a departed client is noticed when reading goes on.
HANGUP = getattr(select, "POLLRDHUP", 0)


class _Nowhere(list[tuple[bytes, bytes]]):
    """The header list while no head is being read: trailers are added to it, and vanish."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        pass


NOWHERE = _Nowhere()


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol with strict framing, deadlines by sweep, and caps.

    `self.receiving` is the newest request, whose body may still come; `self.running` the oldest, which the
    application answers; `self.pipeline` those between.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connections: Connections,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        # Not super().__init__(): it would prepare logs, timers and contexts that are not used here.
        self.config = config
        self.app = config.loaded_app
        self.app_state = app_state
        self.server_state = server_state
        self.tasks = server_state.tasks
        self.ws_protocol_class = config.ws_protocol_class
        self.loop = connections.loop
        self.all = connections
        self.options = connections.options
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.caller: str | None = None
        self.admitted = False

        self.parser = httptools.HttpRequestParser(self)
        # What follows a request that said `Connection: close` is skipped, not an error.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.running: Exchange | None = None
        self.receiving: Exchange | None = None
        self.pipeline: deque[Exchange] = deque()  # type: ignore[assignment]
        # The answer to a request that could not be read, due when those before it are answered.
        self.refusal: Refusal | None = None
        # No further request will be read, and what still comes is dropped.
        self.deaf = False
        # The answer in work is the last one.
        self.last = False

        self.read_paused = False
        self.write_paused = False
        self._resumed: asyncio.Event | None = None

        # Since when (on the sweeper's clock) the present state lasts: connected, idle, reading a head, lingering.
        self.since = connections.now
        self.in_head = True
        # The parser must be looked after: it is inside a head or a chunked body, where it gathers bytes on its own.
        self.watch = True
        self.fresh = True
        self.lingering = False
        # Bytes of an unfinished head in earlier reads; whether the present read is large enough to hold a huge one.
        self.head_bytes = 0
        self.large_read = False
        self.ended_in_read = False
        # Bytes since the body last grew, and its size then.
        self.overhead = 0
        self.overhead_at = 0
        # Read, but not parsed: the pipeline is full.
        self.backlog = NO_BYTES
        # Bytes that came after the last request that counts.
        self.swallowed = 0
        # What the transport could not send when last looked at, and for how long that has not become less.
        self.unsent = 0
        self.stalled = 0.0

        # Of the head being read.
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = NOWHERE
        self.host: bytes | None = None
        self.chunked = self.connection_said = self.expects_continue = self.has_dropped = False
        self.upgrade: bytes | None = None

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.server = get_local_addr(transport)
        self.client = get_remote_addr(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self.server_state.connections.add(self)
        self.all.open.add(self)
        self.caller = self.all.counted_as(self.client[0]) if self.client else None
        self.admitted = self.all.admit(self.caller)
        if not self.admitted:
            self._turn_away()

    def _turn_away(self) -> None:
        self.all.refused += 1
        if self.all.refused <= self.all.refused_room:
            self._answer_refused(refusals.CROWDED)
        else:
            self.deaf = True
            self.transport.write(refusals.CROWDED.response)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        self.all.open.discard(self)
        if self.admitted:
            self.all.release(self.caller)
        else:
            self.all.refused -= 1
        self._client_left()
        # Each refers to this object.
        self.parser = self.receiving = None  # type: ignore[assignment]

    def eof_received(self) -> None:
        # Returning nothing closes the transport. A client that only shuts down its sending side counts as gone.
        self._client_left()

    def _client_left(self) -> None:
        self.deaf = True
        self.refusal = None
        self.pipeline.clear()
        self.backlog = NO_BYTES
        running, self.running = self.running, None
        if running is not None:
            running.leave()
        self.resume_writing()

    def shutdown(self) -> None:
        """The server drains: end now if nothing is under way, otherwise with the present answer."""
        self.last = True
        if self.running is None and not self.in_head:
            self.transport.close()
        elif self.fresh and not self.head_bytes:
            # Whoever has just connected is about to ask: one sweep to do so.
            self.since = self.all.now

    # Bytes in

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            self._swallow(len(data))
        elif len(data) > SLICE or self.backlog:
            self._take_in_slices(data)
        else:
            self._take(data)

    def _take_in_slices(self, data: bytes) -> None:
        """One read can hold thousands of small requests: those beyond a few wait as bytes, not as objects."""
        self.backlog = memoryview(bytes(self.backlog) + data if self.backlog else data)
        while self.backlog and not self.deaf and len(self.pipeline) < PIPELINE_PAUSE:
            receiving = self.receiving
            in_body = receiving is not None and not self.in_head and not receiving.body_complete
            size = len(self.backlog) if in_body else SLICE
            piece, self.backlog = self.backlog[:size], self.backlog[size:]
            self._take(piece)
        if self.deaf:
            self.backlog = NO_BYTES

    def _take(self, data: bytes | memoryview) -> None:
        self.large_read = len(data) > SMALL_READ
        self.ended_in_read = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._hand_over_to_websocket()
            return
        except httptools.HttpParserError as exc:
            self._refuse(_refusal_for(exc, data))
            return
        running = self.running
        if running is not None and running.task is None:
            self._start(running)
        if self.watch:
            self._watch_parser(len(data))

    def _start(self, exchange: Exchange) -> None:
        exchange.task = self.loop.create_task(exchange.run())
        self.tasks.add(exchange.task)

    def _watch_parser(self, size: int) -> None:
        """Bound what the parser gathers before it calls back."""
        if self.in_head:
            self._watch_head(size)
        elif self.receiving is not None and self.receiving.received == self.overhead_at:
            self.overhead += size
            if self.overhead > CHUNK_OVERHEAD:
                self._refuse(refusals.BAD_FRAMING)
        elif self.receiving is not None:
            self.overhead = 0
            self.overhead_at = self.receiving.received

    def _watch_head(self, size: int) -> None:
        if not self.head_bytes:
            if not self.fresh:
                self.since = self.all.now
            if self.ended_in_read:
                # The rest of this read was the request before.
                size = min(size, len(self.url) + head_size(self.headers) + 1)
        self.head_bytes += size
        if len(self.url) > self.options.max_request_line:
            self._refuse(refusals.TARGET_TOO_LONG)
        elif self.head_bytes > self.options.max_request_line + self.options.max_header_bytes:
            self._refuse(refusals.HEADERS_TOO_LARGE)

    def _swallow(self, size: int) -> None:
        self.swallowed += size
        if self.swallowed > self.options.linger_bytes:
            self.balance_reading()

    # Parser callbacks

    def on_message_begin(self) -> None:
        self.in_head = self.watch = True
        self.head_bytes = 0
        self.url = b""
        self.headers = []
        self.host = self.upgrade = None
        self.chunked = self.connection_said = self.expects_continue = self.has_dropped = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        plain = PLAIN_NAMES.get(name)
        if plain is not None:
            # llhttp removes blanks before a value, but not those after it.
            self.headers.append((plain, value.rstrip(BLANKS)))
        elif self.headers is not NOWHERE:
            self._weigh(name.lower(), value.rstrip(BLANKS))

    def _weigh(self, name: bytes, value: bytes) -> None:
        """A header that may mean something to the server."""
        if name == b"host":
            if self.host is not None:
                raise Refused(refusals.BAD_HOST)
            self.host = value
        elif name == b"connection":
            self.connection_said = True
        elif name == b"transfer-encoding":
            if self.chunked or value.lower() != b"chunked":
                raise Refused(refusals.BAD_FRAMING)
            self.chunked = True
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise Refused(refusals.EXPECTATION)
            self.expects_continue = True
        elif name == b"upgrade":
            self.upgrade = value.lower()
        elif b"_" in name or name in DROPPED_NAMES:
            self.has_dropped = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        url, headers = self.url, self.headers
        # Trailers come through on_header(), too.
        self.headers = NOWHERE
        self.in_head = self.fresh = False
        self.watch = self.chunked
        self._check_size(url, headers)
        method = METHODS.get(self.parser.get_method())
        if method is None:
            raise Refused(refusals.METHOD)
        if self.host not in self.all.known_hosts:
            self._check_host()
        keep_alive = self.parser.should_keep_alive()
        version = "1.1"
        # llhttp keeps an HTTP/1.0 connection only if the client asks. Asking for the version costs 0.3 µs.
        if self.connection_said or not keep_alive:
            version = self._version()
        # 47 is "/".
        if url[0] != 47 or b"#" in url:
            raise Refused(refusals.BAD_TARGET)
        if self.has_dropped:
            headers = [header for header in headers if b"_" not in header[0] and header[0] not in DROPPED_NAMES]

        raw_path, _, query = url.partition(b"?")
        path = raw_path.decode("ascii")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
        }
        if self.upgrade is not None and self.parser.should_upgrade():
            self._check_upgrade(scope)
            return
        exchange = Exchange(self, scope, version, keep_alive and version == "1.1")
        scope["extensions"] = {"gateway.disconnect": exchange.when_gone}
        if self.expects_continue:
            exchange.expects_continue = version == "1.1"
        if self.running is None:
            self.running = exchange
        else:
            self._enqueue(exchange)
        self.receiving = exchange
        self.overhead = self.overhead_at = 0

    def _check_size(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        options = self.options
        if len(url) > options.max_request_line - REQUEST_LINE_FRAME:
            raise Refused(refusals.TARGET_TOO_LONG)
        if len(headers) > options.max_headers:
            raise Refused(refusals.HEADERS_TOO_LARGE)
        if (self.large_read or self.head_bytes) and head_size(headers) > options.max_header_bytes:
            raise Refused(refusals.HEADERS_TOO_LARGE)

    def _check_host(self) -> None:
        if self.host is None or not valid_host(self.host):
            raise Refused(refusals.BAD_HOST)
        self.all.remember_host(self.host)

    def _version(self) -> str:
        version: str = self.parser.get_http_version()
        if version == "1.0" and self.chunked:
            raise Refused(refusals.BAD_FRAMING)
        if version not in ("1.1", "1.0"):
            raise Refused(refusals.BAD_VERSION)
        return version

    def _check_upgrade(self, scope: dict[str, Any]) -> None:
        """Raise unless this is a WebSocket handshake to a path that has them, and nothing else is in work."""
        if (
            self.upgrade != b"websocket"
            or self.ws_protocol_class is None
            or scope["method"] != "GET"
            or not scope["raw_path"].startswith(WEBSOCKET_PREFIX)
            or self.running is not None
        ):
            raise Refused(refusals.UPGRADE)
        self.handshake = scope

    def _enqueue(self, exchange: Exchange) -> None:
        if len(self.pipeline) >= PIPELINE_MAX:
            raise Refused(refusals.PIPELINE)
        self.pipeline.append(exchange)
        if len(self.pipeline) >= PIPELINE_PAUSE:
            self.balance_reading()

    def on_body(self, body: bytes) -> None:
        exchange = self.receiving
        if exchange is not None:
            exchange.add_body(body)
            if exchange.buffered > HIGH_WATER:
                self.balance_reading()

    def on_message_complete(self) -> None:
        self.watch = False
        self.ended_in_read = True
        if self.receiving is not None:
            self.receiving.end_body()

    # Refusing and closing

    def _refuse(self, refusal: Refusal) -> None:
        """Answer `refusal` after what was asked before it, and read no more requests."""
        self.deaf = True
        self.watch = False
        broken = self.receiving
        if broken is not None and not self.in_head and not broken.body_complete:
            if broken.started:
                self.transport.abort()
                return
            broken.leave()
            if broken is self.running:
                self.running = None
            else:
                self.pipeline.remove(broken)
        if self.running is None:
            self._answer_refused(refusal)
            return
        self.refusal = refusal
        if self.running.task is None:
            self._start(self.running)

    def _answer_refused(self, refusal: Refusal) -> None:
        logger.debug("Refused a request of %s: %s", self.client, refusal.code)
        self.transport.write(refusal.response)
        self._linger()

    def _linger(self) -> None:
        """Say no more, but go on listening: bytes that meet a closed socket make the kernel discard the answer."""
        self.deaf = self.lingering = True
        self.since = self.all.now
        self.pipeline.clear()
        self.backlog = NO_BYTES
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.balance_reading()

    def finished(self, exchange: Exchange) -> None:
        """The answer of the running exchange is complete."""
        self.running = None
        if self.transport.is_closing():
            return
        exchange.chunks.clear()
        exchange.buffered = 0
        if not exchange.keep_alive:
            self._close_after(exchange)
        elif self.pipeline:
            self.running = self.pipeline.popleft()
            self._start(self.running)
            if self.backlog:
                self._take_in_slices(b"")
        elif self.refusal is not None:
            self._answer_refused(self.refusal)
        elif self.last:
            self.transport.close()
        elif not self.in_head:
            self.since = self.all.now
        if self.read_paused:
            self.balance_reading()

    def _close_after(self, exchange: Exchange) -> None:
        self.pipeline.clear()
        self.refusal = None
        if exchange.body_complete:
            self.deaf = True
            self.transport.close()
        else:
            self._linger()

    def _hand_over_to_websocket(self) -> None:
        scope = self.handshake
        self.server_state.connections.discard(self)
        self.all.open.discard(self)
        lines = [b"GET ", self.url, b" HTTP/1.1\r\n"]
        for name, value in scope["headers"]:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n")
        websocket = self.ws_protocol_class(  # type: ignore[call-arg, misc]
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        websocket.connection_made(self.transport)
        websocket.data_received(b"".join(lines))
        self.transport.set_protocol(WebSocketConnection(websocket, self.all, self.caller))
        self.parser = None  # type: ignore[assignment]
        self.deaf = True  # what is left of this read came too early, see WebSocketConnection

    # Flow

    def balance_reading(self) -> None:
        """Read from the socket while there is room for what comes."""
        full = self._is_full()
        if full == self.read_paused or self.transport.is_closing():
            return
        self.read_paused = full
        if full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
            if self.in_head and not self.fresh:
                # It could not come while nothing was read.
                self.since = self.all.now

    def _is_full(self) -> bool:
        if self.deaf:
            return self.swallowed > self.options.linger_bytes
        if self.backlog or len(self.pipeline) >= PIPELINE_PAUSE:
            return True
        return self.receiving is not None and self.receiving.buffered > HIGH_WATER

    def pause_writing(self) -> None:
        self.write_paused = True
        self.stalled = 0.0
        self.unsent = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    async def writable(self) -> None:
        if self._resumed is None:
            self._resumed = asyncio.Event()
        await self._resumed.wait()

    # Deadlines

    def sweep(self, elapsed: float) -> None:
        """Called once a second, roughly: end this connection if it has been too slow."""
        transport = self.transport
        if self.write_paused or transport.is_closing():
            self._abort_if_stalled(elapsed)
        if transport.is_closing():
            return
        # One sweep less, since `since` may be that old from the start.
        age = self.all.now - self.since - self.options.sweep_seconds
        if self.lingering:
            if age > self.options.linger_seconds:
                transport.close()
        elif self.deaf:
            pass
        elif self.in_head:
            if not self.read_paused:
                self._end_slow_head(age)
        elif self.running is None:
            if age > self.options.keepalive_seconds:
                transport.close()
        elif not self.read_paused:
            self._end_slow_body(elapsed)
        if self.read_paused and not transport.is_closing() and self._hung_up():
            self._client_left()
            transport.close()

    def _end_slow_head(self, age: float) -> None:
        if age > self.options.header_seconds:
            self._refuse(refusals.SLOW_HEADERS)
        elif self.last and self.fresh and not self.head_bytes and age > 0:
            self.transport.close()

    def _end_slow_body(self, elapsed: float) -> None:
        receiving = self.receiving
        if receiving is None or receiving.body_complete or receiving.expects_continue:
            return
        receiving.waited += elapsed
        if (
            receiving.waited > self.options.body_grace_seconds
            and receiving.received < receiving.waited * self.options.body_min_rate
        ):
            self._refuse(refusals.SLOW_BODY)

    def _abort_if_stalled(self, elapsed: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        self.stalled = 0.0 if unsent < self.unsent else self.stalled + elapsed
        self.unsent = unsent
        if self.stalled > self.options.stall_seconds:
            self.transport.abort()

    def _hung_up(self) -> bool:
        """Whether the peer has closed, which a paused transport does not tell."""
        socket = self.transport.get_extra_info("socket")
        if not HANGUP or socket is None:
            return False
        poll = select.poll()
        poll.register(socket.fileno(), HANGUP)
        return bool(poll.poll(0))


class WebSocketConnection(asyncio.Protocol):
    """A connection that uvicorn's WebSocket protocol has taken over; it still counts against the caps."""

    def __init__(self, websocket: Any, connections: Connections, caller: str | None) -> None:
        self.websocket = websocket
        self.connections = connections
        self.caller = caller
        self.eof_received = websocket.eof_received  # type: ignore[method-assign]
        self.pause_writing = websocket.pause_writing  # type: ignore[method-assign]
        self.resume_writing = websocket.resume_writing  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        # A client must wait for the answer to its handshake (RFC 6455 §4.1). What comes before it is dropped:
        # uvicorn's protocol fails on frames that it cannot refuse by one of its own.
        if self.websocket.handshake_complete:
            self.websocket.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.release(self.caller)
        self.websocket.connection_lost(exc)


def _refusal_for(error: httptools.HttpParserError, data: bytes | memoryview) -> Refusal:
    if isinstance(error.__context__, Refused):
        return error.__context__.refusal
    if isinstance(error, httptools.HttpParserCallbackError):
        logger.error("Could not read a request", exc_info=error)
    if isinstance(error, httptools.HttpParserInvalidMethodError) and unknown_method(bytes(data).lstrip(b"\r\n")):
        return refusals.METHOD
    return refusals.MALFORMED
