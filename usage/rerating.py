"""Prices of the past put right: records get the price that the table of prices now has for them.

Batches, each in one transaction with its corrections of the roll-ups: at no moment do a sum and its records differ.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Min, Model, Q
from django.utils import timezone

from usage.costs import PriceRow, charged, pick
from usage.models import DailyTotal, DailyUsage, EndUserUsage, Outcome, Rerating, UsageBucket, UsageRecord
from usage.rollups import (
    TABLES,
    bucket_start,
    day_begins,
    day_of,
    keep_writers_out,
    reporting_zone,
    totals_of,
)

BATCH = 2000

_COLUMNS = (
    "id", "started_at", "tenant_id", "user_id", "api_key_id", "model", "backend", "end_user", "price_id", "cost_nano",
    "outcome", "prompt_tokens", "completion_tokens", "load_us", "prefill_us", "decode_us",
)  # fmt: skip
_FROM_CACHE = (Outcome.CACHED, Outcome.COALESCED)
# What a roll-up is corrected by: cost_nano, unpriced.
Correction = tuple[int, int]


@dataclass(slots=True)
class Effect:
    """Of some records. Costs are of those that had, or get, a price; the others are counted as unpriced."""

    records: int = 0
    changed: int = 0
    before_nano: int = 0
    after_nano: int = 0
    unpriced_before: int = 0
    unpriced_after: int = 0

    def count(self, record: "_Record") -> None:
        self.records += 1
        self.changed += record.is_changed
        self.before_nano += record.before or 0
        self.after_nano += record.after or 0
        self.unpriced_before += record.before is None
        self.unpriced_after += record.after is None


@dataclass(slots=True)
class Outcome:
    """What a re-rating does, or would do, by the number of the tenant, and altogether."""

    tenants: dict[int, Effect] = field(default_factory=dict)
    total: Effect = field(default_factory=Effect)

    def count(self, record: "_Record") -> None:
        self.total.count(record)
        self.tenants.setdefault(record.tenant_id, Effect()).count(record)


@dataclass(frozen=True, slots=True)
class _Record:
    """`before`, `after`: what it costs, None without a price."""

    values: dict[str, Any]
    price_id: int | None
    before: int | None
    after: int | None

    @property
    def tenant_id(self) -> int:
        return self.values["tenant_id"]

    @property
    def is_changed(self) -> bool:
        return (self.price_id, self.after) != (self.values["price_id"], self.before)


def preview(rerating: Rerating, prices: Sequence[PriceRow]) -> Outcome:
    """What it would do. Nothing is changed."""
    outcome = Outcome()
    for rows in _days(rerating):
        for batch in _batches(rows):
            for record in _priced(batch, prices):
                outcome.count(record)
    return outcome


def rerate(rerating: Rerating, prices: Sequence[PriceRow]) -> Iterator[Outcome]:
    """Does it; yields what was done so far, after each batch. Saves the row, which leaves an entry in the audit."""
    outcome = Outcome()
    rerating.save()
    for rows in _days(rerating):
        last = None
        while True:
            with transaction.atomic():
                keep_writers_out(connection.alias)
                batch = _batch(rows.select_for_update(), last)
                records = list(_priced(batch, prices))
                _correct([record for record in records if record.is_changed])
            for record in records:
                outcome.count(record)
            if not batch:
                break
            last = batch[-1]
            yield outcome
    total = outcome.total
    rerating.records, rerating.changed = total.records, total.changed
    rerating.before_nano, rerating.after_nano = total.before_nano, total.after_nano
    rerating.finished_at = timezone.now()
    rerating.save()
    yield outcome


def _days(rerating: Rerating) -> Iterator[Any]:
    """The records of each day that has some: no query looks through more than one."""
    zone = reporting_zone()
    begin = day_begins(rerating.first, zone)
    while (at := UsageRecord.objects.filter(started_at__gte=begin).aggregate(at=Min("started_at"))["at"]) is not None:
        day = day_of(at, zone)
        if day > rerating.last:
            return
        begin, end = day_begins(day, zone), day_begins(day + timedelta(days=1), zone)
        rows = UsageRecord.objects.filter(started_at__gte=begin, started_at__lt=end).order_by("started_at", "id")
        yield rows.filter(model=rerating.model) if rerating.model else rows
        begin = end


def _batches(rows: Any) -> Iterator[list[dict[str, Any]]]:
    batch = _batch(rows, None)
    while batch:
        yield batch
        batch = _batch(rows, batch[-1])


def _batch(rows: Any, last: dict[str, Any] | None) -> list[dict[str, Any]]:
    if last is not None:
        at = last["started_at"]
        rows = rows.filter(Q(started_at__gte=at) & ~Q(started_at=at, id__lte=last["id"]))
    return list(rows.values(*_COLUMNS)[:BATCH])


def _priced(batch: Iterable[dict[str, Any]], prices: Sequence[PriceRow]) -> Iterator[_Record]:
    known: dict[tuple[str, str], list[PriceRow]] = {}
    for row in batch:
        model, backend = row["model"], row["backend"]
        # A call that asked for no model has no price, whatever patterns there are.
        price = pick(_fitting(known, prices, model, backend), model, backend, row["started_at"]) if model else None
        after = None
        if price is not None:
            gpu_us = row["load_us"] + row["prefill_us"] + row["decode_us"]
            after = charged(price, row["prompt_tokens"], row["completion_tokens"], gpu_us)
            if row["outcome"] in _FROM_CACHE and not row["cost_nano"]:
                after = 0  # by the settings of the cache, whose answers are not generated
        yield _Record(row, price.id if price else None, row["cost_nano"], after)


def _fitting(
    known: dict[tuple[str, str], list[PriceRow]], prices: Sequence[PriceRow], model: str, backend: str
) -> list[PriceRow]:
    """Those of a model on a backend, at whatever moment: looked for once a batch, not once a record."""
    if (model, backend) not in known:
        known[model, backend] = [price for price in prices if pick([price], model, backend, price.valid_from)]
    return known[model, backend]


def _correct(records: Sequence[_Record]) -> None:
    if not records:
        return
    with connection.cursor() as cursor:
        pk = UsageRecord._meta.pk
        cursor.executemany(
            "UPDATE usage_usagerecord SET price_id = %s, cost_nano = %s WHERE id = %s",
            [(record.price_id, record.after, pk.get_db_prep_value(record.values["id"], connection))
             for record in records],
        )  # fmt: skip
    corrections = _corrections(records)
    for table, (period, owner) in TABLES.items():
        for key, (cost, unpriced) in corrections[table].items():
            if cost or unpriced:
                columns = dict(zip((period, *owner), key, strict=True))
                whose = {f"{name}__isnull" if value is None else name: value is None or value
                         for name, value in columns.items()}  # fmt: skip
                table._default_manager.filter(**whose).update(
                    cost_nano=F("cost_nano") + cost, unpriced=F("unpriced") + unpriced
                )


def _corrections(records: Iterable[_Record]) -> dict[type[Model], dict[tuple[Any, ...], Correction]]:
    found: dict[Any, dict[tuple[Any, ...], Correction]] = {table: {} for table in TABLES}
    zone = reporting_zone()
    for record in records:
        row = record.values
        correction = (record.after or 0) - (record.before or 0), (record.after is None) - (record.before is None)
        owner = row["tenant_id"], row["user_id"], row["api_key_id"], row["model"], row["backend"]
        day: date = row["started_at"].astimezone(zone).date()
        _add(found[UsageBucket], (bucket_start(row["started_at"]), *owner), correction)
        _add(found[DailyUsage], (day, *owner), correction)
        if row["end_user"]:
            _add(found[EndUserUsage], (day, *owner, row["end_user"]), correction)
    found[DailyTotal] = totals_of(found[DailyUsage], found[EndUserUsage])
    return found


def _add(sums: dict[tuple[Any, ...], Correction], key: tuple[Any, ...], correction: Correction) -> None:
    cost, unpriced = sums.get(key, (0, 0))
    sums[key] = cost + correction[0], unpriced + correction[1]
