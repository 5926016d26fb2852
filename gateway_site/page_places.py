"""How many pages Django works on at a time: each has a thread and a connection to the database (threat S4)."""

import asyncio

from proxy.client import Receive, Scope, Send


class NoPlace(Exception):
    """None became free in time. Nothing was sent."""


class Places:
    """Of one process. A page takes its place when its body is there, so that a slow client keeps none from others, and
    leaves it with the end of its answer, or when that turns out to be a long one, which comes piece by piece."""

    def __init__(self, app: object, count: int, patience: float) -> None:
        """`patience`: seconds that a page waits for a place."""
        self.app = app
        self.patience = patience
        self._free = asyncio.Semaphore(count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises NoPlace."""
        has_place = False

        async def receive_and_enter() -> dict[str, object]:
            nonlocal has_place
            message = await receive()
            if not has_place and message["type"] == "http.request" and not message.get("more_body"):
                await self._enter()
                has_place = True
            return message

        async def send_and_leave(message: dict[str, object]) -> None:
            nonlocal has_place
            if has_place and message.get("more_body"):
                has_place = False
                self._free.release()
            await send(message)

        try:
            await self.app(scope, receive_and_enter, send_and_leave)  # type: ignore[operator]  # an ASGI application
        finally:
            if has_place:
                self._free.release()

    async def _enter(self) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await self._free.acquire()
        except TimeoutError:
            raise NoPlace from None
