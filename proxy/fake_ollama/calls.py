"""What the server saw: every call, and totals that cost nothing to ask for."""

import asyncio
import base64
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

LOG_LENGTH = 20_000


@dataclass(slots=True)
class SeenCall:
    """One call, as its caller made it and as it went. Times are of the monotonic clock."""

    index: int
    connection: int
    method: str
    target: str
    raw_headers: list[tuple[bytes, bytes]]
    body: bytes
    started: float
    ended: float | None = None
    status: int | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    # Bytes of its body that came, also of one that is not kept.
    received: int = 0
    # Asked for a generation, and the runner began it.
    generated: bool = False
    complete: bool = False
    # The caller closed the connection before the end.
    disconnected: bool = False
    disconnected_at: float | None = None

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.raw_headers]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def json(self) -> Any:
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def as_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "connection": self.connection,
            "method": self.method,
            "target": self.target,
            "headers": self.headers,
            "body": base64.b64encode(self.body).decode(),
            "json": self.json,
            "started": self.started,
            "ended": self.ended,
            "status": self.status,
            "received": self.received,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "generated": self.generated,
            "complete": self.complete,
            "disconnected": self.disconnected,
            "disconnected_at": self.disconnected_at,
        }


@dataclass
class Totals:
    calls: int = 0
    running_calls: int = 0
    # Calls given up by their callers, in whatever phase.
    disconnected_calls: int = 0
    generations_started: int = 0
    generations_finished: int = 0
    generations_disconnected: int = 0
    generations_failed: int = 0
    generations_running: int = 0
    tokens: int = 0
    loads: Counter[str] = field(default_factory=Counter)
    loads_aborted: int = 0
    unloads: int = 0
    bad_requests: int = 0
    connections_opened: int = 0
    connections_open: int = 0

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "loads": dict(self.loads)}


class CallLog:
    def __init__(self, *, log_bodies: bool = True) -> None:
        self.log_bodies = log_bodies
        self.calls: deque[SeenCall] = deque(maxlen=LOG_LENGTH)
        self.gone: deque[SeenCall] = deque(maxlen=LOG_LENGTH)
        self.totals = Totals()
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def open(
        self, connection: int, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> SeenCall:
        totals = self.totals
        call = SeenCall(
            totals.calls, connection, method, target, headers, body if self.log_bodies else b"", time.monotonic()
        )
        call.received = len(body)
        totals.calls += 1
        totals.running_calls += 1
        self.calls.append(call)
        self.changed()
        return call

    def close(self, call: SeenCall) -> None:
        call.ended = time.monotonic()
        self.totals.running_calls -= 1
        self.changed()

    def left(self, call: SeenCall) -> None:
        """The caller has gone. Noted at once, before the call is wound up."""
        call.disconnected = True
        call.disconnected_at = time.monotonic()
        self.totals.disconnected_calls += 1
        self.gone.append(call)
        self.changed()

    def changed(self) -> None:
        if not self._waiters:
            return
        for predicate, future in self._waiters:
            if not future.done() and predicate():
                future.set_result(None)

    async def until(self, predicate: Callable[[], bool], timeout: float) -> None:  # noqa: ASYNC109
        """Wait for something to have happened; TimeoutError if it does not."""
        if predicate():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (predicate, future)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await future
        finally:
            self._waiters.remove(waiter)

    def clear(self) -> None:
        """Forget the past; calls and connections that are still open stay counted."""
        old = self.totals
        self.calls.clear()
        self.gone.clear()
        self.totals = Totals(
            running_calls=old.running_calls,
            generations_running=old.generations_running,
            connections_open=old.connections_open,
        )
