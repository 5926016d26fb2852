"""Tells the database what the probes know, so that a page of any process can show it. Off the path of calls."""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, InterfaceError, connections
from django.utils import timezone

from proxy.default_models import capabilities
from proxy.fleet.state import BackendState
from proxy.models import BackendReport
from proxy.threads import WorkThread

logger = logging.getLogger(__name__)

# Between two looks at what changed.
PAUSE_SECONDS = 2.0
# A report that did not change is confirmed this often.
CONFIRM = timedelta(seconds=15)
# One process reports. Another takes over when it has not confirmed for this long.
LEASE = timedelta(seconds=40)
# What a page found out stands until the probes have heard of the change that it made.
SETTLING = timedelta(seconds=5)
# A backend may list anything (B15): what is kept of it is bounded.
MAX_MODELS = 2000
MAX_TEXT = 100
MAX_CAPABILITIES = 20


@dataclass(frozen=True, slots=True)
class Draft:
    backend_id: int
    content: dict[str, Any]


class BackendReports:
    """`states` is looked at again each time."""

    def __init__(self, states: Mapping[int, BackendState], using: str = "default") -> None:
        self._states = states
        self._using = using
        self._reporter = os.urandom(16).hex()
        self._thread = WorkThread("reports")
        self._task = asyncio.create_task(self._run(), name="reports")

    def close(self) -> None:
        self._task.cancel()
        self._thread.stop(self._disconnect)

    async def _run(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            drafts = [draft_of(backend_id, state) for backend_id, state in self._states.items() if state.probed]
            try:
                await self._thread.run(self._write, drafts)
                failing = False
            except Exception as exc:
                # The next round tries again; the pages say how old their knowledge is (L5).
                if not failing:
                    logger.warning("What the probes know could not be written (%s)", type(exc).__name__)
                failing = True

    def _write(self, drafts: Iterable[Draft]) -> None:
        try:
            known = {row.backend_id: row for row in BackendReport.objects.using(self._using)}
            for draft in drafts:
                self._write_one(draft, known.get(draft.backend_id))
        except (DatabaseError, InterfaceError):
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        connections[self._using].close()

    def _write_one(self, draft: Draft, known: BackendReport | None) -> None:
        now = timezone.now()
        if known is not None:
            age = now - known.updated_at
            lease = LEASE if known.reporter else SETTLING
            if known.reporter != self._reporter and timedelta() <= age < lease:
                return
            same = all(getattr(known, name) == value for name, value in draft.content.items())
            if same and known.reporter == self._reporter and timedelta() <= age < CONFIRM:
                return
        BackendReport.objects.using(self._using).bulk_create(
            [BackendReport(backend_id=draft.backend_id, reporter=self._reporter, updated_at=now, **draft.content)],
            update_conflicts=True,
            unique_fields=["backend"],
            update_fields=["reporter", "updated_at", *draft.content],
        )


def note(backend_id: int, state: BackendState) -> None:
    """What a page has just found out, for the pages that follow it. No reporter: any process goes on from there."""
    BackendReport.objects.update_or_create(
        backend_id=backend_id,
        defaults={**draft_of(backend_id, state).content, "reporter": "", "updated_at": timezone.now()},
    )


def draft_of(backend_id: int, state: BackendState) -> Draft:
    """Taken in the loop, where states change."""
    models = sorted(state.models.items())[:MAX_MODELS]
    warm = sorted(state.warm.items())[:MAX_MODELS]
    content = {
        "state": BackendReport.State.UP.value if state.is_up else BackendReport.State.DOWN.value,
        "version": state.version,
        "problem": state.problem[:300],
        "models": [
            {
                "name": name,
                "digest": _text(model.digest),
                "size": _whole(model.item.get("size")),
                "modified_at": _text(model.item.get("modified_at")),
                "family": _text(_details(model.item).get("family")),
                "parameters": _text(_details(model.item).get("parameter_size")),
                "quantization": _text(_details(model.item).get("quantization_level")),
                "context": model.trained_context,
                "remote": model.remote,
                "capabilities": [_text(word) for word in capabilities(name, model.item)[:MAX_CAPABILITIES]],
            }
            for name, model in models
        ],
        "warm": [
            {
                "name": name,
                "context": model.context_length,
                "size": _whole(model.item.get("size")),
                "vram": _whole(model.item.get("size_vram")),
                "expires_at": _text(model.item.get("expires_at")),
            }
            for name, model in warm
        ],
    }
    return Draft(backend_id, content)


def _details(item: dict[str, Any]) -> dict[str, Any]:
    details = item.get("details")
    return details if isinstance(details, dict) else {}


def _text(value: object) -> str:
    # Without NUL, which PostgreSQL does not take even in JSON.
    return value[:MAX_TEXT].replace("\0", "") if isinstance(value, str) else ""


def _whole(value: object) -> int:
    """Bytes; within what every reader of JSON keeps exactly."""
    return value if type(value) is int and 0 <= value < 2**53 else 0
