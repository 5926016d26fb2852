"""Calls that ask the same question at the same time share one call upstream: a flight.

Whoever asks first starts it, and it is nobody's: it goes on as long as one listener is left, and ends at once with the
last. All that was sent is kept from its beginning, so that a late listener gets it first; beyond a bound only what the
slowest has not got yet, and then nobody can join any more. The backend is read as fast as the fastest listener reads;
one that falls too far behind is let go, and holds nobody up.
"""

import asyncio
from collections.abc import Iterator

from proxy.call import Call
from proxy.client import Headers
from proxy.errors import Refusal

# Bytes that the fastest listener may be behind before the backend is read no further.
HIGH_WATER = 256 << 10
# Bytes that a listener may be behind before it is let go.
MAX_BEHIND = 8 << 20


class Listener:
    """One call's place in a flight."""

    __slots__ = ("_waiter", "call", "position", "received", "waits_for_end")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.position = 0  # of the next chunk, counted from the beginning
        self.received = 0  # bytes
        self.waits_for_end = False  # reads nothing until all is there
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class Flight:
    """What has come of one answer so far. Written by one task; all in one loop."""

    def __init__(self, key: bytes, named: str, *, stream: bool, max_kept: int) -> None:
        """`named`: what the answer calls the model; `max_kept`: bytes up to which it is kept from its beginning."""
        self.key = key
        self.named = named
        self.stream = stream
        self.max_kept = max_kept
        self.whole = True  # nothing of its beginning was dropped
        self.head: Headers | None = None  # of the answer, once there is one
        self.refusal: Refusal | None = None
        self.finished = False
        self.size = 0
        # In the order in which they came; the first pays for the work.
        self.listeners: dict[Listener, None] = {}
        self.payer: Listener | None = None  # once it has finished
        self.made: Call | None = None  # the call upstream, which nobody sees
        self.task: asyncio.Task[None] | None = None
        self._chunks: list[bytes] = []
        self._dropped = 0  # chunks
        self._room: asyncio.Future[None] | None = None

    # Listeners

    def join(self, call: Call) -> Listener:
        listener = Listener(call)
        self.listeners[listener] = None
        return listener

    def leave(self, listener: Listener) -> None:
        """The last one to leave ends the work."""
        self.listeners.pop(listener, None)
        if not self.listeners and not self.finished and self.task is not None:
            self.task.cancel()
        self._make_room()

    def is_first(self, listener: Listener) -> bool:
        return next(iter(self.listeners), None) is listener

    def is_lost(self, listener: Listener) -> bool:
        """Whether the listener was let go: what it would get next is not kept any more."""
        return listener.position < self._dropped

    def take(self, listener: Listener) -> bytes:
        """What has come since the listener last took; b"" if nothing."""
        chunks = self._chunks[listener.position - self._dropped :]
        if not chunks:
            return b""
        listener.position += len(chunks)
        taken = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        listener.received += len(taken)
        self._make_room()
        return taken

    async def until_begun(self, listener: Listener) -> None:
        """Until there is a head or an end."""
        while self.head is None and not self.finished:
            await listener.wait()

    async def until_more(self, listener: Listener) -> None:
        while listener.position == self._dropped + len(self._chunks) and not self.finished:
            await listener.wait()

    async def until_finished(self, listener: Listener) -> None:
        listener.waits_for_end = True
        self._make_room()
        while not self.finished:
            await listener.wait()

    # The work

    def begin(self, head: Headers) -> None:
        self.head = head
        self._wake()

    def add(self, chunk: bytes) -> None:
        if not chunk:
            return
        self._chunks.append(chunk)
        self.size += len(chunk)
        if self.size > self.max_kept:
            self.whole = False
        if not self.whole:
            self._trim()
        self._wake()

    async def room(self) -> None:
        """Waits for a listener to read on, if all that read are behind."""
        while True:
            behind = [self.size - each.received for each in self.listeners if not each.waits_for_end]
            if not behind or min(behind) <= HIGH_WATER:
                return
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def finish(self, refusal: Refusal | None = None) -> None:
        if self.finished:
            return
        self.finished = True
        self.refusal = refusal
        self.payer = next(iter(self.listeners), None)
        self._wake()

    @property
    def body(self) -> bytes:
        """All of it, where it is whole."""
        return b"".join(self._chunks)

    def _wake(self) -> None:
        for listener in self.listeners:
            listener.wake()

    def _make_room(self) -> None:
        if not self.whole:
            self._trim()
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _trim(self) -> None:
        """Drops what all have got. Those too far behind do not count: they are let go."""
        positions = [each.position for each in self.listeners if self.size - each.received <= MAX_BEHIND]
        if positions:
            passed = min(positions) - self._dropped
        else:
            passed, kept = 0, sum(map(len, self._chunks))
            while kept > MAX_BEHIND:
                kept -= len(self._chunks[passed])
                passed += 1
        if passed > 0:
            del self._chunks[:passed]
            self._dropped += passed


class Flights:
    """Those of one process."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[bytes, bool], Flight] = {}
        self._all: set[Flight] = set()

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def joinable(self, key: bytes, *, stream: bool) -> Flight | None:
        """One in the same mode, or, for an answer in one piece, a stream that is put together at its end."""
        flight = self._by_key.get((key, stream))
        if flight is None and not stream:
            flight = self._by_key.get((key, True))
        if flight is None or flight.finished or not flight.whole or not flight.listeners:
            return None
        return flight

    def add(self, flight: Flight) -> None:
        """Later calls find this one, whatever was under way before."""
        self._by_key[flight.key, flight.stream] = flight
        self._all.add(flight)

    def remove(self, flight: Flight) -> None:
        self._all.discard(flight)
        if self._by_key.get((flight.key, flight.stream)) is flight:
            del self._by_key[flight.key, flight.stream]
