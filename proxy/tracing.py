"""A span for each call, with a child for each step, to an OpenTelemetry collector: the extra [otel].

Made when the call has ended, from what its record knows, except for the ids, which a backend is told before. Nothing
waits for the collector: spans go out in batches, by a thread of the SDK, from a queue that is bounded.
"""

import logging
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.call import Call
from proxy.client import Headers
from proxy.configuration import Configuration
from proxy.ledger.rows import AT, Row
from proxy.metrics.families import OPERATIONS, PROVIDER

logger = logging.getLogger(__name__)

MISSING = "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'ollama-gateway[otel]'"
# Spans that wait for the collector; what comes beyond them is dropped.
MOST_WAITING = 4096
BATCH = 512
EXPORT_SECONDS = 2.0
# How long (seconds) a collector may take for a batch, and the end of the process for what is left.
PATIENCE = 10.0
CLOSING_PATIENCE = 2.0

BACKEND = "backend"  # the step whose span backends go on from

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_SAMPLED = 1

# The attributes that come from a record as they are.
_OF_RECORD = {
    "gen_ai.usage.input_tokens": AT["prompt_tokens"],
    "gen_ai.usage.output_tokens": AT["completion_tokens"],
    "gateway.tenant": AT["tenant_name"],
    "gateway.user": AT["user_name"],
    "gateway.key": AT["key_name"],
    "gateway.attempts": AT["attempts"],
    "gateway.tokens.estimated": AT["estimated"],
    "http.request.body.size": AT["bytes_in"],
    "http.response.body.size": AT["bytes_out"],
    "client.address": AT["client_address"],
}
_COST, _CURRENCY, _FINISHED = AT["cost_nano"], AT["currency"], AT["finished_at"]


