"""`manage.py serve --server daphne`: Daphne that drains. Its own answer to SIGTERM is to cut every stream."""

import asyncio
import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import defer, reactor
from twisted.logger import globalLogBeginner

from gateway_site.daphne_server.requests import CappedFactory
from gateway_site.server import Drainable, ServerOptions
from gateway_site.server.connections import raise_descriptor_limit
from gateway_site.server.listeners import CannotListen, close, listen
from gateway_site.server.worker import (
    FLUSH_SECONDS,
    FORCED_CLOSE_SECONDS,
    SAME_SIGNAL_SECONDS,
    announce,
    calm_collector,
    load,
)

logger = logging.getLogger(__name__)


def run(app_import: str, runtime_import: str, options: ServerOptions, max_body_bytes: int) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Signals mean what they mean in `gateway_site.server.run`."""
    try:
        sockets = listen(options)
    except CannotListen as exc:
        print(exc, file=sys.stderr)
        return 1
    raise_descriptor_limit()
    server = DrainingServer(load(app_import), load(runtime_import), options, max_body_bytes)
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, server.on_signal) for number in signals}
    try:
        server.serve(sockets)
    finally:
        close(sockets)
        for number, handler in before.items():
            signal.signal(number, handler)
    return server.exit_code


class DrainingServer(Server):  # type: ignore[misc]  # Daphne has no types
    def __init__(self, application: Any, runtime: Drainable, options: ServerOptions, max_body_bytes: int) -> None:
        super().__init__(
            application,
            endpoints=["ours"],  # not used: the sockets are bound before
            server_name="",
            websocket_max_message_size=options.websocket_max_bytes,
            websocket_max_frame_size=options.websocket_max_bytes,
        )
        self.runtime = runtime
        self.options = options
        self.max_body_bytes = max_body_bytes
        self.exit_code = 0
        self.ports: list[Any] = []
        self.signals = 0
        self.last_signal = -SAME_SIGNAL_SECONDS
        self.stopping = asyncio.Event()
        self.forced = asyncio.Event()

    def serve(self, sockets: list[Any]) -> None:
        self.connections: dict[Any, dict[str, Any]] = {}
        self.http_factory = CappedFactory(self, self.options)
        self.ws_factory = WebSocketFactory(self, server=self.server_name)
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=self.ping_timeout,
            allowNullOrigin=True,
            openHandshakeTimeout=self.websocket_handshake_timeout,
            maxMessagePayloadSize=self.websocket_max_message_size,
            maxFramePayloadSize=self.websocket_max_frame_size,
        )
        # Twisted logs each connection.
        globalLogBeginner.beginLoggingTo([lambda _: None], redirectStandardIO=False, discardBuffer=True)
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        reactor.addSystemEventTrigger("before", "shutdown", self.kill_all_applications)
        loop = reactor._asyncioEventloop
        asyncio.set_event_loop(loop)
        life = loop.create_task(self.live(sockets), name="server")
        reactor.run(installSignalHandlers=False)
        if life.done() and life.exception() is not None:
            raise life.exception()

    async def live(self, sockets: list[Any]) -> None:
        """From the start of the runtime to its close."""
        try:
            await self.runtime.start()
            self.ports = [
                reactor.adoptStreamPort(sock.fileno(), sock.family, self.http_factory)  # which duplicates it
                for sock in sockets
            ]
            self.runtime.listening([sock.getsockname()[:2] for sock in sockets])
            self.runtime.listening([sock.getsockname()[:2] for sock in sockets])
            port = sockets[0].getsockname()[1]
            close(sockets)
            calm_collector()
            announce(self.options.url(port))
            sweeping = asyncio.create_task(self.sweep_for_ever(), name="sweep")
            await self.stopping.wait()
            await self.drain()
            sweeping.cancel()
        finally:
            reactor.stop()

    async def sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.options.sweep_seconds)
            self.http_factory.drop_slow()

    # Stopping

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first drains, the second cuts, the third leaves at once, even if the loop hangs."""
        now = time.monotonic()
        if now - self.last_signal < SAME_SIGNAL_SECONDS:
            return
        self.last_signal = now
        self.signals += 1
        steps = {1: self.begin_drain, 2: self.forced.set}
        if self.signals not in steps:
            os._exit(1)
        reactor._asyncioEventloop.call_soon_threadsafe(steps[self.signals])

    def begin_drain(self) -> None:
        self.runtime.begin_drain()
        self.stopping.set()

    async def drain(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.drain_seconds
        for port in self.ports:
            port.stopListening()
        await self.unless_forced(
            self.runtime.drained(self.options.drain_seconds), self.options.drain_seconds + FLUSH_SECONDS
        )
        if self.forced.is_set():
            # Else the calls would end as if their clients had left.
            await self.unless_forced(self.runtime.drained(0), FORCED_CLOSE_SECONDS, cut_short=False)
        for protocol in list(self.connections):
            if isinstance(protocol, WebSocketProtocol):
                protocol.dropConnection(abort=False)
        await self.unless_forced(self.until_answered(), max(deadline - loop.time(), FLUSH_SECONDS))
        for channel in list(self.http_factory.open):
            channel.loseConnection()  # what is written is sent first
        await self.unless_forced(self.until_closed(), FLUSH_SECONDS)
        limit = FORCED_CLOSE_SECONDS if self.forced.is_set() else self.options.close_seconds
        await self.unless_forced(self.runtime.close(), limit, cut_short=False)

    async def until_answered(self) -> None:
        """Until no request is being read or answered. Polled: Daphne tells nobody."""
        while any("disconnected" not in details for details in self.connections.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def until_closed(self) -> None:
        while self.http_factory.open:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def unless_forced(self, work: Any, limit: float, *, cut_short: bool = True) -> None:
        working = asyncio.ensure_future(work)
        waited: set[asyncio.Future[Any]] = {working}
        if cut_short:
            waited.add(asyncio.ensure_future(self.forced.wait()))
        await asyncio.wait(waited, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        for future in waited - {working}:
            future.cancel()
        if not working.done():
            working.cancel()
            logger.warning("Stopping: %s did not end within %.0f s", getattr(work, "__name__", work), limit)
        elif not working.cancelled() and working.exception() is not None:
            logger.error("Could not stop cleanly", exc_info=working.exception())

    def kill_all_applications(self) -> Any:
        """Daphne's own fails on a request whose body is still on its way, and then lets the others run."""
        running = [
            details["application_instance"]
            for details in self.connections.values()
            if "application_instance" in details and not details["application_instance"].done()
        ]
        for application in running:
            application.cancel()
        ended = defer.Deferred.fromFuture(asyncio.gather(*running, return_exceptions=True))
        ended.addErrback(lambda _: None)
        return ended
