"""The WebSocket of the live page."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

from channels.db import database_sync_to_async
from django.db import DatabaseError, InterfaceError

from proxy import cancellation
from proxy.live.pictures import Row, Viewer
from proxy.live.sockets import SignedInSocket
from proxy.runtime import Runtime

logger = logging.getLogger(__name__)


class LiveConsumer(SignedInSocket):
    """Sends `picture`, `refused` and `cancelling`; takes `{"type": "cancel", "call": id}`."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.seen: Row | None = None
        self.news = asyncio.Event()

    def opened(self, viewer: Viewer) -> None:
        self.runtime.board.open(self, viewer, self._note)

    def left(self) -> None:
        self.runtime.board.shut(self)

    def work(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield self._show()

    def _note(self, seen: Row) -> None:
        """The newest picture; one that a slow reader did not get in time is never sent."""
        self.seen = seen
        self.news.set()

    async def _show(self) -> None:
        while True:
            await self.news.wait()
            self.news.clear()
            if self.seen is not None:
                await self.say(self.seen)

    async def hear(self, message: Any) -> bool:
        match message:
            case {"type": "cancel", "call": str(call_id)}:
                await self._cancel(call_id)
                return True
        return False

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
            await self.say({"type": "cancelling", "call": call_id})
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
        await self.say({"type": "cancelling", "call": call_id})

    async def _refuse(self, call_id: str, why: str) -> None:
        await self.say({"type": "refused", "call": call_id, "why": why})
