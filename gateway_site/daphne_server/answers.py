"""The answer of a call on Daphne: it waits for slow readers, and one that broke off closes its connection."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)


def request_behind(send: Send) -> Any:
    """Daphne's request where `send` is Daphne's, which is a partial of the server's method; else None."""
    bound = getattr(send, "args", ())
    return bound[0] if bound and hasattr(bound[0], "registerProducer") else None


async def answer(app: Application, scope: Scope, receive: Receive, send: Send, request: Any) -> None:
    """Runs the application for one HTTP request of Daphne."""
    paced = PacedAnswer(request, send)
    try:
        await app(scope, receive, paced.send)
    finally:
        paced.end()


class PacedAnswer:
    """`send` that returns when the client has taken enough; Daphne's own returns at once, and buffers without a bound.

    To Twisted it is an IPushProducer, whose transport pauses it above 64 KiB.
    """

    def __init__(self, request: Any, send: Send) -> None:
        self._request = request
        self._send = send
        self._registered = False
        self._ended = False
        self._room: asyncio.Future[None] | None = None

    async def send(self, message: Message) -> None:
        more = message["type"] != "http.response.body" or message.get("more_body", False)
        if not more:
            self._ended = True
            self._unregister()  # Twisted complains of a producer at the end
        elif not self._registered and self._request.channel is not None:
            self._registered = True
            self._request.registerProducer(self, True)
        await self._send(message)
        if self._room is not None and not self._ended:
            await self._until_there_is_room()

    async def _until_there_is_room(self) -> None:
        assert self._room is not None
        try:
            async with asyncio.timeout(settings.STALL_SECONDS):
                await asyncio.shield(self._room)
        except TimeoutError:
            logger.info("A client took nothing of its answer for %.0f s", settings.STALL_SECONDS)
            self._abort()

    def end(self) -> None:
        """The application has returned. An answer without its end must not look whole, nor the client wait for it."""
        self.stopProducing()
        self._unregister()
        if not self._ended:
            self._abort()

    def _unregister(self) -> None:
        if self._registered and self._request.channel is not None:
            self._request.unregisterProducer()
        self._registered = False

    def _abort(self) -> None:
        channel = self._request.channel
        if channel is not None and channel.transport is not None:
            channel.transport.abortConnection()
        self.stopProducing()

    # Called by Twisted.

    def pauseProducing(self) -> None:
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()

    def resumeProducing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def stopProducing(self) -> None:
        self.resumeProducing()
