"""What a process is at this moment, asked once a second in its loop. Numbers of no call; families.py names them."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxy.ledger.rows import AT

if TYPE_CHECKING:
    from proxy.ledger import Ledger
    from proxy.runtime import Runtime
    from proxy.snapshot import Tables

CACHE_COUNTERS = ("hits", "misses", "coalesced", "bypassed", "evictions", "saved_tokens", "saved_gpu_us")

_FINISHED = AT["finished_at"]


def gauges(runtime: "Runtime") -> list[list[Any]]:
    """[source, label, value] of each."""
    ledger, configuration = runtime.ledger, runtime.configuration
    found: list[list[Any]] = [
        ["workers", "", 1],
        ["calls_in_flight", "", len(runtime.calls)],
        ["line_length", "", runtime.fleet.line.waiting],
        ["spool_bytes", "", ledger.spool.size],
        ["spool_limit_bytes", "", configuration.spool_max_bytes],
        ["ledger_backlog", "", ledger.backlog],
        ["ledger_lag_seconds", "", int(lag(ledger, runtime.now()))],
        ["ledger_failing", "", int(ledger.failing)],
    ]
    if runtime.snapshot is not None:
        found.append(["rules_age_seconds", "", int(runtime.rules_age)])
        found.append(["backends", "", sum(backend.enabled for backend in runtime.snapshot.tables.backends)])
    now = time.monotonic()
    for state in runtime.fleet.states.values():
        name = runtime.metrics.labels.of("backend", state.name)
        if state.backend.enabled and state.probed:
            found.append(["backend_up", name, int(state.is_up)])
        found += [
            ["backend_slots", name, state.backend.slots],
            ["backend_in_flight", name, state.total_in_flight],
            ["breaker_open", name, int(state.breaker.is_open(now))],
        ]
    counts = _counts_of_cache(runtime)
    found += [[f"cache_{name}", "", getattr(counts, name, 0)] for name in ("entries", "bytes")]
    return found


def counters(runtime: "Runtime") -> Mapping[tuple[str, str], int]:
    """What this process has counted since it began, outside the tally."""
    counted = {("breaker_opened", backend): count for backend, count in runtime.fleet.openings.items()}
    if runtime.access_log is not None:
        counted["access_log_dropped", ""] = runtime.access_log.dropped
    counts = _counts_of_cache(runtime)
    for name in CACHE_COUNTERS:
        counted[f"cache_{name}", ""] = getattr(counts, name, 0)
    return counted


def _counts_of_cache(runtime: "Runtime") -> object:
    return getattr(getattr(runtime, "cache", None), "counts", None)


def lag(ledger: "Ledger", now: float) -> float:
    """Seconds since the oldest call ended that is not in the database yet."""
    oldest = [segment.rows[0][_FINISHED] for segment in ledger.spool.segments if segment.rows]
    return max(0.0, now - min(oldest)) if oldest else 0.0


def usable_keys(tables: "Tables", now: float) -> int:
    """Not the loop's: there may be 100,000."""
    return sum(
        key.enabled and not key.revoked and (key.expires_at is None or key.expires_at > now)
        for key in tables.keys.values()
    )
