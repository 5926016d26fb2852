"""What a worker tells the pages of all workers: that it lives, with which rules, and what it refused.

Kept in memory and written every few seconds in the ledger's thread, so that no call waits for it.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from django.db import DatabaseError, InterfaceError, connections, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from proxy.cache.responses import Use
from proxy.models import IPRuleUse, ModelJob, RefusalCount, WorkerReport
from proxy.models.operation import KEEP_REFUSALS

logger = logging.getLogger(__name__)

# Until a worker knows its rules and its sockets.
FIRST_SECONDS = 1.0
REPORT_SECONDS = 5.0
# Between two looks for what may be deleted.
PRUNE_SECONDS = 60.0
# Rows of one flush; what comes beyond them is counted without the key.
MOST_SUBJECTS = 1000
# Rows of the table, the newest.
MOST_ROWS = 100_000

_UPSERT = (
    "INSERT INTO proxy_refusalcount (minute, code, key_prefix, count) VALUES (%s, %s, %s, %s) "
    "ON CONFLICT (minute, code, key_prefix) DO UPDATE SET count = proxy_refusalcount.count + excluded.count"
)


Refusals = dict[tuple[int, str, str], int]  # (minute of the epoch, code, prefix of the key) → how many
Uses = dict[tuple[date, int], Use]
Hits = dict[int, int]  # number of an IP rule → how often it decided


@dataclass(frozen=True, slots=True)
class Status:
    """Of one worker at one moment."""

    revisions: Mapping[str, int]
    calls: int
    waiting: int
    hits: Hits = field(default_factory=dict)  # since this was last asked
    cache: Mapping[str, Any] = field(default_factory=dict)


# Only of rules that are still there.
_COUNT_HITS = (
    "INSERT INTO proxy_ipruleuse (rule_id, hits, last_at) SELECT id, %s, %s FROM tenants_iprule WHERE id = %s "
    "ON CONFLICT (rule_id) DO UPDATE SET hits = proxy_ipruleuse.hits + excluded.hits, last_at = excluded.last_at"
)

_COUNT_USE = (
    "INSERT INTO proxy_cacheuse (day, tenant_id, hits, misses, coalesced, bypassed, saved_gpu_us, saved_tokens) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (day, tenant_id) DO UPDATE SET "
    "hits = proxy_cacheuse.hits + excluded.hits, misses = proxy_cacheuse.misses + excluded.misses, "
    "coalesced = proxy_cacheuse.coalesced + excluded.coalesced, "
    "bypassed = proxy_cacheuse.bypassed + excluded.bypassed, "
    "saved_gpu_us = proxy_cacheuse.saved_gpu_us + excluded.saved_gpu_us, "
    "saved_tokens = proxy_cacheuse.saved_tokens + excluded.saved_tokens"
)

# Runs a function in the ledger's thread.
Run = Callable[..., "asyncio.Future[None]"]


class WorkerReports:
    """Lives in the loop; what the names of `_write` and `_leave` begin with runs in the ledger's thread."""

    def __init__(self, using: str = "default") -> None:
        self._using = using
        self._host = socket.gethostname()[:255]
        self._started_at = timezone.now()
        self._listens: list[str] = []
        self._refusals: Refusals = {}
        self._hits: Hits = {}
        # By (day, tenant's id): what proxy/cache/responses.py has counted.
        self._uses: Uses = {}
        self._pruned_at = 0.0
        self._run: Run
        self._task: asyncio.Task[None] | None = None

    def start(self, run: Run, status: Callable[[], Status]) -> None:
        self._run = run
        self._task = asyncio.create_task(self._tell_for_ever(status), name="worker reports")

    async def close(self) -> None:
        """Takes leave. What the database does not take within a second is not told: these are counts, not records."""
        if self._task is None:
            return
        self._task.cancel()
        leaving = self._run(self._leave, *self._taken(), self._uses)
        leaving.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({leaving}, timeout=1)

    def listening(self, places: Iterable[tuple[str, int]]) -> None:
        """(address, port) of each socket that this process accepts connections on."""
        self._listens = sorted({shown(place, port) for address, port in places for place in _meant(address)})

    def refused(self, epoch: float, code: str, key_prefix: str) -> None:
        minute = int(epoch) // 60
        if len(self._refusals) >= MOST_SUBJECTS and (minute, code, key_prefix) not in self._refusals:
            key_prefix = ""
        subject = (minute, code, key_prefix)
        self._refusals[subject] = self._refusals.get(subject, 0) + 1

    def hit(self, hits: Mapping[int, int]) -> None:
        """IP rules that decided."""
        for rule, count in hits.items():
            self._hits[rule] = self._hits.get(rule, 0) + count

    def used_cache(self, use: Mapping[int, Use]) -> None:
        """What the cache did, by tenant, since this was last told."""
        day = datetime.now(UTC).date()
        self._put_back_uses({(day, tenant): counted for tenant, counted in use.items()})

    async def _tell_for_ever(self, status: Callable[[], Status]) -> None:
        failing = False
        await asyncio.sleep(FIRST_SECONDS)
        while True:
            now = status()
            self.hit(now.hits)
            refusals, hits = self._taken()
            uses, self._uses = self._uses, {}
            try:
                await self._run(self._write, now, refusals, hits, uses)
                failing = False
            except Exception as exc:
                # The next round tells it, too; the pages say how old what they show is (L5).
                if not failing:
                    logger.warning("The pages cannot be told what this worker does (%s)", type(exc).__name__)
                failing = True
                self._put_back(refusals)
                self.hit(hits)
                self._put_back_uses(uses)
            await asyncio.sleep(REPORT_SECONDS)

    def _taken(self) -> tuple[Refusals, Hits]:
        refusals, hits = self._refusals, self._hits
        self._refusals, self._hits = {}, {}
        return refusals, hits

    def _put_back_uses(self, uses: Uses) -> None:
        for key, counted in uses.items():
            known = self._uses.get(key)
            self._uses[key] = counted if known is None else [a + b for a, b in zip(known, counted, strict=True)]

    def _put_back(self, refusals: Refusals) -> None:
        for (minute, code, key_prefix), count in refusals.items():
            if len(self._refusals) >= MOST_SUBJECTS:
                key_prefix = ""
            subject = (minute, code, key_prefix)
            if len(self._refusals) < 2 * MOST_SUBJECTS or subject in self._refusals:
                self._refusals[subject] = self._refusals.get(subject, 0) + count

    # In the ledger's thread.

    def _write(self, status: Status, refusals: Refusals, hits: Hits, uses: Uses | None = None) -> None:
        try:
            with transaction.atomic(using=self._using):
                self._write_status(status)
                self._write_refusals(refusals)
                self._write_hits(hits)
                self._write_uses(uses)
                # Here, because a page that is looked at changes nothing (T7).
                ModelJob.objects.using(self._using).give_up_lost()
        except (DatabaseError, InterfaceError):
            connections[self._using].close()
            raise
        if time.monotonic() - self._pruned_at >= PRUNE_SECONDS:
            self._pruned_at = time.monotonic()
            try:
                self._write_off()
            except (DatabaseError, InterfaceError) as exc:
                # Not raised: what was told above is stored, and would be told twice.
                logger.warning("What is old could not be deleted (%s)", type(exc).__name__)
                connections[self._using].close()

    def _leave(self, refusals: Refusals, hits: Hits, uses: Uses | None = None) -> None:
        self._write_refusals(refusals)
        self._write_hits(hits)
        self._write_uses(uses)
        self._rows(WorkerReport).filter(host=self._host, pid=os.getpid()).delete()

    def _write_status(self, status: Status) -> None:
        changed = max(status.revisions.values(), default=0)
        self._rows(WorkerReport).update_or_create(
            host=self._host,
            pid=os.getpid(),
            defaults={
                "revision": sum(status.revisions.values()),
                "rules_of": datetime.fromtimestamp(changed / 1000, UTC) if changed else None,
                "listens": self._listens,
                "calls": status.calls,
                "waiting": status.waiting,
                "cache": dict(status.cache),
                "started_at": self._started_at,
                "seen_at": Now(),
            },
        )

    def _write_refusals(self, refusals: Refusals) -> None:
        connection = connections[self._using]
        rows = []
        # In one order everywhere, so that two workers never wait for each other in a circle.
        for (minute, code, key_prefix), count in sorted(refusals.items()):
            moment = connection.ops.adapt_datetimefield_value(datetime.fromtimestamp(minute * 60, UTC))
            rows.append((moment, code[:64], key_prefix[:16], count))
        if rows:
            with connection.cursor() as cursor:
                cursor.executemany(_UPSERT, rows)

    def _write_hits(self, hits: Hits) -> None:
        connection = connections[self._using]
        now = connection.ops.adapt_datetimefield_value(timezone.now())
        if hits:
            with connection.cursor() as cursor:
                cursor.executemany(_COUNT_HITS, [(count, now, rule) for rule, count in sorted(hits.items())])

    def _write_uses(self, uses: Uses | None) -> None:
        rows: list[list[Any]] = [[day, tenant, *counted] for (day, tenant), counted in sorted((uses or {}).items())]
        if rows:
            with connections[self._using].cursor() as cursor:
                cursor.executemany(_COUNT_USE, rows)

    def _write_off(self) -> None:
        """What is old, too much, or of processes that are gone."""
        refusals = self._rows(RefusalCount)
        refusals.filter(minute__lt=timezone.now() - KEEP_REFUSALS).delete()
        last = refusals.order_by("-minute").values_list("minute", flat=True)[MOST_ROWS : MOST_ROWS + 1].first()
        if last is not None:
            refusals.filter(minute__lte=last).delete()
        self._rows(WorkerReport).gone().delete()
        self._rows(IPRuleUse).of_deleted_rules().delete()

    def _rows(self, model: type[Any]) -> Any:
        rows: QuerySet[Any] = model._default_manager.using(self._using)
        return rows


def shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _meant(address: str) -> list[str]:
    """A wildcard, and what it stands for as far as the name of the machine tells: other machines see only that."""
    if address not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return [address]
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    return [address, *(str(info[4][0]).partition("%")[0] for info in found)]
