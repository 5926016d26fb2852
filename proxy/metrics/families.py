"""Every family of metrics: its name, type, labels, and what it is the sum of. Pure.

`{}` in a name is METRICS_NAMESPACE. The names that begin otherwise are those of OpenTelemetry's conventions for
generative AI, and of the proxies whose users find theirs again (docs/switching.md).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxy.metrics import layout
from proxy.metrics.gauges import CACHE_COUNTERS
from proxy.metrics.layout import COST_NANO, COUNT, Histogram
from proxy.metrics.tally import Sum

# What outcomes calls without a record have.
ANSWERED, REFUSED = "answered", "refused"

OPERATIONS = {
    "/api/chat": "chat", "/v1/chat/completions": "chat", "/v1/messages": "chat", "/v1/responses": "chat",
    "/api/generate": "text_completion", "/v1/completions": "text_completion",
    "/api/embed": "embeddings", "/api/embeddings": "embeddings", "/v1/embeddings": "embeddings",
    "/v1/audio/transcriptions": "transcription",
}  # fmt: skip
PROVIDER = "ollama"

CellKind = tuple[Any, ...]  # tally.Kind

_LABELS: Mapping[str, Callable[[CellKind], str]] = {
    "method": lambda kind: str(kind[0]),
    "endpoint": lambda kind: str(kind[1]),
    "status": lambda kind: str(kind[2]),
    "stream": lambda kind: "true" if kind[3] else "false",
    "model": lambda kind: str(kind[4]),
    "backend": lambda kind: str(kind[5]),
    "outcome": lambda kind: str(kind[6]),
    "code": lambda kind: str(kind[7]),
    "limit": lambda kind: str(kind[7]).partition("_")[2],
    "error": lambda kind: str(kind[7]) or f"status_{kind[2]}",
    "error_type": lambda kind: str(kind[7]),
    "gen_ai_operation_name": lambda kind: OPERATIONS[kind[1]],
    "gen_ai_provider_name": lambda kind: PROVIDER,
    "gen_ai_request_model": lambda kind: str(kind[4]),
}


def _short_name(kind: CellKind) -> str:
    return str(kind[4]).removesuffix(":latest")


def _is_call(kind: CellKind) -> bool:
    return kind[6] not in (ANSWERED, REFUSED)


def _is_inference(kind: CellKind) -> bool:
    return kind[1] in OPERATIONS and _is_call(kind)


def _is_refused(kind: CellKind) -> bool:
    return bool(kind[6] == REFUSED)


def _is_limited(kind: CellKind) -> bool:
    return _is_refused(kind) and kind[7] in ("limit_requests", "limit_tokens", "limit_concurrent", "budget_cost")


def _has_succeeded(kind: CellKind) -> bool:
    return bool(kind[2] < 400)


def _has_failed(kind: CellKind) -> bool:
    return not _has_succeeded(kind)


def _is_error(kind: CellKind) -> bool:
    return bool(kind[2] >= 400 or kind[6] in ("failed", "timeout", "interrupted"))


def _all(kind: CellKind) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Family:
    """One whose samples are sums over calls."""

    name: str
    help: str
    labels: tuple[str, ...]
    of: Histogram | None = None  # a histogram of it; else a counter
    at: int = COUNT  # of a counter: where its number stands
    scale: int = 1
    only: Callable[[CellKind], bool] = _all
    fixed: tuple[tuple[str, str], ...] = ()  # labels of one value each
    shortens: bool = False  # whether a model is named without ":latest", as most callers write it

    @property
    def kind(self) -> str:
        return "histogram" if self.of is not None else "counter"


_IN, _OUT = layout.PROMPT.sum, layout.COMPLETION.sum
_BILLION = 1_000_000_000
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

# Ours.
OWN = (
    Family("{}_requests_total", "Requests to the API, refused ones too", ("method", "endpoint", "status")),
    Family("{}_requests_duration_seconds", "How long requests to the API took", ("method", "endpoint"),
           layout.DURATION),
    Family("{}_requests_success_total", "Requests to the API answered below 400", ("method", "endpoint"),
           only=_has_succeeded),
    Family("{}_requests_failure_total", "Requests to the API answered with 400 or more", ("method", "endpoint"),
           only=_has_failed),
    Family("{}_calls_total", "Calls that have a record, ended", ("endpoint", "model", "backend", "status", "outcome"),
           only=_is_call),
    Family("{}_call_duration_seconds", "How long calls took, from the first byte to the last", ("model", "backend"),
           layout.DURATION, only=_is_inference),
    Family("{}_refusals_total", "Calls refused before they had a record, by reason", ("endpoint", "code"),
           only=_is_refused),
    Family("{}_limits_refused_total", "Calls refused because a limit is used up, by what it limits", ("limit",),
           only=_is_limited),
    Family("{}_tokens_total", "Tokens of ended calls", ("model", "backend"), at=_IN, only=_is_call,
           fixed=(("kind", "prompt"),)),
    Family("{}_tokens_total", "Tokens of ended calls", ("model", "backend"), at=_OUT, only=_is_call,
           fixed=(("kind", "completion"),)),
    Family("{}_cost_total", "Cost of ended calls, by the prices of the gateway", ("model", "backend"), at=COST_NANO,
           scale=_BILLION, only=_is_call, fixed=(("currency", ""),)),
    Family("{}_line_wait_seconds", "How long calls waited for a slot", ("model",), layout.WAIT, only=_is_inference),
    Family("{}_time_to_first_token_seconds", "From the call to the first bytes of its stream", ("model", "backend"),
           layout.FIRST_TOKEN),
    Family("{}_tokens_per_second", "Output tokens a second, of each call", ("model", "backend"), layout.RATE),
    Family("{}_model_load_seconds", "How long backends loaded the model, of calls that waited for it",
           ("model", "backend"), layout.LOAD),
    Family("{}_overhead_seconds", "The gateway's own part of a call: until it is sent on, less the wait in line",
           ("endpoint",), layout.OVERHEAD, only=_is_call),
    Family("{}_request_size_bytes", "Bodies of calls", ("endpoint",), layout.BYTES_IN, only=_is_call),
    Family("{}_response_size_bytes", "Bodies of answers to calls", ("endpoint",), layout.BYTES_OUT, only=_is_call),
)  # fmt: skip

# OpenTelemetry's names, as its exporters write them for Prometheus.
GEN_AI = (
    Family("gen_ai_client_token_usage", "Tokens of each call", _GEN_AI, layout.PROMPT, only=_is_inference,
           fixed=(("gen_ai_token_type", "input"),)),
    Family("gen_ai_client_token_usage", "Tokens of each call", _GEN_AI, layout.COMPLETION, only=_is_inference,
           fixed=(("gen_ai_token_type", "output"),)),
    Family("gen_ai_client_operation_duration_seconds", "How long calls took", (*_GEN_AI, "error_type"),
           layout.DURATION, only=_is_inference),
    Family("gen_ai_server_time_to_first_token_seconds", "From the call to the first bytes of its stream", _GEN_AI,
           layout.FIRST_TOKEN, only=_is_inference),
    Family("gen_ai_server_time_per_output_token_seconds", "Seconds a token of output, of each call", _GEN_AI,
           layout.PER_TOKEN, only=_is_inference),
)  # fmt: skip

# Those of other proxies. Where two of them have one name, it has the labels of both.
_THEIRS = (
    Family("ollama_requests_total", "Requests", ("endpoint", "model", "status")),
    Family("ollama_request_latency_seconds", "How long requests took", ("endpoint", "model"), layout.DURATION),
    Family("ollama_request_duration_seconds", "How long requests took", ("endpoint", "model"), layout.DURATION),
    Family("ollama_tokens_generated", "Output tokens of each call", ("model",), layout.COMPLETION),
    Family("ollama_tokens_per_second", "Output tokens a second, of each call", ("model",), layout.RATE),
    Family("ollama_proxy_requests_total", "Requests", ("method", "endpoint", "model", "status", "stream")),
    Family("ollama_proxy_request_duration_seconds", "How long requests took", ("method", "endpoint", "model", "stream"),
           layout.DURATION),
    Family("ollama_proxy_prompt_tokens_total", "Prompt tokens", ("endpoint", "model"), at=_IN, only=_is_call),
    Family("ollama_proxy_completion_tokens_total", "Output tokens", ("endpoint", "model"), at=_OUT, only=_is_call),
    Family("ollama_proxy_generated_tokens_total", "Output tokens", ("endpoint", "model"), at=_OUT, only=_is_call),
    Family("ollama_proxy_request_bytes_in_total", "Bytes of bodies of calls", ("endpoint", "model"),
           at=layout.BYTES_IN.sum, only=_is_call),
    Family("ollama_proxy_response_bytes_out_total", "Bytes of bodies of answers", ("endpoint", "model"),
           at=layout.BYTES_OUT.sum, only=_is_call),
    Family("ollama_proxy_tokens_per_second", "Output tokens a second, of each call", ("model",), layout.RATE),
    Family("ollama_proxy_time_to_first_token_seconds", "From the call to the first bytes of its stream", ("model",),
           layout.FIRST_TOKEN),
    Family("ollama_proxy_model_load_duration_seconds", "How long the model was loaded", ("model",), layout.LOAD),
    Family("ollama_proxy_queue_wait_time_seconds", "How long calls waited for a slot", ("model",), layout.WAIT,
           only=_is_inference),
    Family("ollama_proxy_token_cost_total", "Cost of calls", ("model",), at=COST_NANO, scale=_BILLION, only=_is_call,
           fixed=(("currency", ""),)),
    Family("ollama_proxy_errors_total", "Requests that failed", ("endpoint", "model", "error"), only=_is_error),
)  # fmt: skip

PREDECESSORS = tuple(replace(family, shortens=True) for family in _THEIRS)
CALLS = (*OWN, *GEN_AI, *PREDECESSORS)


@dataclass(frozen=True, slots=True)
class Other:
    """A family that is not a sum over calls."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    source: str = ""  # the number that it shows (gauges.py); of a counter: of Tally.counters
    merge: Callable[[Sequence[float]], float] = sum


