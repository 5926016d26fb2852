"""The client's side of one call, on any ASGI server."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from proxy.errors import BadRequest, Interruption, TooLarge

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# Our own server tells of a departed client by a callback; elsewhere a task has to wait for it (15 µs a call).
DISCONNECT_EXTENSION = "gateway.disconnect"


class ClientGone(Exception):
    """Left before its body was whole."""


class Client:
    __slots__ = ("_awaiting_body", "_receive", "_scope", "_watcher", "added_headers", "fields", "headers", "send")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self.send = send
        self.headers: Headers = scope["headers"]
        self.fields = dict(self.headers)  # of several of a name, the last
        # What the answer gets besides, whatever it is: CORS.
        self.added_headers: Headers = []
        self._watcher: asyncio.Task[None] | None = None
        self._awaiting_body: Callable[[Interruption], None] | None = None

    @property
    def peer(self) -> str:
        """The address of the socket; "" for a Unix socket."""
        peer = self._scope.get("client")
        return str(peer[0]) if peer else ""

    @property
    def own_origin(self) -> bytes:
        """The web origin of the address that was called."""
        scheme: str = self._scope.get("scheme", "http")
        return b"%b://%b" % (scheme.encode(), self.fields.get(b"host", b""))

    def header(self, name: bytes) -> bytes | None:
        """A header of which there is one; of several, the last."""
        return self.fields.get(name)

    def listed(self, name: bytes) -> bytes | None:
        """A header that is a list, which several lines of the name make together (RFC 9110 §5.3)."""
        if name not in self.fields:
            return None
        return b",".join([value for other, value in self.headers if other == name])

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises TooLarge as soon as it is known to be, ClientGone, BadRequest."""
        declared = self.header(b"content-length")
        if declared is not None:
            if not declared.isdigit():
                raise BadRequest("Content-Length is no number")
            if int(declared) > limit:
                raise _too_large(limit)
        event = await self._receive()
        if event["type"] == "http.disconnect":
            raise ClientGone
        if not event.get("more_body"):
            body = event.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            return bytes(body)
        parts = [event.get("body", b"")]
        size = len(parts[0])
        while event.get("more_body"):
            if size > limit:
                raise _too_large(limit)
            event = await self._next()
            parts.append(event.get("body", b""))
            size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        return b"".join(parts)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body piece by piece, of any size: what is not asked for stays with the sender. Raises ClientGone."""
        more = True
        while more:
            event = await self._next()
            more = event.get("more_body", False)
            if piece := event.get("body", b""):
                yield piece
        if self._awaiting_body is not None:
            self._watcher = asyncio.create_task(self._watch(self._awaiting_body))

    async def _next(self) -> dict[str, Any]:
        event = await self._receive()
        if event["type"] == "http.disconnect":
            raise ClientGone
        return event

    def on_departure(self, interrupt: Callable[[Interruption], None], *, body_read: bool = True) -> None:
        """Calls back once if the client leaves before the answer is complete.

        `body_read`: whether the body was; if not, `chunks` tells by ClientGone until it is.
        """
        register = self._scope.get("extensions", {}).get(DISCONNECT_EXTENSION)
        if register is not None:
            register(lambda: interrupt(Interruption.CLIENT_GONE))
        elif not body_read:
            self._awaiting_body = interrupt
        else:
            self._watcher = asyncio.create_task(self._watch(interrupt))

    async def _watch(self, interrupt: Callable[[Interruption], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        interrupt(Interruption.CLIENT_GONE)

    def stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    # To be awaited. No coroutines of their own: a frame less for each chunk of a stream.

    def start(self, status: int, headers: Headers) -> Awaitable[None]:
        if self.added_headers:
            headers = [*headers, *self.added_headers]
        return self.send({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, chunk: bytes) -> Awaitable[None]:
        return self.send({"type": "http.response.body", "body": chunk, "more_body": True})

    def end(self, chunk: bytes = b"") -> Awaitable[None]:
        return self.send({"type": "http.response.body", "body": chunk, "more_body": False})


def _too_large(limit: int) -> TooLarge:
    return TooLarge("body_too_large", f"The body is larger than the {limit} bytes that are accepted.")
