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

_PROMPT, _COMPLETION = TOKENS.labels("prompt"), TOKENS.labels("completion")
_calls: dict[tuple[str, int, str], Counter] = {}


def observe_call(call: Call, prompt_tokens: int, completion_tokens: int) -> None:
    assert call.route is not None
    labels = (call.route.path, call.status, call.outcome)
    child = _calls.get(labels)
    if child is None:
        child = _calls[labels] = CALLS.labels(*labels)
    child.inc()
    _PROMPT.inc(prompt_tokens)
    _COMPLETION.inc(completion_tokens)


def observe_refusal(call: Call, code: str) -> None:
    REFUSALS.labels(call.route.path if call.route else "other", code).inc()


def observe_runtime(runtime: "Runtime") -> None:
    IN_FLIGHT.set(len(runtime.calls))
    WAITING.set(runtime.fleet.line.waiting)
    SPOOL.set(runtime.ledger.spool.size)
    BACKLOG.set(runtime.ledger.backlog)
