"""All that is known about one call so far."""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxy import dialects
from proxy.client_address import Address
from proxy.clock import in_utc
from proxy.dialects import Dialect
from proxy.errors import Interruption
from proxy.limits import Reservation
from proxy.metering import Meter
from proxy.model_names import ModelName
from proxy.routes import Route
from proxy.snapshot import Key, Model
from usage.costs import PriceRow

if TYPE_CHECKING:
    from proxy.fleet.state import BackendState
    from proxy.tracing import Trace


class Ids:
    """UUIDv7 (RFC 9562 §5.7) as 32 hex digits: they sort by time, which keeps the index of the table compact.

    The random part of this process is drawn once and counted up (§6.2): one look at the system's randomness a call
    would be a system call.
    """

    def __init__(self) -> None:
        self._tail = int.from_bytes(os.urandom(10), "big")

    def new(self, epoch: float) -> str:
        self._tail = tail = self._tail + 1 & 0x3FFFFFFFFFFFFFFFFFF
        # Milliseconds, version 7, 12 bits of the tail, variant 0b10, 62 bits of the tail. In pieces: the hexadecimal
        # form of one number of 128 bits takes twice as long.
        low = tail & 0x3FFFFFFFFFFFFFFF | 0x8000000000000000
        return f"{int(epoch * 1000) & 0xFFFFFFFFFFFF:012x}{tail >> 62 | 0x7000:04x}{low:016x}"


def key_in_path(path: bytes) -> tuple[bytes | None, bytes]:
    """The key of /k/KEY/… and the path behind it; nothing is decoded or cleaned up."""
    if path.startswith(b"/k/"):
        key, slash, rest = path[3:].partition(b"/")
        if slash:
            return key, slash + rest
    return None, path


class Call:
    """Times are seconds of the monotonic clock unless named epoch. Filled by the steps of GatewayConsumer in turn."""

    __slots__ = (
        "address",
        "address_written",
        "adjusted",
        "answered_as_unloaded",
        "asked",
        "attempts",
        "backend",
        "bytes_in",
        "bytes_out",
        "chosen",
        "client_request_id",
        "context",
        "deadline",
        "deadline_reason",
        "decides",
        "dialect",
        "dispatched_at",
        "end_user",
        "error",
        "failed_attempts",
        "first_byte_at",
        "headers_sent",
        "hides_usage",
        "id",
        "interruption",
        "is_free",
        "key",
        "manages",
        "meter",
        "method",
        "model",
        "model_digest",
        "outcome",
        "output_cap",
        "parameter",
        "path",
        "path_key",
        "price",
        "prompt_bytes",
        "queue_seconds",
        "reservation",
        "route",
        "running",
        "started_at",
        "started_epoch",
        "status",
        "stream",
        "task",
        "total_deadline",
        "trace",
        "upstream",
        "user_agent",
    )

    def __init__(self, call_id: str, method: str, path: bytes, address: Address | None, epoch: float) -> None:
        """`path` as it was sent; a key in it is taken out, and is nowhere but in `path_key` (threat A6)."""
        self.id = call_id
        self.method = method
        self.path_key, path = key_in_path(path)
        self.path = path
        self.address = address
        self.address_written = ""
        self.started_epoch = epoch
        self.started_at = time.monotonic()
        self.dialect: Dialect = dialects.of_path(path)
        self.route: Route | None = None
        self.key: Key | None = None
        self.model: Model | None = None
        self.manages: Sequence[ModelName] = ()  # all models that a call of model management names
        self.parameter = ""  # the last segment of a path that has one, as it came
        self.upstream = b""  # method and path towards the backend, where the route alone does not say
        self.asked = ""
        self.model_digest = ""
        self.stream = False
        self.client_request_id = ""
        self.user_agent = ""
        self.end_user = ""

        self.reservation: Reservation | None = None
        self.price: PriceRow | None = None
        self.output_cap = 0
        self.adjusted: Sequence[str] = ()
        self.context = 0  # the num_ctx it asks for
        self.answered_as_unloaded = False
        self.is_free = False  # its answer was made for another, and the rules say that such answers cost nothing
        self.hides_usage = False  # the client did not ask for the usage that we asked for

        self.backend: BackendState | None = None
        self.attempts = 0
        self.failed_attempts: Sequence[tuple[str, str]] = ()  # (backend, what it did) before another was tried
        # Of the backend when it was chosen: whether the model was warm there, how many calls it had, of how many
        # backends it was one.
        self.chosen: tuple[bool, int, int] | None = None
        self.decides = False  # whether a half-open breaker waits for what becomes of this call
        self.dispatched_at = 0.0
        self.first_byte_at = 0.0
        self.queue_seconds = 0.0
        self.meter: Meter | None = None

        self.bytes_in = 0
        self.prompt_bytes = 0  # what the prompt is estimated by: four bytes are a token
        self.bytes_out = 0
        self.status = 0
        self.outcome = ""
        self.error = ""
        self.headers_sent = False

        self.task: asyncio.Task[Any] | None = None
        self.running = True
        self.interruption: Interruption | None = None
        # Judged by one sweeper a second for all calls; 0 = none.
        self.deadline = 0.0
        self.deadline_reason = Interruption.TOTAL
        self.total_deadline = 0.0
        self.trace: Trace | None = None  # where traces are sent

    def interrupt(self, reason: Interruption) -> None:
        """Ends the call from outside its task. The first reason counts; after the end it does nothing."""
        if self.running and self.interruption is None and self.task is not None:
            self.interruption = reason
            self.task.cancel()

    def expect_within(self, seconds: float, reason: Interruption) -> None:
        """Sets what the sweeper judges the present wait by."""
        self.deadline = time.monotonic() + seconds if seconds else 0.0
        self.deadline_reason = reason

    def end_within(self, seconds: float) -> None:
        """Bounds the whole call, from its beginning; 0: no bound."""
        self.total_deadline = self.started_at + seconds if seconds else 0.0

    @property
    def address_text(self) -> str:
        """ "" for a peer without an address. Written once a call: that takes over a microsecond."""
        if not self.address_written and self.address is not None:
            self.address_written = str(self.address)
        return self.address_written

    @property
    def started_text(self) -> str:
        """RFC 3339, as Ollama writes `created_at`."""
        return in_utc(self.started_epoch) + "Z"

    @property
    def model_was_found(self) -> bool:
        """Whether some backend has the model: other names are whatever the caller made up, be it a key."""
        if self.manages:
            return self.outcome == "ok"
        return self.model is not None and (self.attempts > 0 or self.outcome not in ("", "failed"))

    def note_first_byte(self) -> None:
        """Of a good answer."""
        self.first_byte_at = time.monotonic()
        if self.decides and self.backend is not None:
            self.decides = False
            self.backend.breaker.answered()
