"""What is shown of calls in flight: this process's picture, and those of the others while somebody looks."""

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.errors import Interruption
from proxy.live.pictures import Picture, Row, Viewer, find, picture_of, seen_by
from proxy.live.subscription import Message, Subscription

if TYPE_CHECKING:
    from proxy.runtime import Runtime

logger = logging.getLogger(__name__)

# Seconds. A process that was not heard for so long is gone; one that asked for pictures is asked no more.
PICTURES_LAST = 4.0
WATCHING_LASTS = 5.0

Show = Callable[[Row], None]


class Board:
    """Once per process. `tick` once a second, in the loop; nothing here waits."""

    def __init__(self, runtime: "Runtime") -> None:
        self.runtime = runtime
        self.worker = os.urandom(6).hex()
        self.subscription = Subscription(self._hear)
        # The pages open in this process, and how each is shown what its viewer may see.
        self._pages: dict[object, tuple[Viewer, Show]] = {}
        # Channels of processes that have pages open, until when they want pictures.
        self._watching: dict[str, float] = {}
        self._others: dict[str, tuple[float, Picture]] = {}

    def start(self) -> None:
        self.subscription.start()

    async def close(self) -> None:
        await self.subscription.close()

    # Pages

    def open(self, page: object, viewer: Viewer, show: Show) -> None:
        """Shows a viewer what they may see from now on, once a second; again, when their rights have changed."""
        is_first = not self._pages
        self._pages[page] = viewer, show
        if is_first:
            self._ask_for_pictures()
        show(self._seen_by(viewer))

    def shut(self, page: object) -> None:
        self._pages.pop(page, None)

    def tick(self) -> None:
        now = time.monotonic()
        self._watching = {channel: until for channel, until in self._watching.items() if until > now}
        self._others = {worker: last for worker, last in self._others.items() if last[0] > now - PICTURES_LAST}
        if self._watching:
            message = {"type": "picture", "picture": self._picture()}
            for channel in self._watching:
                self.subscription.tell(message, channel)
        if self._pages:
            self._ask_for_pictures()
            pictures = self._pictures()
            for viewer, show in list(self._pages.values()):
                show(seen_by(viewer, pictures, alone=self._is_alone))

    def _ask_for_pictures(self) -> None:
        if self.subscription.channel:
            self.subscription.tell({"type": "watch", "to": self.subscription.channel})

    def _picture(self) -> Picture:
        return picture_of(self.worker, self.runtime.calls, self.runtime.fleet.states.values())

    def _pictures(self) -> list[Picture]:
        return [self._picture(), *(picture for _, picture in self._others.values())]

    def _seen_by(self, viewer: Viewer) -> Row:
        return seen_by(viewer, self._pictures(), alone=self._is_alone)

    @property
    def _is_alone(self) -> bool:
        return not self.subscription.channel

    def find(self, call_id: str) -> Row | None:
        """A call as it was last seen, here or elsewhere."""
        return find(self._pictures(), call_id)

    # Cancels

    def cancel(self, call_id: str, by: str) -> bool:
        """Ends a call of this process; whether there is one."""
        for call in self.runtime.calls:
            if call.id == call_id:
                if call.interruption is None and call.running:
                    prefix = call.key.prefix if call.key is not None else ""
                    logger.warning("The call %s of the key %s is cancelled by %s", call_id, prefix, by)
                    call.interrupt(Interruption.CANCELLED)
                return True
        return False

    # The layer

    def _hear(self, message: Message) -> None:
        match message:
            case {"type": "cancel", "call": str(call_id), "by": str(by)}:
                self.cancel(call_id, by)
            case {"type": "withdrawn"}:
                self.runtime.look_at_rules()
            case {"type": "models", "backend": int(backend_id)}:
                self.runtime.fleet.ask_again(backend_id)
            case {"type": "watch", "to": str(channel)} if channel != self.subscription.channel:
                if channel not in self._watching:
                    # The first picture at once.
                    self.subscription.tell({"type": "picture", "picture": self._picture()}, channel)
                self._watching[channel] = time.monotonic() + WATCHING_LASTS
            case {"type": "picture", "picture": {"worker": str(worker)} as picture} if len(picture) > 1:
                self._others[worker] = time.monotonic(), picture
