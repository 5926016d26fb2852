"""The waiting line: calls whose backends have no free slot, served in the order they came."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.errors import Unavailable

if TYPE_CHECKING:
    from proxy.fleet.state import BackendState

# How many of the first waiters are tried: one that cannot be placed (it asks for a large context, or was refused by the
# backend that is free) must not keep those behind it waiting, and a long line must not be walked for each call.
LOOKAHEAD = 4


@dataclass(slots=True, eq=False)
class Waiter:
    place: Callable[[], BackendState | None]  # takes a slot if one is free for this call
    future: asyncio.Future[BackendState] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Line:
    """One deque per model, bounded in all. How long a call may wait is the caller's to judge (Call.deadline)."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.waiting = 0
        self._by_model: dict[str, deque[Waiter]] = {}
        self._served: deque[float] = deque(maxlen=64)

    def is_waited_for(self, model: str) -> bool:
        return model in self._by_model

    def check_room(self) -> None:
        """Raises Unavailable when the line is full."""
        if self.waiting >= self.length:
            raise Unavailable(
                "line_full",
                f"All slots are taken and {self.waiting} calls are already waiting. Try again shortly.",
                retry_after=self.expected_wait(),
            )

    async def wait(
        self, model: str, place: Callable[[], BackendState | None], give_back: Callable[[BackendState], None]
    ) -> BackendState:
        """Waits for a slot. Raises Unavailable when the line is full; cancelling gives the place back at once."""
        self.check_room()
        waiter = Waiter(place)
        self._by_model.setdefault(model, deque()).append(waiter)
        self.waiting += 1
        # Those before it may be waiting for another backend than the one that is free.
        self.serve(model)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            # Placed and cancelled in the same turn of the loop: the slot is ours to give back.
            if waiter.future.done() and not waiter.future.cancelled():
                give_back(waiter.future.result())
            self.serve(model)
            raise
        finally:
            self.waiting -= 1
            self._leave(model, waiter)

    def serve(self, model: str) -> None:
        """Places as many waiters of a model as there are slots for, first come first served."""
        line = self._by_model.get(model)
        if line is None:
            return
        passed_over: list[Waiter] = []
        while line and len(passed_over) < LOOKAHEAD:
            waiter = line.popleft()
            if waiter.future.done():
                continue
            state = waiter.place()
            if state is None:
                passed_over.append(waiter)
                continue
            self._served.append(time.monotonic())
            waiter.future.set_result(state)
        line.extendleft(reversed(passed_over))

    def serve_all(self) -> None:
        for model in list(self._by_model):
            self.serve(model)

    def expected_wait(self) -> float:
        """Seconds until the line as it is now has been served, from the rate of the last minute."""
        now = time.monotonic()
        recent = [moment for moment in self._served if now - moment < 60]
        if len(recent) < 2:
            return 5.0
        rate = len(recent) / max(now - recent[0], 0.1)
        return min(max(self.waiting / rate, 1.0), 60.0)

    def _leave(self, model: str, waiter: Waiter) -> None:
        line = self._by_model.get(model)
        if line is None:
            return
        try:
            line.remove(waiter)
        except ValueError:
            pass
        if not line:
            del self._by_model[model]