OTHERS = (
    Other("{}_requests_by_ip_total", "counter", "Requests to the API by the address of the caller",
          ("ip", "endpoint", "status")),
    Other("{}_tenant_calls_total", "counter", "Calls that have a record, ended", ("tenant", "outcome")),
    Other("{}_tenant_tokens_total", "counter", "Tokens of ended calls", ("tenant", "kind")),
    Other("{}_tenant_cost_total", "counter", "Cost of ended calls", ("tenant", "currency")),
    Other("{}_calls_in_flight", "gauge", "Calls in flight", source="calls_in_flight"),
    Other("{}_line_length", "gauge", "Calls that wait for a slot", source="line_length"),
    Other("{}_workers", "gauge", "Processes that take calls", source="workers"),
    Other("{}_spool_bytes", "gauge", "Size of the spool of usage records", source="spool_bytes"),
    Other("{}_spool_limit_bytes", "gauge", "Size at which calls are refused rather than go unrecorded",
          source="spool_limit_bytes"),
    Other("{}_ledger_backlog", "gauge", "Ended calls that are not in the database yet", source="ledger_backlog"),
    Other("{}_ledger_lag_seconds", "gauge", "Since when the oldest of them waits", source="ledger_lag_seconds",
          merge=max),
    Other("{}_ledger_failing", "gauge", "1 while the database takes no records", source="ledger_failing", merge=max),
    Other("{}_rules_age_seconds", "gauge", "Since when the database was not heard of; it is asked every 0.25 s",
          source="rules_age_seconds", merge=max),
    Other("{}_apikeys_total", "gauge", "API keys that may be used", source="api_keys", merge=max),
    Other("{}_api_keys_total", "gauge", "API keys that may be used", source="api_keys", merge=max),
    Other("{}_ollama_servers_total", "gauge", "Backends that are enabled", source="backends", merge=max),
    Other("{}_backend_up", "gauge", "1 while a backend answers probes", ("backend",), "backend_up", min),
    Other("{}_backend_slots", "gauge", "Calls a backend is given at a time, of each model", ("backend",),
          "backend_slots", max),
    Other("{}_backend_in_flight", "gauge", "Calls that a backend works on", ("backend",), "backend_in_flight"),
    Other("{}_breaker_open", "gauge", "1 while a backend is left alone because it failed", ("backend",),
          "breaker_open", max),
    Other("{}_breaker_opened_total", "counter", "How often a backend left rotation", ("backend",), "breaker_opened"),
    Other("{}_cache_hits_total", "counter", "Answers from the cache", source="cache_hits"),
    Other("{}_cache_misses_total", "counter", "Calls that could have been answered from the cache, and were not",
          source="cache_misses"),
    Other("{}_cache_coalesced_total", "counter", "Calls that shared the answer of one in flight",
          source="cache_coalesced"),
    Other("{}_cache_bypassed_total", "counter",
          "Calls that the policy of the cache does not hold for, or that asked to be left out",
          source="cache_bypassed"),
    Other("{}_cache_evictions_total", "counter", "Answers that gave way to others", source="cache_evictions"),
    Other("{}_cache_saved_tokens_total", "counter", "Tokens that need not be generated", source="cache_saved_tokens"),
    Other("{}_cache_entries", "gauge", "Answers in the cache", source="cache_entries"),
    Other("{}_cache_bytes", "gauge", "Bytes of the answers in the cache", source="cache_bytes"),
    Other("{}_access_log_dropped_total", "counter", "Lines that were not written because their reader is too slow",
          source="access_log_dropped"),
    Other("ollama_cache_hits_total", "counter", "Answers from the cache", source="cache_hits"),
    Other("ollama_cache_misses_total", "counter", "Calls that could have been answered from the cache, and were not",
          source="cache_misses"),
    Other("ollama_cache_size", "gauge", "Answers in the cache", source="cache_entries"),
    Other("ollama_active_requests", "gauge", "Calls in flight", source="calls_in_flight"),
    Other("ollama_proxy_queue_size", "gauge", "Calls that wait for a slot", source="line_length"),
)  # fmt: skip

