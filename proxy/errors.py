"""Everything that ends a call before its time.

Refusal                     answered in the dialect of the route; carries status, code, text, headers
├── BadRequest              400
├── Unauthorized            401
├── Forbidden               403
├── NotFound                404
├── MethodNotAllowed        405
├── TooLarge                413
├── UnsupportedEncoding     415
├── TooManyRequests         429
├── BadGateway              502
├── Unavailable             503
├── GatewayTimeout          504
└── LoopDetected            508
BackendFault                what went wrong between us and a backend (upstream/), before it became a Refusal
├── Unreachable             no connection: nothing was sent
├── StaleConnection         a pooled connection died before a byte came back
└── BrokenAnswer            not HTTP, cut short, or nothing we may pass on
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

LONGEST_WAIT_OF_SDKS = 60  # seconds


class Refusal(Exception):
    """`code` goes to x-gateway-error and, where the dialect has room, into the body."""

    status = 500

    def __init__(
        self, code: str, message: str, *, retry_after: float | None = None, headers: dict[bytes, bytes] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.headers = headers or {}
        self.said: Mapping[str, Any] = {}  # a backend's own error object

    @property
    def may_be_retried(self) -> bool:
        """SDKs repeat 429 and 5xx by themselves, and wait a minute at most (ollama-api §8.2).

        A failure that does not say when to come back would be met again, after the same work.
        """
        if self.retry_after is None:
            return self.status < 500
        return self.retry_after <= LONGEST_WAIT_OF_SDKS


class BadRequest(Refusal):
    status = 400

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(code, message)


class Unauthorized(Refusal):
    status = 401


class Forbidden(Refusal):
    status = 403


class NotFound(Refusal):
    status = 404


class MethodNotAllowed(Refusal):
    status = 405


class TooLarge(Refusal):
    status = 413


class UnsupportedEncoding(Refusal):
    status = 415


class TooManyRequests(Refusal):
    status = 429

    # (id of the limit, its counter) where somebody wants to be told that it is used up.
    ran_out: tuple[int, str] | None = None


class InternalError(Refusal):
    """The last resort: always a bug of ours."""

    status = 500

    def __init__(self) -> None:
        super().__init__("internal_error", "The gateway failed to answer. The log has the details.")


class BadGateway(Refusal):
    status = 502


class Unavailable(Refusal):
    status = 503


class GatewayTimeout(Refusal):
    status = 504


class LoopDetected(Refusal):
    status = 508


class BackendFault(Exception):
    """The text is for the log only: it may name addresses and paths."""


class Unreachable(BackendFault):
    pass


class StaleConnection(BackendFault):
    pass


class BrokenAnswer(BackendFault):
    pass


class Interruption(Enum):
    """Why a call in flight is ended from outside its own task."""

    CLIENT_GONE = "client_gone"
    WITHDRAWN = "withdrawn"  # key, user, tenant, address or model right
    CANCELLED = "cancelled"  # somebody pressed Cancel
    FIRST_BYTE = "first_byte_timeout"
    GAP = "gap_timeout"
    TOTAL = "total_timeout"
    LINE = "line_timeout"
    DRAIN = "draining"
