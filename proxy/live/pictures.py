"""Pictures of calls in flight: what a process shows of itself, and what a person may see of all. Pure."""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from proxy.call import Call
from proxy.errors import Interruption
from proxy.fleet.state import BackendState

# Rows of one picture. A key with thousands of calls must not make it huge, nor hide the calls of others.
CALLS_SHOWN = 400
CALLS_SHOWN_PER_KEY = 40

Picture = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Viewer:
    """Somebody who is signed in, and what they may see and end."""

    user_id: int
    name: str
    sees_all: bool = False
    sees_backends: bool = False
    ends_all: bool = False
    # Ids of the tenants whose calls they see, whose calls they may end, and where their own calls are theirs.
    sees: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    belongs_to: frozenset[int] = frozenset()

    def may_see(self, tenant_id: int, user_id: int | None) -> bool:
        return self.sees_all or tenant_id in self.sees or self._is_own(tenant_id, user_id)

    def may_end(self, tenant_id: int, user_id: int | None) -> bool:
        return self.ends_all or tenant_id in self.ends or self._is_own(tenant_id, user_id)

    def _is_own(self, tenant_id: int, user_id: int | None) -> bool:
        # Keys without a user are the tenant's.
        return user_id is not None and user_id == self.user_id and tenant_id in self.belongs_to


def picture_of(worker: str, calls: Iterable[Call], backends: Iterable[BackendState]) -> Picture:
    """What one process shows of itself. The oldest calls come first; of those left out the number is told."""
    now = time.monotonic()
    rows: list[Row] = []
    of_key: dict[int, int] = {}
    hidden: dict[tuple[int, int | None], int] = {}
    for call in sorted(calls, key=lambda call: call.started_at):
        key = call.key
        if key is None:
            continue
        shown = of_key.get(key.id, 0)
        if shown < CALLS_SHOWN_PER_KEY and len(rows) < CALLS_SHOWN:
            of_key[key.id] = shown + 1
            rows.append(_row(call, now))
        else:
            owner = (key.tenant_id, key.user_id)
            hidden[owner] = hidden.get(owner, 0) + 1
    return {
        "worker": worker,
        "calls": rows,
        "hidden": [[*owner, count] for owner, count in hidden.items()],
        "backends": [_backend(state, now) for state in backends],
    }


def _row(call: Call, now: float) -> Row:
    key, meter = call.key, call.meter
    assert key is not None
    tokens = meter.counted if meter is not None else 0
    streaming_for = now - call.first_byte_at if call.first_byte_at else 0.0
    return {
        "id": call.id,
        "key": key.prefix,
        "key_name": key.name,
        "tenant_id": key.tenant_id,
        "tenant": key.tenant_name,
        "user_id": key.user_id,
        "user": key.user_name,
        "model": call.asked,
        "endpoint": call.route.path if call.route else "",
        "backend": call.backend.name if call.backend else "",
        "phase": _phase(call),
        "age": round(now - call.started_at, 1),
        "tokens": tokens,
        # Of the time since the first token.
        "rate": round(tokens / streaming_for, 1) if streaming_for >= 0.5 else None,
    }


def _phase(call: Call) -> str:
    if call.first_byte_at:
        return "streaming"
    # What the sweeper would judge it by is what it waits for.
    return "loading" if call.deadline_reason is Interruption.FIRST_BYTE else "line"


def _backend(state: BackendState, now: float) -> Row:
    return {
        "name": state.name,
        "state": _state(state, now),
        "problem": "" if state.is_up else state.problem[:200],
        "version": state.version,
        "warm": sorted(state.warm)[:50],
        "in_flight": state.total_in_flight,
        "slots": state.backend.slots,
    }


# The worst that any process says is shown.
STATES = ("disabled", "down", "unknown", "resting", "up")


def _state(state: BackendState, now: float) -> str:
    if not state.backend.enabled:
        return "disabled"
    if not state.probed:
        return "unknown"
    if not state.is_up:
        return "down"
    return "resting" if state.breaker.is_open(now) else "up"


def seen_by(viewer: Viewer, pictures: Collection[Picture], *, alone: bool) -> Row:
    """All pictures in one, as far as somebody may see them. `alone`: other processes cannot be heard now."""
    rows = [
        {**row, "may_end": viewer.may_end(row["tenant_id"], row["user_id"])}
        for picture in pictures
        for row in picture["calls"]
        if viewer.may_see(row["tenant_id"], row["user_id"])
    ]
    hidden = sum(
        count
        for picture in pictures
        for tenant_id, user_id, count in picture["hidden"]
        if viewer.may_see(tenant_id, user_id)
    )
    rows.sort(key=lambda row: (-row["age"], row["id"]))
    return {
        "type": "picture",
        "calls": rows,
        "hidden": hidden,
        # How busy the machines are tells what others do (threat T4).
        "backends": _merged(pictures) if viewer.sees_backends else None,
        "workers": len(pictures),
        "alone": alone,
    }


def find(pictures: Iterable[Picture], call_id: str) -> Row | None:
    for picture in pictures:
        for row in picture["calls"]:
            if row["id"] == call_id:
                return row  # type: ignore[no-any-return]  # rows come from other processes, too
    return None


def _merged(pictures: Collection[Picture]) -> list[Row]:
    """Each backend once: its calls of all processes, its slots as configured, the worst of its states."""
    merged: dict[str, Row] = {}
    for picture in pictures:
        for row in picture["backends"]:
            known = merged.get(row["name"])
            if known is None:
                merged[row["name"]] = dict(row)
                continue
            known["in_flight"] += row["in_flight"]
            known["warm"] = sorted({*known["warm"], *row["warm"]})
            known["version"] = known["version"] or row["version"]
            if STATES.index(row["state"]) < STATES.index(known["state"]):
                known["state"], known["problem"] = row["state"], row["problem"]
    return sorted(merged.values(), key=lambda row: row["name"])
