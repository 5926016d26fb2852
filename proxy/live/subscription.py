"""The one subscription of this process to the channel layer. No call ever waits for it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from channels.layers import channel_layers, get_channel_layer

from tenants.announcements import WORKERS

logger = logging.getLogger(__name__)

# Seconds. What is said to oneself must be heard within a beat; otherwise the layer is away, however it looks.
BEAT_SECONDS = 2.0
SEND_SECONDS = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 2.0
# Messages that wait to be sent; the oldest give way.
OUTBOX = 64

Message = dict[str, Any]


class Subscription:
    """Hears what is said to all workers and to this one, and speaks. `hear(message)` must not block.

    Whatever the layer does, this is felt here alone: two tasks, short timeouts, a bounded outbox, a new beginning
    after each failure.
    """

    def __init__(self, hear: Callable[[Message], None]) -> None:
        self.hear = hear
        # The name of this process's own channel; "" while the layer is away.
        self.channel = ""
        self._beat = asyncio.Event()
        self._failing = False
        self._outbox: deque[tuple[str, Message]] = deque(maxlen=OUTBOX)
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._listen_for_ever(), name="channel layer"),
            asyncio.create_task(self._send_for_ever(), name="channel layer, sending"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SEND_SECONDS)
            await self._begin_anew()

    def tell(self, message: Message, channel: str = "") -> None:
        """To one process by its channel, else to all workers, this one included. Best effort; returns at once."""
        self._outbox.append((channel, message))
        self._wake.set()

    # Hearing

    async def _listen_for_ever(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async for _ in self._beating():
                    pause = FIRST_PAUSE
                    self._found()
            except Exception as exc:
                # The layer's own exceptions, its driver's, and those of sockets: none may end this task (L5).
                self._lost(exc)
            self.channel = ""
            await self._begin_anew()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _beating(self) -> Any:
        """Subscribes and listens; yields after each beat. Raises when the layer is away."""
        layer = get_channel_layer()
        async with asyncio.timeout(SEND_SECONDS):
            channel = await layer.new_channel()
            await layer.group_add(WORKERS, channel)
        listening = asyncio.create_task(self._listen(layer, channel), name="channel layer, hearing")
        try:
            while True:
                self._beat.clear()
                async with asyncio.timeout(BEAT_SECONDS):
                    await layer.send(channel, {"type": "beat"})
                    await self._beat.wait()
                self.channel = channel
                yield
                await asyncio.wait({listening}, timeout=BEAT_SECONDS)
                if listening.done():
                    listening.result()
        finally:
            listening.cancel()
            await asyncio.wait({listening}, timeout=SEND_SECONDS)

    async def _listen(self, layer: Any, channel: str) -> None:
        while True:
            message = await layer.receive(channel)
            if message.get("type") == "beat":
                self._beat.set()
                continue
            try:
                self.hear(message)
            except Exception:
                logger.exception("A message of the type %.40r could not be understood", message.get("type"))

    async def _begin_anew(self) -> None:
        """Leaves nothing of a connection that may be broken."""
        layer = get_channel_layer()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await layer.flush()
        except Exception as exc:
            logger.debug("The channel layer could not be flushed (%r); it is made anew", exc)
            channel_layers.set("default", channel_layers.make_backend("default"))

    def _lost(self, exc: Exception) -> None:
        if not self._failing:
            logger.warning("The channel layer is away; cancels and changes go by the database (%r)", exc)
        self._failing = True

    def _found(self) -> None:
        if self._failing:
            logger.warning("The channel layer is back")
        self._failing = False

    # Speaking

    async def _send_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                channel, message = self._outbox.popleft()
                try:
                    await self._send(channel, message)
                except Exception as exc:
                    # Said too late is worse than not said; listening finds out when the layer is back.
                    logger.debug("The channel layer did not take a message: %r", exc)
                    self._outbox.clear()

    async def _send(self, channel: str, message: Message) -> None:
        layer = get_channel_layer()
        async with asyncio.timeout(SEND_SECONDS):
            if channel:
                await layer.send(channel, message)
            else:
                await layer.group_send(WORKERS, message)
