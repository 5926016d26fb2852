"""The call upstream that a flight is about: nobody's client, record or limits."""

import asyncio
import logging
from collections.abc import Callable

from proxy.cache.coalescing import Flight
from proxy.call import Call
from proxy.client import Client, Headers
from proxy.dispatch import Dispatch
from proxy.errors import InternalError, Interruption, Refusal
from proxy.fleet.state import BackendState
from proxy.runtime import Runtime

logger = logging.getLogger(__name__)


class Recorder(Client):
    """Takes the place of a client: what would be sent goes into the flight."""

    def __init__(self, client: Client, flight: Flight, ended: Callable[[], None]) -> None:
        self.headers = client.headers  # those that a backend may see
        self.fields = client.fields
        self.added_headers = []
        self._flight = flight
        self._ended = ended

    async def start(self, status: int, headers: Headers) -> None:
        self._flight.begin([pair for pair in headers if pair[0] != b"content-length"])

    async def write(self, chunk: bytes) -> None:
        self._flight.add(chunk)
        await self._flight.room()

    async def end(self, chunk: bytes = b"") -> None:
        self._flight.add(chunk)
        self._ended()


class Carrier(Dispatch):
    """`whole(made)` is called once, when the answer is there to its end, before anybody is told."""

    def __init__(
        self, runtime: Runtime, leader: Call, client: Client, flight: Flight, whole: Callable[[Call], None]
    ) -> None:
        made = Call(leader.id, leader.method, leader.path, leader.address, leader.started_epoch)
        made.started_at = leader.started_at
        made.route, made.key, made.model = leader.route, leader.key, leader.model
        made.asked = flight.named
        made.stream, made.context = flight.stream, leader.context
        made.trace = leader.trace
        made.prompt_bytes, made.output_cap = leader.prompt_bytes, leader.output_cap
        super().__init__(runtime, made, Recorder(client, flight, self._is_whole))
        self.flight = flight
        flight.made = made
        self._whole = whole

    async def fly(self, content_type: bytes, payload: bytes) -> None:
        """Ends with the answer, a refusal that all listeners get, or because nobody listens any more."""
        made, flight = self.call, self.flight
        self.content_type = content_type
        made.task = asyncio.current_task()
        refusal: Refusal | None = None
        try:
            await self._relay(payload)
        except Refusal as exc:
            refusal = exc
        except asyncio.CancelledError:
            if made.interruption is not None and made.task is not None:
                made.task.uncancel()
            # Cancelled without a reason: nobody is left to be told, or the server ends its tasks.
            refusal = self._interrupted(made.interruption or Interruption.DRAIN)
        except Exception:
            logger.exception("The call %s failed", made.id)
            refusal = InternalError()
        finally:
            made.running = False
            if refusal is not None and not flight.finished:
                made.outcome = made.outcome or ("refused_in_line" if refusal.code == "line_full" else "failed")
                made.error = made.error or refusal.code
            self.runtime.cache.flights.remove(flight)
            flight.finish(refusal)

    def _is_whole(self) -> None:
        try:
            self._whole(self.call)
        except Exception:
            logger.exception("The answer to %s could not be kept", self.call.id)  # those who wait for it get it
        self.runtime.cache.flights.remove(self.flight)
        self.flight.finish()

    async def _attempt(self, state: BackendState, payload: bytes, tried: list[str]) -> bool:
        # For the live pages.
        for number, listener in enumerate(self.flight.listeners):
            listener.call.deadline_reason = Interruption.FIRST_BYTE
            if not number:
                listener.call.backend = state
        return await super()._attempt(state, payload, tried)

    def _headers(self) -> Headers:
        return []  # each listener has its own

    def _settle(self, refusal: Refusal | None = None) -> None:
        pass  # each listener does