@dataclass(slots=True)
class Trace:
    """The ids of one call: its trace, its span, the one towards its backend, and that of the caller (0: none)."""

    trace_id: int
    span_id: int
    backend_id: int
    parent_id: int
    sampled: bool

    @property
    def header(self) -> bytes:
        """What a backend is told as traceparent."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.backend_id, self.sampled)


class Tracing:
    """Of one process. Methods are the loop's, and never wait."""

    def __init__(self, endpoint: str, headers: Sequence[tuple[str, str]], service: str, ratio: float) -> None:
        """`endpoint`: of the collector, without /v1/traces; `ratio`: which share of traces that begin here is kept.

        Raises ImportError where the SDK is not installed.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._ratio = ratio
        self._random = random.Random()  # noqa: S311 - ids, not secrets
        self._resource = Resource.create({"service.name": service})
        self._scope = InstrumentationScope("ollama-gateway")
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", headers=dict(headers), timeout=PATIENCE)
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=MOST_WAITING,
            max_export_batch_size=BATCH,
            schedule_delay_millis=EXPORT_SECONDS * 1000,
        )

    def begin(self, headers: Headers) -> Trace:
        """The trace that a caller has begun, or a new one."""
        span_id, backend_id = self._random.getrandbits(64) or 1, self._random.getrandbits(64) or 1
        for name, value in headers:
            if name == b"traceparent" and (said := _TRACEPARENT.match(value)):
                version, trace, parent, flags = said[1], int(said[2], 16), int(said[3], 16), int(said[4], 16)
                # Version ff is invalid; a later one may say more than we know, and 00 may not.
                if trace and parent and version != b"ff" and not (version == b"00" and said[5]):
                    return Trace(trace, span_id, backend_id, parent, bool(flags & _SAMPLED))
        is_kept = self._random.random() < self._ratio
        return Trace(self._random.getrandbits(128) or 1, span_id, backend_id, 0, is_kept)

    def recorded(self, call: Call, row: Row) -> None:
        """A call that has a record has ended."""
        trace = call.trace
        if trace is None or not trace.sampled:
            return
        attributes = self._common(call, call.status, call.outcome, call.error)
        for name, position in _OF_RECORD.items():
            if row[position] not in (None, ""):
                attributes[name] = row[position]
        if row[_COST] is not None:
            attributes["gateway.cost"] = row[_COST] / 1_000_000_000
            attributes["gateway.currency"] = row[_CURRENCY]
        self._end(call, trace, attributes, row[_FINISHED])

    def answered(self, call: Call, status: int, code: str) -> None:
        """A request that has none was answered, or refused with a code."""
        trace = call.trace
        if trace is not None and trace.sampled:
            attributes = self._common(call, status, "refused" if code else "answered", code)
            self._end(call, trace, attributes, call.started_epoch + time.monotonic() - call.started_at)

    def close(self) -> None:
        """Sends what is left, as far as that is done in time. Blocks: for a thread."""
        self._processor.force_flush(int(CLOSING_PATIENCE * 1000))
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _common(self, call: Call, status: int, outcome: str, error: str) -> dict[str, Any]:
        endpoint = call.route.path if call.route is not None else "other"
        attributes: dict[str, Any] = {
            "http.request.method": call.method if call.route is not None else "_OTHER",
            "http.route": endpoint,
            "http.response.status_code": status,
            "gateway.request_id": call.id,
            "gateway.outcome": outcome,
        }
        if call.client_request_id:
            attributes["gateway.client_request_id"] = call.client_request_id
        if error:
            attributes["error.type"] = error
        if endpoint in OPERATIONS:
            attributes["gen_ai.operation.name"] = OPERATIONS[endpoint]
            attributes["gen_ai.provider.name"] = attributes["gen_ai.system"] = PROVIDER
            attributes["gateway.stream"] = call.stream
        if call.model is not None and call.model_was_found:
            attributes["gen_ai.request.model"] = call.model.asked.canonical
            attributes["gen_ai.response.model"] = call.model.served.canonical
            attributes["gen_ai.request.max_tokens"] = call.output_cap
        if call.backend is not None:
            attributes["gateway.backend"] = call.backend.name
        return attributes

    def _end(self, call: Call, trace: Trace, attributes: dict[str, Any], end: float) -> None:
        from opentelemetry.trace import SpanKind

        name = " ".join(
            str(attributes[part])
            for part in ("gen_ai.operation.name", "gen_ai.response.model")
            if part in attributes
        ) or f"{attributes['http.request.method']} {attributes['http.route']}"  # fmt: skip
        is_error = attributes["http.response.status_code"] >= 500 or attributes["gateway.outcome"] == "failed"
        self._emit(trace, trace.span_id, trace.parent_id, name, SpanKind.SERVER, call.started_epoch, end, attributes,
                   is_error)  # fmt: skip
        for step, parent, began, ended in _steps(call, end):
            if step == BACKEND:
                more = {"gateway.backend": attributes["gateway.backend"], "gateway.attempt": call.attempts}
                self._emit(trace, trace.backend_id, trace.span_id, step, SpanKind.CLIENT, began, ended, more, is_error)
            else:
                own = self._random.getrandbits(64) or 1
                above = trace.backend_id if parent == BACKEND else trace.span_id
                self._emit(trace, own, above, step, SpanKind.INTERNAL, began, ended, {}, False)

    def _emit(
        self,
        trace: Trace,
        span_id: int,
        parent_id: int,
        name: str,
        kind: Any,
        began: float,
        ended: float,
        attributes: Mapping[str, Any],
        is_error: bool,
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        def context(of: int, *, remote: bool = False) -> SpanContext:
            return SpanContext(trace.trace_id, of, is_remote=remote, trace_flags=TraceFlags(_SAMPLED))

        span = ReadableSpan(
            name,
            context=context(span_id),
            parent=context(parent_id, remote=parent_id == trace.parent_id) if parent_id else None,
            resource=self._resource,
            attributes=attributes,
            kind=kind,
            status=Status(StatusCode.ERROR) if is_error else Status(StatusCode.UNSET),
            start_time=int(began * 1e9),
            end_time=int(max(began, ended) * 1e9),
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(span)


def _steps(call: Call, end: float) -> Iterator[tuple[str, str, float, float]]:
    """(name, what it is a part of, beginning, end) of each step that a call has come to. Times are epoch seconds."""
    began, queued = call.started_epoch, call.queue_seconds
    sent = call.dispatched_at - call.started_at + began if call.dispatched_at else end
    yield "admit", "", began, max(began, sent - queued)
    if queued:
        yield "wait in line", "", sent - queued, sent
    if call.dispatched_at and call.backend is not None:
        yield BACKEND, "", sent, end
        if call.first_byte_at:
            first = call.first_byte_at - call.started_at + began
            yield "first token", BACKEND, sent, first
            yield "answer", BACKEND, first, end


def tracing_of(configuration: Configuration) -> Tracing | None:
    """None where it is off."""
    if not configuration.otel_endpoint:
        return None
    try:
        return Tracing(
            configuration.otel_endpoint,
            configuration.otel_headers,
            configuration.otel_service,
            configuration.otel_ratio,
        )
    except ImportError:
        logger.error(MISSING)  # noqa: TRY400 - there is no more to say
        return None