Gauges = list[list[Any]]  # [source, label, value], of one process

# Counters that are shown from the start.
_ALWAYS = (*(f"cache_{name}" for name in CACHE_COUNTERS), "access_log_dropped")


def text(total: Sum, gauges: Sequence[Gauges], namespace: str, currency: str) -> str:
    """Every family, as Prometheus reads it.

    Written by ourselves: prometheus_client takes ten times as long, half a second for a hundred models, in which calls
    would wait for the interpreter again and again.
    """
    lines: dict[str, list[str]] = {}
    for family in _calls(namespace):
        name = family.name.format(namespace)
        # Of one name there may be several, which differ in a label.
        found = lines.get(name)
        if found is None:
            found = lines[name] = _head(name, family.kind, family.help)
        _add(found, name, family, total, currency)
    numbers = _merged(total, gauges)
    for other in OTHERS:
        name = other.name.format(namespace)
        if name not in lines:
            samples = _samples(other, total, numbers, currency)
            lines[name] = _head(name, other.kind, other.help)
            lines[name] += [f"{name}{_braces(_written(labels))} {value}" for labels, value in samples]
    return "\n".join(line for found in lines.values() for line in found) + "\n"


def _calls(namespace: str) -> Iterator[Family]:
    """Under a namespace like `ollama` names of ours could be those of another proxy: theirs stay what they are."""
    others = {family.name for family in (*GEN_AI, *PREDECESSORS)}
    for family in CALLS:
        if family.name in others or family.name.format(namespace) not in others:
            yield family


