"""What Daphne reads from a connection, with caps and deadlines as far as Twisted lets us set them.

A body is read whole, into a file where it is large, before the application hears of the request.
"""

import time
from typing import Any

from daphne.http_protocol import HTTPFactory, WebRequest
from twisted.web import http

from gateway_site.server import ServerOptions, refusals

# How long a client that was refused may go on sending.
LINGER_SECONDS = 2.0
TOO_LARGE = refusals.Refusal(413, "body_too_large", "the request body is too large")
# Headers by which a client would move its request past a guard (P5).
STEERING_HEADERS = (b"daphne-root-path",)


class CappedRequest(WebRequest):  # type: ignore[misc]  # Daphne has no types
    # Not for us: Twisted would parse forms, in the loop, before anybody has asked for them.
    _parsePOSTFormSubmission = False
    received = 0

    @property
    def cap(self) -> int:
        return int(self.server.max_body_bytes)

    def gotLength(self, length: int | None) -> None:
        if length is not None and length > self.cap:
            self.refuse(TOO_LARGE)
            length = 0
        super().gotLength(length)

    def handleContentChunk(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > self.cap:
            self.refuse(TOO_LARGE)
        else:
            super().handleContentChunk(data)

    def refuse(self, refusal: refusals.Refusal) -> None:
        if self.channel is not None:
            self.channel.refuse(refusal)

    def process(self) -> Any:
        if self.channel is None or self.channel.refused:
            return None
        for name in STEERING_HEADERS:
            self.requestHeaders.removeHeader(name)
        channel = self.channel
        done = super().process()
        if self.transport is None:
            channel.factory.open.discard(channel)  # a WebSocket now; Daphne's deadlines hold
        return done


class SteadyChannel(http.HTTPChannel):
    """One connection. Its deadlines are looked at by `DrainingServer` once a second."""

    MAX_LENGTH = 8 * 1024
    totalHeadersSize = 32 * 1024
    maxHeaders = 100

    def __init__(self) -> None:
        super().__init__()
        self.refused = False
        # Monotonic; when the request that is being read began, and when its head was complete. 0 = not yet.
        self.began = time.monotonic()
        self.body_began = 0.0

    def connectionMade(self) -> None:
        self.factory.open.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Any) -> None:
        self.factory.open.discard(self)
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> Any:
        if self.refused:
            return None
        if not self.began and not self._handlingRequest:
            self.began = time.monotonic()
        return super().dataReceived(data)

    def allHeadersReceived(self) -> None:
        self.body_began = time.monotonic()
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        self.began = self.body_began = 0.0
        super().allContentReceived()

    def is_too_slow(self, options: ServerOptions, now: float) -> bool:
        """Whether the client has had its time for a head, or its body comes at less than the least rate (N5)."""
        if not self.began:
            return False
        if not self.body_began:
            return now - self.began > options.header_seconds
        took = now - self.body_began
        received = self.requests[-1].received if self.requests else 0
        return took > options.body_grace_seconds and received < took * options.body_min_rate

    def refuse(self, refusal: refusals.Refusal) -> None:
        """Answers without the application, and closes: at once in our direction, then when the client has read it.

        Closed at once in both, what the client still sends would have its kernel throw the answer away.
        """
        if self.refused:
            return
        self.refused = True
        self.transport.write(refusal.response)
        self.transport.loseWriteConnection()
        self.callLater(LINGER_SECONDS, self.loseConnection)


class CappedFactory(HTTPFactory):  # type: ignore[misc]
    def __init__(self, server: Any, options: ServerOptions) -> None:
        super().__init__(server)
        self.options = options
        self.timeOut = options.keepalive_seconds
        self.open: set[SteadyChannel] = set()

    def buildProtocol(self, address: Any) -> Any:
        if len(self.open) >= self.options.max_connections:
            return None  # closed at once
        channel = SteadyChannel()
        channel.requestFactory = CappedRequest
        channel.callLater = self.reactor.callLater
        channel.timeOut = self.timeOut
        channel.factory = self
        return channel

    def drop_slow(self) -> None:
        now = time.monotonic()
        for channel in list(self.open):
            if channel.is_too_slow(self.options, now):
                channel.refuse(refusals.SLOW_BODY if channel.body_began else refusals.SLOW_HEADERS)
