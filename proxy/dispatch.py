"""From an admitted call to its end: reserve, record, a backend, the answer; and whatever happens, settle and close."""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from proxy import headers as header_rules
from proxy.admission import NOT_ACCEPTED
from proxy.call import Call
from proxy.client import Client, Headers
from proxy.dialects.base import Request, Usage
from proxy.errors import (
    BackendFault,
    BadGateway,
    GatewayTimeout,
    InternalError,
    Interruption,
    Refusal,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from proxy.fleet.state import BackendState
from proxy.ledger.rows import AT, Row
from proxy.limits import Amounts, Rule
from proxy.metering import Meter
from proxy.relay import Relay, busy, refusal_of
from proxy.routes import Kind
from proxy.runtime import Runtime
from proxy.texts import Listening
from proxy.upstream.wire import Answer
from usage.costs import PriceRow, cost_nano, pick

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
# What a large model makes on a slow machine; how long an answer in one piece may take is judged by it.
SLOWEST_TOKENS_PER_SECOND = 5
CLIENT_CLOSED_REQUEST = 499  # as nginx and Caddy have it

# What an interruption is to the record (outcome), and to a client that still waits.
_ENDINGS: dict[Interruption, tuple[str, type[Refusal], str]] = {
    Interruption.CLIENT_GONE: ("cancelled", Unavailable, "The client left."),
    Interruption.WITHDRAWN: ("cut", Unauthorized, "The right to make this call was withdrawn."),
    Interruption.CANCELLED: ("cancelled", Unavailable, "An administrator cancelled this call."),
    Interruption.FIRST_BYTE: ("timeout", GatewayTimeout, "The backend took too long to begin its answer."),
    Interruption.GAP: ("timeout", GatewayTimeout, "The backend fell silent in mid-answer."),
    Interruption.TOTAL: ("timeout", GatewayTimeout, "The call took longer than a call may."),
    Interruption.LINE: ("refused_in_line", Unavailable, "No slot became free in time. Try again."),
    Interruption.DRAIN: ("interrupted", Unavailable, "The gateway is shutting down. Try again."),
}
# What is to be reserved: id of the call, its rules, model, address, how much.
Asked = tuple[str, tuple[Rule, ...], str, str, Amounts]
_ASKING = (Kind.GENERATION, Kind.EMBEDDING)
_FAULTS_OF_BACKENDS = (Interruption.FIRST_BYTE, Interruption.GAP)


def _nothing_reported(answer: Request) -> Usage:
    return Usage(done=False)


def to_reserve(call: Call, prices: Sequence[PriceRow]) -> Asked:
    """What a call takes of its limits, as far as can be said before it is made."""
    assert call.key is not None
    prompt = -(-call.prompt_bytes // 4)
    choose_price(call, prices, "")
    cost = cost_nano(call.price, prompt, call.output_cap, 0) if call.price else 0
    model = call.model.served.canonical if call.model is not None else ""
    address = call.address_text if call.key.rules else ""
    return call.id, call.key.rules, model, address, Amounts(prompt + call.output_cap, cost)


def choose_price(call: Call, prices: Sequence[PriceRow], backend: str) -> None:
    """The price at the moment of admission; a backend may have one of its own."""
    if prices and call.model is not None:
        at = datetime.fromtimestamp(call.started_epoch, UTC)
        call.price = pick(prices, call.model.served.canonical, backend, at)


class Dispatch:
    """One call, from its admission on."""

    # Whether a backend that is silent for too long is held for broken.
    blames_backends = True

    def __init__(self, runtime: Runtime, call: Call, client: Client) -> None:
        self.runtime = runtime
        self.call = call
        self.client = client
        self.prices = runtime.rules().tables.prices
        self.row: Row = []
        self.content_type = b""  # of the request upstream
        self.settled = False

    async def run(self, request: Request) -> Refusal | None:
        """Returns the refusal that the client is still owed, if any. Raises Refusal where nothing was admitted."""
        call = self.call
        payload = self._written(request)
        asked = to_reserve(call, self.prices)
        if asked[1] and self.runtime.limits.is_shared:
            await self._reserve_shared(asked)
        else:
            call.reservation = self.runtime.limits.reserve(*asked)
        self.row = self._opened()
        call.task = asyncio.current_task()
        self.runtime.began(call)
        listening = Listening(call, self.client, request) if self._is_kept() else None
        refusal: Refusal | None = None
        try:
            self._listen()
            await self._relay(payload)
        except Refusal as exc:
            refusal = exc
        except asyncio.CancelledError:
            if call.interruption is None:
                call.interruption = Interruption.DRAIN  # the server ends its tasks
            elif call.task is not None:
                call.task.uncancel()
            refusal = self._interrupted(call.interruption)
        except Exception:
            logger.exception("The call %s failed", call.id)
            refusal = InternalError()
        finally:
            call.running = False
            self.client.stop_watching()
            self._settle(refusal)
            self.runtime.ended(call)
            if listening is not None:
                self.runtime.keep_text(call, listening)
        return None if call.interruption is Interruption.CLIENT_GONE else refusal

    def _is_kept(self) -> bool:
        """Whether what is asked and answered is stored: for tenants that have it so, of what is asked of models."""
        call = self.call
        return call.key is not None and call.key.keeps_texts and call.route is not None and call.route.kind in _ASKING

    def _written(self, request: Request) -> bytes:
        """The body for the backend."""
        assert self.call.route is not None
        assert self.call.route.endpoint is not None
        self.content_type, payload = self.call.route.endpoint.written(request)
        return payload

    def _listen(self) -> None:
        """From now on the client's departure ends the call."""
        self.client.on_departure(self.call.interrupt)

    async def _reserve_shared(self, asked: Asked) -> None:
        call, runtime = self.call, self.runtime
        reservation = await runtime.limits.reserve_shared(*asked)
        if not runtime.may_go_on(call):
            runtime.limits.release(reservation)
            raise Unauthorized("invalid_key", NOT_ACCEPTED)  # withdrawn while Redis was asked (A8)
        call.reservation = reservation

    def _opened(self) -> Row:
        """Opens the record of a call whose amounts are reserved, or gives them back."""
        call, runtime = self.call, self.runtime
        assert call.reservation is not None
        try:
            return runtime.ledger.admit(call)
        except Refusal:
            runtime.limits.release(call.reservation)
            raise

    async def _relay(self, payload: bytes) -> None:
        """Finds a backend, sends the call, passes its answer on; on another backend where that is safe."""
        call, fleet = self.call, self.runtime.fleet
        assert call.model is not None
        assert call.route is not None
        call.end_within(self.runtime.configuration.total_seconds)
        needs_slot = call.route.kind is not Kind.SHOW
        tried: list[str] = []
        fleet.call_began()
        while True:
            if needs_slot:
                state = fleet.free_slot_for(call, tried) or await self._wait_for_slot(tried)
            else:
                state = await fleet.any_holder(call, tried)
            try:
                tried.append(state.name)
                if await self._attempt(state, payload, tried):
                    return
            finally:
                if needs_slot:
                    fleet.release(state, call.model.served.canonical)

    async def _wait_for_slot(self, tried: list[str]) -> BackendState:
        call = self.call
        began = time.monotonic()
        call.expect_within(self.runtime.configuration.line_seconds, Interruption.LINE)
        try:
            return await self.runtime.fleet.slot_for(call, tried)
        finally:
            call.queue_seconds += time.monotonic() - began

    async def _attempt(self, state: BackendState, payload: bytes, tried: list[str]) -> bool:
        """One backend. True when the client has its answer; False to go on elsewhere. Raises the Refusal to send."""
        call, fleet = self.call, self.runtime.fleet
        call.backend = state
        call.attempts += 1
        call.dispatched_at = time.monotonic()
        # Until there is an answer to read: if the call ends now, the prompt may have been worked on.
        call.meter = Meter(_nothing_reported, call.prompt_bytes)
        call.expect_within(self._patience(), Interruption.FIRST_BYTE)
        try:
            answer = await state.pool.exchange(self._request(state, payload))
            try:
                if answer.status == 200:
                    await self._pass_on(state, answer)
                    return True
                call.meter = None
                return await self._unserved(state, answer, tried)
            finally:
                answer.close()
        except Unreachable as exc:
            call.meter = None
            logger.warning("Backend %s cannot be reached: %s", state.name, exc)
            fleet.failed(state, str(exc))
            if self._may_go_elsewhere(tried, "unreachable"):
                return False
            message = f"The backend cannot be reached. Our id is {call.id}."
            raise BadGateway("backend_unreachable", message, retry_after=2) from None
        except BackendFault as exc:
            logger.warning("Backend %s failed %s: %s", state.name, call.id, exc)
            fleet.failed(state, str(exc))
            raise BadGateway("backend_broken", f"The backend gave no valid answer. Our id is {call.id}.") from None
        finally:
            fleet.withdrew(call, state)

    def _patience(self) -> float:
        """Seconds until the head must be there. That of an answer in one piece comes with its last token."""
        call, seconds = self.call, self.runtime.configuration.first_byte_seconds
        return seconds if call.stream or not seconds else seconds + call.output_cap / SLOWEST_TOKENS_PER_SECOND

    def _request(self, state: BackendState, payload: bytes) -> tuple[bytes, bytes]:
        """Head and body, all of it written by us but for the allowed headers of the client."""
        assert self.call.route is not None
        framing = b"content-type: %b\r\ncontent-length: %d\r\n" % (self.content_type, len(payload))
        return self._head(state, self.call.route.upstream, framing), payload

    def _head(self, state: BackendState, line: bytes, framing: bytes) -> bytes:
        """`line`: method and path; `framing`: whole lines that say what body follows."""
        call, client = self.call, self.client
        hops = client.header(header_rules.LOOP_MARKER)
        marker = self.runtime.instance if hops is None else hops + b"," + self.runtime.instance
        head = b"%b HTTP/1.1\r\nhost: %b\r\n%b" % (line, state.host, framing)
        ours = b"accept-encoding: identity\r\nx-request-id: %b\r\n%b: %b\r\n" % (
            call.id.encode(),
            header_rules.LOOP_MARKER,
            marker,
        )
        credential = b"%b: %b\r\n" % state.backend.credential if state.backend.credential else b""
        theirs = client.headers
        if call.trace is not None:
            # The trace goes on from our span.
            theirs = [pair for pair in theirs if pair[0] != b"traceparent"]
            ours += b"traceparent: %b\r\n" % call.trace.header
        return head + header_rules.towards_backend(theirs) + ours + credential + b"\r\n"

    async def _pass_on(self, state: BackendState, answer: Answer) -> None:
        call = self.call
        assert call.model is not None
        assert call.route is not None
        assert call.route.endpoint is not None
        installed = state.models.get(call.model.served.canonical)
        call.model_digest = installed.digest if installed is not None else ""
        gap = self.runtime.configuration.gap_seconds
        relay = Relay(call, self.client, answer, self._headers(), gap, self._settle)
        endpoint, kind = call.route.endpoint, answer.header(b"content-type")
        await relay.run(endpoint.meter(kind, call.prompt_bytes, call.hides_usage))
        if call.error in ("", "incomplete"):
            state.breaker.succeeded()
        else:
            self.runtime.fleet.failed(state, call.error)

    def _headers(self) -> Headers:
        """The headers of a good answer."""
        call = self.call
        headers = [
            *((name, call.id.encode()) for name in call.dialect.id_headers),
            (b"x-gateway-queue-ms", b"%d" % (call.queue_seconds * 1000)),
            *header_rules.SAFETY,
        ]
        if call.backend is not None:  # none has worked for an answer that was kept
            headers.append((b"x-gateway-backend", call.backend.name.encode("ascii", "replace")))
        if call.reservation is not None and call.reservation.held:
            headers += call.reservation.headers(self.runtime.now())
        if call.adjusted:
            headers.append((b"x-gateway-adjusted", ", ".join(call.adjusted).encode("ascii", "replace")))
        if call.stream:
            headers.append((b"x-accel-buffering", b"no"))  # nginx in front would hold the stream back
        return headers

    async def _unserved(self, state: BackendState, answer: Answer, tried: list[str]) -> bool:
        """An answer other than 200: False to go on elsewhere, else raises the Refusal that it means."""
        call, fleet = self.call, self.runtime.fleet
        assert call.model is not None
        if answer.status == 503:
            # Busy is no fault. Warm models go on; what would have to be loaded had better wait.
            state.busy_until = time.monotonic() + 1.0
            if self._may_go_elsewhere(tried, "busy"):
                return False
            raise busy()
        refusal = await refusal_of(answer, call)
        if answer.status == 404:
            # It may have lost the model; an older server, or another kind, lacks the route, and serves other calls.
            lost = "model" in refusal.message.lower()
            if lost:
                fleet.lacks(state, call.model.served.canonical)
            if self._may_go_elsewhere(tried, "lacks_model" if lost else "lacks_route"):
                return False
        if 400 <= answer.status < 500:
            state.breaker.succeeded()
        else:
            fleet.failed(state, f"status {answer.status}")
        raise refusal

    def _may_go_elsewhere(self, tried: list[str], failure: str) -> bool:
        """`failure`: what the last one tried did, for the record, if so."""
        fleet = self.runtime.fleet
        if len(tried) < MAX_ATTEMPTS and fleet.has_another(self.call, tried) and fleet.may_retry():
            self.call.failed_attempts = [*self.call.failed_attempts, (tried[-1], failure)]
            return True
        return False

    def _interrupted(self, reason: Interruption) -> Refusal:
        """What the client is told, if it still listens; the record's outcome is set."""
        call = self.call
        call.outcome, kind, message = _ENDINGS[reason]
        call.error = reason.value
        if reason in _FAULTS_OF_BACKENDS and call.backend is not None and self.blames_backends:
            self.runtime.fleet.failed(call.backend, reason.value)
        if reason is Interruption.CLIENT_GONE and not call.headers_sent:
            call.status = CLIENT_CLOSED_REQUEST
        retry_after = 2.0 if kind is Unavailable and reason is not Interruption.CANCELLED else None
        return kind(reason.value, f"{message} Our id is {call.id}.", retry_after=retry_after)

    def _settle(self, refusal: Refusal | None = None) -> None:
        """Settles limits and closes the record, once. Never awaits, so nothing can come between.

        The relay calls it before the last bytes leave: a client that has its whole answer has its record, whatever
        happens to this process then (U1).
        """
        if self.settled:
            return
        self.settled = True
        call, runtime, row = self.call, self.runtime, self.row
        if refusal is not None:
            call.status = call.status or refusal.status
            call.error = call.error or refusal.code
            call.outcome = call.outcome or ("refused_in_line" if refusal.code == "line_full" else "failed")
        if call.backend is not None:
            choose_price(call, self.prices, call.backend.name)
        runtime.ledger.finish(call, row)
        tokens, completion = row[AT["prompt_tokens"]], row[AT["completion_tokens"]]
        assert call.reservation is not None
        if call.dispatched_at:
            runtime.limits.settle(call.reservation, Amounts(tokens + completion, row[AT["cost_nano"]] or 0))
        else:
            runtime.limits.release(call.reservation)
        runtime.recorded(call, row)