def _head(name: str, kind: str, said: str) -> list[str]:
    return [f"# HELP {name} {said}", f"# TYPE {name} {kind}"]


def _written(labels: Mapping[str, str]) -> str:
    return ",".join([f'{label}="{_escaped(value)}"' for label, value in sorted(labels.items())])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _braces(written: str) -> str:
    return f"{{{written}}}" if written else ""


def _add(lines: list[str], name: str, family: Family, total: Sum, currency: str) -> None:
    of = family.of
    read = [_short_name if family.shortens and label == "model" else _LABELS[label] for label in family.labels]
    groups: dict[tuple[str, ...], list[list[int]]] = {}
    for kind, values in total.cells.items():
        if family.only(kind):
            groups.setdefault(tuple([label(kind) for label in read]), []).append(values)
    fixed = {label: value or currency for label, value in family.fixed}
    for key, cells in groups.items():
        labels = _written({**dict(zip(family.labels, key, strict=True)), **fixed})
        if of is not None:
            _add_histogram(lines, name, labels, of, cells)
            continue
        number = sum(values[family.at] for values in cells)
        lines.append(f"{name}{_braces(labels)} {number / family.scale if family.scale > 1 else number}")


def _add_histogram(lines: list[str], name: str, labels: str, of: Histogram, cells: Sequence[Sequence[int]]) -> None:
    buckets = [sum(column) for column in zip(*(values[of.first : of.end] for values in cells), strict=True)]
    if not any(buckets):
        return
    count, more = 0, labels + "," if labels else ""
    for bound, inside in zip((*of.shown, "+Inf"), buckets, strict=True):
        count += inside
        lines.append(f'{name}_bucket{{{more}le="{bound}"}} {count}')
    braces = _braces(labels)
    lines.append(f"{name}_sum{braces} {sum(values[of.sum] for values in cells) / of.scale}")
    lines.append(f"{name}_count{braces} {count}")


