"""WebSockets of signed-in people: who may open one, how many, how long (threat T13)."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, ClassVar
from urllib.parse import urlsplit

import orjson
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.db import DatabaseError, InterfaceError

from proxy import door
from proxy.client import Receive, Scope, Send
from proxy.live.pictures import Viewer
from proxy.live.viewers import signed_in
from proxy.runtime import Runtime

logger = logging.getLogger(__name__)

# Seconds between two looks at whether the viewer may still see what they see.
RECHECK_SECONDS = 2.0
# Rights that could not be looked at for so long are gone.
GRACE_SECONDS = 30.0
# Messages of a page in a second; people do not click faster.
MAX_RATE = 10
PAGES, PAGES_PER_USER = 200, 20

# Close codes. Daphne sends none but those of applications, which begin at 4000.
SIGNED_OUT = 4401
TOO_LARGE = 4413
ODD = 4400
TRY_LATER = 4429


class SignedInSocket(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels has no types
    """Of one page. Kinds of pages say what they do when it is `opened`, told something (`hear`) and `left`."""

    # No channel of its own: the process has one subscription for all, and a page must open though Redis is away.
    channel_layer_alias = "none"

    # Characters of one message.
    longest: ClassVar[int] = 4096
    # Of this process and kind: how many pages each user has open.
    open_pages: ClassVar[dict[int, int]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.open_pages = {}

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime
        self.viewer: Viewer | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.counted: int | None = None
        self.is_closed = False
        self.second, self.messages = 0, 0

    def opened(self, viewer: Viewer) -> None:
        """The page is open; or its viewer's rights have changed."""

    def work(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What goes on while it is open."""
        yield from ()

    async def hear(self, message: Any) -> bool:
        """A message, or None for what is none. False for what no page of ours says."""
        raise NotImplementedError

    def left(self) -> None:
        """The page is gone, or may see nothing any more. May be called twice."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()

    async def connect(self) -> None:
        # Before the handshake is answered: a stranger gets 403 and no socket.
        if is_own_origin(self.scope["headers"]):
            self.viewer = await signed_in(self.scope["session"].session_key)
        if self.viewer is None:
            await self.close()
            return
        await self.runtime.start()
        await self.accept()
        if not self._count(self.viewer.user_id):
            await self.close(TRY_LATER)
            return
        self.tasks = [asyncio.create_task(quiet(work)) for work in (*self.work(), self._recheck())]
        self.opened(self.viewer)

    def _count(self, user_id: int) -> bool:
        pages = type(self).open_pages
        if sum(pages.values()) >= PAGES or pages.get(user_id, 0) >= PAGES_PER_USER:
            return False
        pages[user_id] = pages.get(user_id, 0) + 1
        self.counted = user_id
        return True

    def _leave(self) -> None:
        if self.counted is not None:
            pages, user_id = type(self).open_pages, self.counted
            self.counted = None
            pages[user_id] -= 1
            if not pages[user_id]:
                del pages[user_id]
            self.left()
        for task in self.tasks:
            task.cancel()

    async def say(self, message: dict[str, Any]) -> None:
        if not self.is_closed:
            await self.send(text_data=orjson.dumps(message).decode())

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Once: servers take nothing after it, and what the page had said before comes still."""
        if not self.is_closed:
            self.is_closed = True
            await super().close(code, reason)

    async def _recheck(self) -> None:
        """Ends the socket with the session, and follows a change of roles."""
        known_at = time.monotonic()
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                viewer = await signed_in(self.scope["session"].session_key)
                if not await door.lets_in(self.runtime, self.scope, counts=False):
                    viewer = None  # an IP rule shuts them out by now
                known_at = time.monotonic()
            except (DatabaseError, InterfaceError):
                if time.monotonic() - known_at < GRACE_SECONDS:
                    continue
                viewer = None
            if viewer is None:
                self.left()
                await self.close(SIGNED_OUT)
                return
            if viewer != self.viewer and self.counted is not None:
                self.viewer = viewer
                self.opened(viewer)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self.is_closed:
            return
        if text_data is None or len(text_data) > self.longest:
            await self.close(TOO_LARGE)
            return
        if not self._is_human():
            await self.close(ODD)
            return
        try:
            message = orjson.loads(text_data)
        except orjson.JSONDecodeError:
            message = None
        if self.counted is None or not await self.hear(message):
            await self.close(ODD)

    def _is_human(self) -> bool:
        second = int(time.monotonic())
        if second != self.second:
            self.second, self.messages = second, 0
        self.messages += 1
        return self.messages <= MAX_RATE


def is_own_origin(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the page that opens a socket is ours: another port of this host is not. As Django judges forms."""
    given = dict(headers)
    origin = given.get(b"origin", b"").decode("latin-1")
    host = given.get(b"host", b"").decode("latin-1")
    if host and urlsplit(origin).netloc == host:
        return True
    return origin in (*settings.CSRF_TRUSTED_ORIGINS, settings.SITE_URL)


async def quiet(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as exc:
        # Each server has an exception of its own for a client that has left; the consumer hears of it by itself.
        logger.debug("A page could not be written to: %r", exc)
