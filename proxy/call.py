"""All that is known about one call so far."""

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from proxy import dialects
from proxy.client_address import Address
from proxy.dialects import Dialect
from proxy.errors import Interruption
from proxy.limits.memory import Reservation
from proxy.metering import Meter
from proxy.routes import Route
from proxy.snapshot import Key, Model
from usage.costs import PriceRow

if TYPE_CHECKING:
    from proxy.fleet.state import BackendState


class Ids:
    """UUIDv7 (RFC 9562 §5.7) as 32 hex digits: they sort by time, which keeps the index of the table compact.

    The random part of this process is drawn once and counted up (§6.2): one look at the system's randomness a call
    would be a system call.
    """

    def __init__(self) -> None:
        self._tail = int.from_bytes(os.urandom(10), "big")

    def new(self, epoch: float) -> str:
        self._tail = tail = self._tail + 1 & 0x3FFFFFFFFFFFFFFFFFF
        high = (int(epoch * 1000) & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | (tail >> 62) << 64
        return f"{high | 0b10 << 62 | tail & 0x3FFFFFFFFFFFFFFF:032x}"


class Call:
    """Times are seconds of the monotonic clock unless named epoch. Filled by the steps of GatewayConsumer in turn."""

    # What most calls never set costs nothing as an attribute of the class.
    route: Route | None = None
    key: Key | None = None
    model: Model | None = None
    asked = ""
    model_digest = ""
    stream = False
    client_request_id = ""
    user_agent = ""
    end_user = ""

    reservation: Reservation | None = None
    price: PriceRow | None = None
    output_cap = 0
    adjusted: Sequence[str] = ()
    context = 0  # the num_ctx it asks for
    answered_as_unloaded = False

    backend: "BackendState | None" = None
    attempts = 0
    dispatched_at = 0.0
    first_byte_at = 0.0
    queue_seconds = 0.0
    meter: Meter | None = None

    bytes_in = 0
    bytes_out = 0
    status = 0
    outcome = ""
    error = ""
    headers_sent = False
    segment: Any = None  # the spool segment that holds its open entry

    task: asyncio.Task[Any] | None = None
    running = True
    interruption: Interruption | None = None
    # Judged by one sweeper a second for all calls; 0 = none.
    deadline = 0.0
    deadline_reason = Interruption.TOTAL
    total_deadline = 0.0

    def __init__(self, call_id: str, method: str, path: bytes, address: Address | None, epoch: float) -> None:
        self.id = call_id
        self.method = method
        self.path = path
        self.address = address
        self.started_epoch = epoch
        self.started_at = time.monotonic()
        self.dialect: Dialect = dialects.of_path(path)

    def interrupt(self, reason: Interruption) -> None:
        """Ends the call from outside its task. The first reason counts; after the end it does nothing."""
        if self.running and self.interruption is None and self.task is not None:
            self.interruption = reason
            self.task.cancel()

    def expect_within(self, seconds: float, reason: Interruption) -> None:
        """Sets what the sweeper judges the present wait by."""
        self.deadline = time.monotonic() + seconds if seconds else 0.0
        self.deadline_reason = reason

    @property
    def started_text(self) -> str:
        """RFC 3339, as Ollama writes `created_at`."""
        return datetime.fromtimestamp(self.started_epoch, UTC).isoformat().replace("+00:00", "Z")

    def note_first_byte(self) -> None:
        self.first_byte_at = time.monotonic()