Numbers = Mapping[str, Mapping[str, Sequence[float]]]  # source → label → the value of each process


def _merged(total: Sum, gauges: Sequence[Gauges]) -> Numbers:
    found: dict[str, dict[str, list[float]]] = {source: {"": [0.0]} for source in _ALWAYS}
    for told in gauges:
        for source, label, value in told:
            found.setdefault(source, {}).setdefault(label, []).append(value)
    for (source, label), count in total.counters.items():
        found.setdefault(source, {})[label] = [count]
    return found


def _samples(other: Other, total: Sum, numbers: Numbers, currency: str) -> Iterator[tuple[dict[str, str], float]]:
    if other.source:
        for label, values in numbers.get(other.source, {}).items():
            yield (dict(zip(other.labels, [label], strict=True)) if other.labels else {}), other.merge(values)
        return
    if other.labels[0] == "ip":
        for (ip, endpoint, status), count in total.addresses.items():
            yield {"ip": ip, "endpoint": endpoint, "status": str(status)}, count
        return
    by_tenant: dict[str, list[int]] = {}
    for (tenant, outcome), values in total.tenants.items():
        if other.labels[1] == "outcome":
            yield {"tenant": tenant, "outcome": outcome}, values[0]
        have = by_tenant.setdefault(tenant, [0, 0, 0, 0])
        by_tenant[tenant] = [a + b for a, b in zip(have, values, strict=True)]
    for tenant, (_, prompt, completion, cost) in by_tenant.items():
        if other.labels[1] == "kind":
            yield {"tenant": tenant, "kind": "prompt"}, prompt
            yield {"tenant": tenant, "kind": "completion"}, completion
        elif other.labels[1] == "currency":
            yield {"tenant": tenant, "currency": currency}, cost / _BILLION


@dataclass(frozen=True, slots=True)
class Described:
    """A family, for the documentation."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...]


def catalogue(namespace: str = "gateway") -> list[Described]:
    """Every family once, in the order of the page."""
    found: dict[str, Described] = {}
    for family in CALLS:
        name, labels = family.name.format(namespace), (*family.labels, *(label for label, _ in family.fixed))
        buckets = family.of.shown if family.of is not None else ()
        found.setdefault(name, Described(name, family.kind, labels, family.help, buckets))
    for other in OTHERS:
        name = other.name.format(namespace)
        found[name] = Described(name, other.kind, other.labels, other.help, ())
    return list(found.values())


__all__ = ["ANSWERED", "OPERATIONS", "REFUSED", "catalogue", "text"]
