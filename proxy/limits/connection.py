"""One pipelined connection to Redis. Commands are written at once; answers come in the order of the commands.

redis-py's asyncio client costs several times the round trip in CPU; this is what the path of a call needs of it.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis

Argument = bytes | str | int | float
Command = tuple[Argument, ...]
Unheard = Callable[[str], None]


GAP = "\0"
"""In a command: what differs from time to time. See with_gaps."""


def with_gaps(command: Command) -> bytes:
    """A command that is sent again and again, packed once, for `filled`."""
    return packed(command).replace(b"%", b"%%").replace(b"$1\r\n\0\r\n", b"$%d\r\n%b\r\n")


def filled(template: bytes, *values: bytes) -> bytes:
    """The packed command with these values in its gaps."""
    parts: list[int | bytes] = []
    for value in values:
        parts += len(value), value
    return template % tuple(parts)


def packed(command: Command) -> bytes:
    made: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # typed as if it took one
    return made


class RedisAway(Exception):
    """No answer: not connected, refused, hung. Whether a command was carried out is not known."""


class Connection(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        """`patience`: seconds for an answer; the connection is given up with the first that does not come."""
        self.loop = loop
        self._patience = patience
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        # In the order of the commands: (who wants the answer or hears that there is none, when it must be there).
        self._waiting: deque[tuple[asyncio.Future[Any] | Unheard, float]] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self.closed = False

    @classmethod
    async def open(cls, url: str, patience: float) -> "Connection":
        """Connects and signs in. `url`: redis[s]://[[user]:password@]host[:port][/database]. Raises RedisAway."""
        loop = asyncio.get_running_loop()
        parts = urlsplit(url)
        tls = ssl.create_default_context() if parts.scheme == "rediss" else None
        connection = None
        try:
            async with asyncio.timeout(max(1.0, patience)):
                if parts.scheme == "unix":
                    _, connection = await loop.create_unix_connection(lambda: cls(loop, patience), parts.path)
                else:
                    _, connection = await loop.create_connection(
                        lambda: cls(loop, patience), parts.hostname or "localhost", parts.port or 6379, ssl=tls
                    )
                if parts.password:
                    user = [unquote(parts.username)] if parts.username else []
                    await connection.ask("AUTH", *user, unquote(parts.password))
                database = parts.path.strip("/")
                if parts.scheme != "unix" and database not in ("", "0"):
                    await connection.ask("SELECT", database)
        except BaseException as exc:
            if connection is not None:
                connection.abort()  # it would stay open, and another is tried soon
            if isinstance(exc, (OSError, TimeoutError, hiredis.HiredisError)):
                raise RedisAway(f"{type(exc).__name__}: {exc}") from exc
            raise
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                waiter, _ = self._waiting.popleft()
                refused = isinstance(reply, hiredis.ReplyError)
                if not isinstance(waiter, asyncio.Future):
                    if refused:
                        waiter(str(reply))
                elif waiter.done():
                    continue
                elif refused:
                    waiter.set_exception(reply)
                else:
                    waiter.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        waiting, self._waiting = self._waiting, deque()
        problem = f"the connection was lost ({exc or 'closed'})"
        for waiter, _ in waiting:
            if not isinstance(waiter, asyncio.Future):
                waiter(problem)
            elif not waiter.done():
                waiter.set_exception(RedisAway(problem))

    def ask(self, *command: Argument) -> asyncio.Future[Any]:
        """The answer to a command: int, bytes, list or None. Raises RedisAway, hiredis.ReplyError."""
        return self.ask_packed(packed(command))

    def ask_packed(self, command: bytes) -> asyncio.Future[Any]:
        """As ask, for a command that is packed already."""
        future = self.loop.create_future()
        self._send(command, future)
        return future

    def tell(self, *command: Argument, unheard: Unheard) -> None:
        """Sends a command whose answer nobody waits for. Raises RedisAway where it cannot be sent.

        `unheard(problem)` is called where it was not confirmed: it may have been carried out.
        """
        self._send(packed(command), unheard)

    def tell_packed(self, command: bytes, *, unheard: Unheard) -> None:
        """As tell, for a command that is packed already."""
        self._send(command, unheard)

    def _send(self, command: bytes, waiter: asyncio.Future[Any] | Unheard) -> None:
        if self.closed or self._transport is None or self._transport.is_closing():
            raise RedisAway("not connected")
        deadline = self.loop.time() + self._patience
        self._waiting.append((waiter, deadline))
        self._transport.write(command)
        if self._alarm is None:
            self._alarm = self.loop.call_at(deadline, self._look)

    def _look(self) -> None:
        """Gives the connection up when the oldest answer is overdue: a hung Redis answers none of them."""
        self._alarm = None
        if not self._waiting:
            return
        deadline = self._waiting[0][1]
        if deadline <= self.loop.time():
            self.abort()
        else:
            self._alarm = self.loop.call_at(deadline, self._look)

    @property
    def unsent(self) -> int:
        """Bytes that Redis has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def abort(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
