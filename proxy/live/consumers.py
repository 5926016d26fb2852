"""The WebSocket of the live page."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from typing import Any
from urllib.parse import urlsplit

import orjson
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.db import DatabaseError, InterfaceError

from proxy import cancellation, door
from proxy.client import Receive, Scope, Send
from proxy.live.pictures import Row, Viewer
from proxy.live.viewers import signed_in
from proxy.runtime import Runtime

logger = logging.getLogger(__name__)

# Seconds between two looks at whether the viewer may still see what they see.
RECHECK_SECONDS = 2.0
# Rights that could not be looked at for so long are gone.
GRACE_SECONDS = 30.0
MAX_MESSAGE = 4096
# Messages of a page in a second; people do not click faster.
MAX_RATE = 10
PAGES, PAGES_PER_USER = 200, 20

# Close codes. Daphne sends none but those of applications, which begin at 4000.
SIGNED_OUT = 4401
TOO_LARGE = 4413
ODD = 4400
TRY_LATER = 4429


class LiveConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels has no types
    """Sends `picture`, `refused` and `cancelling`; takes `{"type": "cancel", "call": id}`."""

    # No channel of its own: the process has one subscription for all, and a page must open though Redis is away.
    channel_layer_alias = "none"

    # Of this process: how many pages each user has open.
    open_pages: dict[int, int] = {}

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime
        self.viewer: Viewer | None = None
        self.seen: Row | None = None
        self.news = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.counted: int | None = None
        self.second, self.messages = 0, 0

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
        self.tasks = [asyncio.create_task(_quiet(work)) for work in (self._show(), self._recheck())]
        self.runtime.board.open(self, self.viewer, self._note)

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
            self.runtime.board.shut(self)
        for task in self.tasks:
            task.cancel()

    # What it shows

    def _note(self, seen: Row) -> None:
        """The newest picture; one that a slow reader did not get in time is never sent."""
        self.seen = seen
        self.news.set()

    async def _show(self) -> None:
        while True:
            await self.news.wait()
            self.news.clear()
            if self.seen is not None:
                await self._say(self.seen)

    async def _say(self, message: dict[str, Any]) -> None:
        await self.send(text_data=orjson.dumps(message).decode())

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
                self.runtime.board.shut(self)
                await self.close(SIGNED_OUT)
                return
            if viewer != self.viewer and self.counted is not None:
                self.viewer = viewer
                self.runtime.board.open(self, viewer, self._note)

    # What it is told

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data is None or len(text_data) > MAX_MESSAGE:
            await self.close(TOO_LARGE)
            return
        if not self._is_human():
            await self.close(ODD)
            return
        try:
            message = orjson.loads(text_data)
        except orjson.JSONDecodeError:
            message = None
        match message:
            case {"type": "cancel", "call": str(call_id)} if self.counted is not None:
                await self._cancel(call_id)
            case _:
                await self.close(ODD)

    def _is_human(self) -> bool:
        second = int(time.monotonic())
        if second != self.second:
            self.second, self.messages = second, 0
        self.messages += 1
        return self.messages <= MAX_RATE

    async def _cancel(self, call_id: str) -> None:
        viewer, board = self.viewer, self.runtime.board
        assert viewer is not None
        row = board.find(call_id)
        if row is None or not viewer.may_see(row["tenant_id"], row["user_id"]):
            # What belongs to others looks like what does not exist.
            await self._refuse(call_id, "This call is not running any more.")
        elif not viewer.may_end(row["tenant_id"], row["user_id"]):
            await self._refuse(call_id, "Your role does not allow to cancel this call.")
        elif board.cancel(call_id, viewer.name):
            await self._say({"type": "cancelling", "call": call_id})
        else:
            await self._cancel_elsewhere(call_id, viewer)

    async def _cancel_elsewhere(self, call_id: str, viewer: Viewer) -> None:
        logger.info("%s asks for the end of the call %s in another process", viewer.name, call_id)
        # By the layer it is quick, by the database it is sure; one of them may be away.
        self.runtime.board.subscription.tell({"type": "cancel", "call": call_id, "by": viewer.name})
        try:
            await database_sync_to_async(cancellation.request)(call_id, viewer.name)
        except (DatabaseError, InterfaceError):
            logger.warning("The database did not take the cancellation of %s", call_id)
        await self._say({"type": "cancelling", "call": call_id})

    async def _refuse(self, call_id: str, why: str) -> None:
        await self._say({"type": "refused", "call": call_id, "why": why})


def is_own_origin(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the page that opens a socket is ours: another port of this host is not. As Django judges forms."""
    given = dict(headers)
    origin = given.get(b"origin", b"").decode("latin-1")
    host = given.get(b"host", b"").decode("latin-1")
    if host and urlsplit(origin).netloc == host:
        return True
    return origin in (*settings.CSRF_TRUSTED_ORIGINS, settings.SITE_URL)


async def _quiet(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as exc:
        # Each server has an exception of its own for a client that has left; the consumer hears of it by itself.
        logger.debug("A page could not be written to: %r", exc)
