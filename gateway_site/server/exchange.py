"""One request and its answer: the ASGI side of a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .refusals import FAILED

if TYPE_CHECKING:
    from .protocol import GatewayProtocol

logger = logging.getLogger(__name__)

Message = dict[str, Any]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
END = (b"", b"")  # of a head, in lines
# Below this, one joined write costs less than handing over its parts; above, copying the body costs more.
JOIN_BYTES = 16 * 1024
BODILESS = frozenset({204, 304})
# Headers that say something of the connection: ours to write.
OF_CONNECTION = frozenset({b"connection", b"transfer-encoding"})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


STATUS_LINES = {status: f"HTTP/1.1 {status} {_phrase(status)}".encode() for status in range(200, 600)}


class Exchange:
    __slots__ = (
        "body_complete",
        "body_delivered",
        "buffered",
        "callbacks",
        "chunked",
        "chunks",
        "complete",
        "event",
        "expects_continue",
        "gone",
        "head",
        "keep_alive",
        "protocol",
        "received",
        "remaining",
        "scope",
        "started",
        "task",
        "version",
        "waited",
        "writes_body",
    )

    def __init__(self, protocol: GatewayProtocol, scope: dict[str, Any], version: str, keep_alive: bool) -> None:
        self.protocol = protocol
        self.scope: dict[str, Any] | None = scope
        self.version = version
        self.keep_alive = keep_alive
        self.expects_continue = False
        self.task: asyncio.Task[None] | None = None
        # Set when the request moves on, for whoever waits in receive(); made by the first who has to.
        self.event: asyncio.Event | None = None
        self.callbacks: list[Callable[[], None]] | None = None
        self.gone = False

        # Request body: what came and was not read yet, and how much came in all.
        self.chunks: list[bytes] = []
        self.buffered = 0
        self.received = 0
        # Seconds in which the client could have sent body and had not sent all.
        self.waited = 0.0
        self.body_complete = False
        self.body_delivered = False

        # Answer.
        self.head: Message | None = None
        self.started = False
        self.complete = False
        self.chunked = False
        self.writes_body = scope["method"] != "HEAD"
        # Bytes of a declared content-length still to come; None without one.
        self.remaining: int | None = None

    async def run(self) -> None:
        try:
            await self.protocol.app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self.give_up()
            raise
        except Exception:
            logger.exception("The application failed")
            self.give_up()
        else:
            if not self.complete and not self.gone:
                logger.error("The application returned without completing its answer")
                self.give_up()
        finally:
            self.protocol.tasks.discard(self.task)
            # Both would make a cycle for the garbage collector, with each request.
            self.scope = self.task = None

    def give_up(self) -> None:
        """The application will not answer any more; a broken answer must not look like a whole one."""
        if self.complete or self.gone:
            return
        if self.started:
            self.protocol.transport.abort()
            return
        self.started = True
        self.keep_alive = False
        self.protocol.transport.write(FAILED.response)
        self._finish()

    # What the client did

    def add_body(self, body: bytes) -> None:
        self.chunks.append(body)
        size = len(body)
        self.received += size
        self.buffered += size
        if self.event is not None:
            self.event.set()

    def end_body(self) -> None:
        self.body_complete = True
        if self.event is not None:
            self.event.set()

    def leave(self) -> None:
        """The client has gone before the answer was complete."""
        if self.gone or self.complete:
            return
        self.gone = True
        self.chunks.clear()
        if self.event is not None:
            self.event.set()
        callbacks, self.callbacks = self.callbacks, None
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                logger.exception("A callback for a departed client failed")

    def when_gone(self, callback: Callable[[], None]) -> None:
        """`scope["extensions"]["gateway.disconnect"]`: call back once if the client leaves before its answer ends."""
        if self.gone:
            callback()
        elif not self.complete:
            if self.callbacks is None:
                self.callbacks = [callback]
            else:
                self.callbacks.append(callback)

    # ASGI

    async def receive(self) -> Message:
        if self.expects_continue:
            self.expects_continue = False
            if not self.started and not self.gone:
                self.protocol.transport.write(CONTINUE)
        while not self.gone and not self.complete:
            if self.body_complete and not self.body_delivered:
                self.body_delivered = True
                return self._take_body(more=False)
            if self.chunks:
                return self._take_body(more=True)
            await self._news()
        return {"type": "http.disconnect"}

    async def _news(self) -> None:
        if self.event is None:
            self.event = asyncio.Event()
        self.event.clear()
        await self.event.wait()

    def _take_body(self, more: bool) -> Message:
        chunks = self.chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self.chunks = []
        self.buffered = 0
        if self.protocol.read_paused:
            self.protocol.balance_reading()
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(self, message: Message) -> None:
        protocol = self.protocol
        if protocol.write_paused and not self.gone:
            await protocol.writable()
        if self.gone:
            return
        if self.complete:
            raise RuntimeError(f"{message['type']!r} after the answer was complete")

        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            more = message.get("more_body", False)
            if self.chunked and more and 0 < len(body) <= JOIN_BYTES:
                # Nearly all messages there are: a token or two of a stream.
                protocol.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
                return
            if self.started:
                self._send_body(body, more)
            else:
                self._send_head(body, more)
            if not more:
                self._finish()
        elif message["type"] == "http.response.start" and self.head is None:
            self.head = message
        else:
            raise RuntimeError(f"{message['type']!r} was not expected here")

    def _send_head(self, body: bytes, more: bool) -> None:
        """Write status and headers together with the first piece of the body."""
        if self.head is None:
            raise RuntimeError("'http.response.body' before 'http.response.start'")
        if not self.body_complete or self.protocol.last:
            # What is left of the request is not worth reading only to keep the connection.
            self.keep_alive = False
        status = self.head["status"]
        lines = [STATUS_LINES[status], *self._header_lines(self.head.get("headers", ()))]
        if status in BODILESS:
            self.writes_body = False
        if not self.writes_body:
            self.remaining = None
        elif self.remaining is None:
            lines += self._framing(len(body), more)
        if not self.keep_alive:
            lines.append(b"connection: close")
        lines += END

        head = b"\r\n".join(lines)
        breaks = len(lines) - 1
        if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
            raise RuntimeError("a response header holds a line break or NUL")
        self.started = True
        self._send_body(body, more, head)

    def _header_lines(self, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
        headers = list(headers)
        fields = dict(headers)
        if not b" ".join(fields).islower() or not OF_CONNECTION.isdisjoint(fields):
            headers = list(self._weighed(headers))
            fields = dict(headers)
        length = fields.get(b"content-length")
        if length is not None:
            self.remaining = int(length)
        return map(b": ".join, headers)

    def _weighed(self, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """Those that the client is told, in lower case."""
        for name, value in headers:
            lowered = name.lower()
            if lowered not in OF_CONNECTION:
                yield lowered, value
            elif lowered == b"connection" and b"close" in value.lower():
                self.keep_alive = False

    def _framing(self, size: int, more: bool) -> tuple[bytes, ...]:
        """How the end of the body will be known, if the application gave no length."""
        if not more:
            self.remaining = size
            return (b"content-length: %d" % size,)
        if self.version == "1.1":
            self.chunked = True
            return (b"transfer-encoding: chunked",)
        # HTTP/1.0 is never kept alive: its body ends with the connection.
        return ()

    def _send_body(self, body: bytes, more: bool, head: bytes = b"") -> None:
        write = self.protocol.transport.write
        if not self.writes_body:
            if head:
                write(head)
            return
        size = len(body)
        if self.chunked:
            if size > JOIN_BYTES:
                self.protocol.transport.writelines((b"%b%x\r\n" % (head, size), body, b"\r\n"))
            elif size:
                write(b"%b%x\r\n%b\r\n" % (head, size, body))
            elif head:
                write(head)
            if not more:
                write(LAST_CHUNK)
            return
        if self.remaining is not None:
            self.remaining -= size
            if self.remaining < 0 or (self.remaining and not more):
                raise RuntimeError("the body does not have the declared content-length")
        if head and size <= JOIN_BYTES:
            write(head + body)
        elif head:
            self.protocol.transport.writelines((head, body))
        elif size:
            write(body)

    def _finish(self) -> None:
        self.complete = True
        self.callbacks = None
        if self.event is not None:
            self.event.set()
        self.protocol.finished(self)
