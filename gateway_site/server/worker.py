"""One process that serves: from loading the application to the end of the drain."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Protocol

import uvicorn

from .connections import Connections, raise_descriptor_limit
from .options import ServerOptions
from .protocol import GatewayProtocol
from .renewal import Files, follow

logger = logging.getLogger(__name__)

# A process group or a service manager may signal a worker that its parent signals, too: within so many seconds
# of the first, a signal says nothing new.
SAME_SIGNAL_SECONDS = 1.0
# For the last bytes of answers that the application has completed or cut.
FLUSH_SECONDS = 2.0
FORCED_CLOSE_SECONDS = 2.0

# Called once the process is ready to accept.
Listeners = Callable[[], list[socket.socket]]


def calm_collector() -> None:
    """For a process that has loaded what it needs."""
    # The modules loaded so far live as long as the process; looking through them at each full collection
    # would stop all streams for 100 ms. To look once before they are set aside would take as long, and finds nothing.
    gc.freeze()
    # A call makes no cycles. Collecting after each 700 objects, as Python does, finds little and costs 5 % of a call.
    gc.set_threshold(10_000, 20, 20)


class Drainable(Protocol):
    """What lives as long as a worker process, beside the ASGI application."""

    async def start(self) -> None:
        """In the worker's loop, before it accepts connections."""

    def listening(self, places: list[tuple[str, int]]) -> None:
        """(address, port) of each socket that connections are accepted on now."""

    def begin_drain(self) -> None:
        """At SIGTERM, at once: refuse new calls with 503, and say so at /readyz."""

    async def drained(self, timeout: float) -> None:  # noqa: ASYNC109 - it has to end calls itself
        """Return when no call is in flight; after `timeout` seconds cut the rest with an error event."""

    async def close(self) -> None:
        """Flush and close everything."""


class GatewayServer(uvicorn.Server):
    """One worker. Ends by `stop()`, and sooner if `forced` is set."""

    def __init__(
        self, config: uvicorn.Config, options: ServerOptions, runtime: Drainable, certificate: Files | None = None
    ) -> None:
        super().__init__(config)
        self.options = options
        self.runtime = runtime
        self.certificate = certificate
        self.stopping = asyncio.Event()
        self.forced = asyncio.Event()

    async def serve_until_stopped(self, sockets: Listeners, ready: Callable[[], None]) -> None:
        await self.runtime.start()
        self.connections = Connections(self.options, asyncio.get_running_loop())
        listeners = sockets()
        await self._accept(listeners)
        self.runtime.listening([listener.getsockname()[:2] for listener in listeners])
        self.connections.start()
        calm_collector()
        ready()
        following = None
        if self.certificate is not None and self.config.ssl is not None:
            following = asyncio.create_task(follow(self.certificate, self.config.ssl, self.options.renewal_seconds))
        await self.stopping.wait()
        if following is not None:
            following.cancel()
        await self._drain()

    async def _accept(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()

        def connect() -> asyncio.Protocol:
            return GatewayProtocol(self.config, self.server_state, {}, self.connections)

        tls = self.config.ssl
        handshake = self.options.header_seconds if tls else None
        self.servers = [
            await loop.create_server(
                connect, sock=sock, backlog=self.options.backlog, ssl=tls, ssl_handshake_timeout=handshake
            )
            for sock in sockets
        ]

    # Stopping

    def stop(self) -> None:
        """Take no new calls, and end when those in flight have ended."""
        self.runtime.begin_drain()
        self.stopping.set()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.drain_seconds
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._unless_forced(
            self.runtime.drained(self.options.drain_seconds), self.options.drain_seconds + FLUSH_SECONDS
        )
        await self._unless_forced(self._connections_ended(), max(deadline - loop.time(), FLUSH_SECONDS))
        self.connections.stop()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        limit = FORCED_CLOSE_SECONDS if self.forced.is_set() else self.options.close_seconds
        await _bounded(self.runtime.close(), limit)

    async def _connections_ended(self) -> None:
        # Polled: uvicorn's WebSocket connections tell nobody when they end.
        while self.server_state.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _unless_forced(self, work: Awaitable[None], limit: float) -> None:
        forced = asyncio.ensure_future(self.forced.wait())
        working = asyncio.ensure_future(work)
        await asyncio.wait({working, forced}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if working.done():
            _report(working)
        else:
            working.cancel()


async def _bounded(work: Awaitable[None], limit: float) -> None:
    working = asyncio.ensure_future(work)
    await asyncio.wait({working}, timeout=limit)
    if working.done():
        _report(working)
    else:
        logger.error("Closing took longer than %s s", limit)


def _report(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("Could not stop cleanly", exc_info=task.exception())


def announce(url: str) -> None:
    print(f"Ollama Gateway listening on {url}", flush=True)


def work(
    app_import: str,
    runtime_import: str,
    options: ServerOptions,
    sockets: Listeners,
    ready: Callable[[], None],
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
) -> int:
    """Serve in this process. Does not return if a thread would keep it from ending."""
    raise_descriptor_limit()
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    certificate, key = options.tls_certificate, options.tls_key
    files = Files(certificate, key) if certificate and key else None
    server = GatewayServer(_config(load(app_import), options), options, load(runtime_import), files)
    before = _on_signals(signals, _Stopper(server, loop))
    try:
        loop.run_until_complete(server.serve_until_stopped(sockets, ready))
        _cancel_leftovers(loop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _leave_hung_threads(0)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    return 0


def load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _config(app: Any, options: ServerOptions) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        http=GatewayProtocol,
        ws="websockets-sansio",
        ws_max_size=options.websocket_max_bytes,
        # Seconds. Whoever does not answer a ping has left.
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,
        workers=1,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        ssl_certfile=options.tls_certificate,
        ssl_keyfile=options.tls_key,
    )
    config.load()
    return config


class _Stopper:
    """Signal handler. Not `loop.add_signal_handler`: the third signal must work while the loop hangs."""

    def __init__(self, server: GatewayServer, loop: asyncio.AbstractEventLoop) -> None:
        self.steps = [server.stop, server.forced.set]
        self.loop = loop
        self.last = -SAME_SIGNAL_SECONDS

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.last < SAME_SIGNAL_SECONDS:
            return
        self.last = now
        if not self.steps:
            os._exit(1)
        self.loop.call_soon_threadsafe(self.steps.pop(0))


def _on_signals(signals: tuple[signal.Signals, ...], handler: _Stopper) -> dict[signal.Signals, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in signals}


def _cancel_leftovers(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=1))


def _leave_hung_threads(code: int) -> None:
    """Threads that hang in a system call would keep the interpreter from ending for ever."""
    own = threading.current_thread()
    if any(thread is not own and not thread.daemon for thread in threading.enumerate()):
        leave(code)


def leave(code: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
