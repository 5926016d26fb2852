"""What Prometheus is told of calls. Labels are closed sets: routes of our table, statuses, codes."""

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from proxy.call import Call

if TYPE_CHECKING:
    from proxy.runtime import Runtime

CALLS = Counter("gateway_calls_total", "Calls by route, status and outcome", ["endpoint", "status", "outcome"])
REFUSALS = Counter("gateway_refusals_total", "Calls refused before they were admitted", ["endpoint", "code"])
TOKENS = Counter("gateway_tokens_total", "Tokens of ended calls", ["kind"])
IN_FLIGHT = Gauge("gateway_calls_in_flight", "Calls in flight")
WAITING = Gauge("gateway_line_length", "Calls that wait for a slot")
SPOOL = Gauge("gateway_spool_bytes", "Size of the spool of usage records")
BACKLOG = Gauge("gateway_ledger_backlog", "Ended calls that are not in the database yet")

# Counted here and handed to Prometheus once a second: its counters take a lock and a microsecond each.
_calls: dict[tuple[str, int, str], int] = {}
_tokens = [0, 0]


def observe_call(call: Call, prompt_tokens: int, completion_tokens: int) -> None:
    assert call.route is not None
    labels = (call.route.path, call.status, call.outcome)
    _calls[labels] = _calls.get(labels, 0) + 1
    _tokens[0] += prompt_tokens
    _tokens[1] += completion_tokens


def observe_refusal(call: Call, code: str) -> None:
    REFUSALS.labels(call.route.path if call.route else "other", code).inc()


def observe_runtime(runtime: "Runtime") -> None:
    for labels, count in _calls.items():
        CALLS.labels(*labels).inc(count)
    _calls.clear()
    for kind, count in zip(("prompt", "completion"), _tokens, strict=True):
        TOKENS.labels(kind).inc(count)
    _tokens[:] = 0, 0
    IN_FLIGHT.set(len(runtime.calls))
    WAITING.set(runtime.fleet.line.waiting)
    SPOOL.set(runtime.ledger.spool.size)
    BACKLOG.set(runtime.ledger.backlog)
