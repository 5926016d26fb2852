"""The periods that records are summed by, and whether the sums are still right (threats U9, U11)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import connections, transaction
from django.db.models import Count, IntegerField, Min, Model, Q, QuerySet, Sum
from django.db.models.functions import Cast, Coalesce, ExtractMinute, TruncHour

from usage.models import DailyTotal, DailyUsage, EndUserUsage, Retention, UsageBucket, UsageRecord
from usage.models.records import SUCCESSES

BUCKET = timedelta(minutes=15)
OWNER = ("tenant_id", "user_id", "api_key_id", "model", "backend")
# dimension of DailyTotal → place of its value in OWNER; all calls of a day have neither
DIMENSIONS = {"": None, "tenant": 0, "user": 1, "key": 2, "model": 3, "backend": 4}
# The one dimension of DailyTotal that most calls have no value of, and then no row.
END_USER = "end_user"
# table → its period, and what its rows are told apart by
TABLES: dict[type[Model], tuple[str, tuple[str, ...]]] = {
    UsageBucket: ("start", OWNER),
    DailyUsage: ("day", OWNER),
    EndUserUsage: ("day", (*OWNER, "end_user")),
    DailyTotal: ("day", ("dimension", "value")),
}

# measure → what it is the sum of
MEASURES = {
    "requests": Count("pk"),
    "failures": Count("pk", filter=~Q(outcome__in=SUCCESSES)),
    "estimated": Count("pk", filter=Q(estimated=True)),
    "unpriced": Count("pk", filter=Q(cost_nano=None)),
    "prompt_tokens": Sum("prompt_tokens"),
    "completion_tokens": Sum("completion_tokens"),
    "cost_nano": Coalesce(Sum("cost_nano"), 0),
    "decode_us": Sum("decode_us"),
    "total_us": Sum("total_us"),
    "decoded_tokens": Coalesce(Sum("completion_tokens", filter=Q(decode_us__gt=0)), 0),
}

# (period, owner) → measures, in the order of MEASURES
Sums = dict[tuple[Any, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One sum that is not what the records add up to. `period`: start of a bucket, or a day."""

    table: str
    period: datetime | date
    measure: str
    records: int
    rolled_up: int
    tenant_id: int | None = None
    user_id: int | None = None
    api_key_id: int | None = None
    model: str = ""
    backend: str = ""
    end_user: str = ""
    dimension: str = ""
    value: str = ""


def bucket_start(at: datetime) -> datetime:
    """Of the 15 minutes of UTC that a moment lies in."""
    at = at.astimezone(UTC)
    return at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)


def day_of(at: datetime, zone: ZoneInfo) -> date:
    return at.astimezone(zone).date()


def day_begins(day: date, zone: ZoneInfo) -> datetime:
    """In UTC. Where midnight comes twice it is the first; where the clock skips it, the moment of the skip."""
    return datetime.combine(day, time.min, tzinfo=zone).astimezone(UTC)


def reporting_zone() -> ZoneInfo:
    return ZoneInfo(settings.TIME_ZONE)


def reconcile(using: str = "default") -> list[Difference]:
    """What differs between records and roll-ups. One day is in memory at a time."""
    return [difference for day in days_with_data(using) for difference in differences_of(day, using)]


def rebuild(using: str = "default", days: Iterable[date] | None = None) -> None:
    """Makes the roll-ups of these days anew, by default of all days whose records are complete. A day is a transaction
    of its own: the ledger waits for no more than one of them."""
    for day in days_with_data(using) if days is None else days:
        with transaction.atomic(using=using):
            keep_writers_out(using)
            _rebuild(day, using)


def _rebuild(day: date, using: str) -> None:
    zone = reporting_zone()
    records = _summed(day, zone, using)
    # Asked after they were read: whoever deletes records notes that first, and of such days the roll-ups alone tell.
    if day < _first_complete_day(zone, using):
        return
    for table, (period, owner) in TABLES.items():
        _rows_of(table, day, zone, using).delete()
        table._default_manager.using(using).bulk_create(
            (
                table(**{period: key[0]}, **dict(zip(owner, key[1:], strict=True)), **_named(sums))
                for key, sums in records[table].items()
            ),
            batch_size=500,
        )


def days_with_data(using: str) -> Iterator[date]:
    """Days of the reporting zone that have records or roll-ups, from when on records are complete."""
    zone = reporting_zone()
    day = _first_complete_day(zone, using)
    while (day := _next_day(day, zone, using)) is not None:
        yield day
        day += timedelta(days=1)


def differences_of(day: date, using: str) -> list[Difference]:
    # Most days are equal, and seeing that needs no lock. Only what looks different is asked again in one snapshot,
    # because a batch of the ledger may have come in between the questions.
    if not _compared(day, using):
        return []
    with _one_snapshot(using):
        return _compared(day, using)


def _compared(day: date, using: str) -> list[Difference]:
    zone, found = reporting_zone(), []
    summed = _summed(day, zone, using)
    for table, (_, owner) in TABLES.items():
        rolled_up, records = _rolled_up(table, day, zone, using), summed[table]
        for key in rolled_up.keys() | records.keys():
            pairs = zip(_named(records.get(key)).items(), _named(rolled_up.get(key)).values(), strict=True)
            found += [
                Difference(table.__name__, key[0], measure, expected, kept, **dict(zip(owner, key[1:], strict=True)))
                for (measure, expected), kept in pairs
                if expected != kept
            ]
    return sorted(found, key=str)


def _rolled_up(table: type[Model], day: date, zone: ZoneInfo, using: str) -> Sums:
    period, owner = TABLES[table]
    rows = _rows_of(table, day, zone, using).values_list(period, *owner, *MEASURES)
    return {row[: 1 + len(owner)]: row[1 + len(owner) :] for row in rows}


def _summed(day: date, zone: ZoneInfo, using: str) -> dict[type[Model], Sums]:
    """What the records of a day add up to, in the periods of each table."""
    records = _within(UsageRecord.objects.using(using), "started_at", day, zone).order_by()
    buckets = _of_buckets(records)
    days = added_up(((day, *owner), sums) for (_, *owner), sums in buckets.items())
    labelled = _grouped(records.exclude(end_user=""), TABLES[EndUserUsage][1])
    end_users = {(day, *owner): sums for owner, sums in labelled.items()}
    return {
        UsageBucket: buckets,
        DailyUsage: days,
        EndUserUsage: end_users,
        DailyTotal: totals_of(days, end_users),
    }


def _of_buckets(records: QuerySet) -> Sums:
    quarters = records.annotate(
        hour=TruncHour("started_at", tzinfo=UTC),
        # Cast: PostgreSQL extracts a numeric, which would divide with decimals.
        quarter=Cast(ExtractMinute("started_at", tzinfo=UTC), IntegerField()) / 15,
    )
    found = _grouped(quarters, ("hour", "quarter", *OWNER))
    return {(hour + quarter * BUCKET, *owner): sums for (hour, quarter, *owner), sums in found.items()}


def _grouped(records: QuerySet, names: Sequence[str]) -> Sums:
    sums = {f"sum_{measure}": expression for measure, expression in MEASURES.items()}
    rows = records.values(*names).annotate(**sums).values_list(*names, *sums)
    return {row[: len(names)]: tuple(map(int, row[len(names) :])) for row in rows}


def added_up(parts: Iterable[tuple[tuple[Any, ...], Sequence[int]]]) -> Sums:
    """The sums of each key together. The ledger does it for each call: column by column is five times as fast."""
    groups: dict[tuple[Any, ...], list[Sequence[int]]] = {}
    for key, sums in parts:
        group = groups.get(key)
        if group is None:
            groups[key] = [sums]
        else:
            group.append(sums)
    return {
        key: tuple(map(sum, zip(*group, strict=True))) if len(group) > 1 else tuple(group[0])
        for key, group in groups.items()
    }


def totals_of(days: Mapping[tuple[Any, ...], Sequence[int]], labelled: Mapping[tuple[Any, ...], Sequence[int]]) -> Sums:
    """(day, owner) → sums, and (day, owner, end user) → sums, as (day, dimension, value) → sums."""
    totals = added_up(((day, END_USER, label), sums) for (day, *_, label), sums in labelled.items())
    for dimension, place in DIMENSIONS.items():
        column = None if place is None else place + 1
        of_values = added_up(((key[0], None if column is None else key[column]), sums) for key, sums in days.items())
        for (day, value), sums in of_values.items():
            totals[day, dimension, "" if value is None else str(value)] = sums
    return totals


def _rows_of(table: type[Model], day: date, zone: ZoneInfo, using: str) -> QuerySet:
    rows = table._default_manager.using(using)
    return _within(rows, "start", day, zone) if table is UsageBucket else rows.filter(day=day)


def _within(rows: QuerySet, column: str, day: date, zone: ZoneInfo) -> QuerySet:
    begin, end = day_begins(day, zone), day_begins(day + timedelta(days=1), zone)
    return rows.filter(**{f"{column}__gte": begin, f"{column}__lt": end})


def _named(sums: tuple[int, ...] | None) -> dict[str, int]:
    return dict(zip(MEASURES, sums or (0,) * len(MEASURES), strict=True))


def _first_complete_day(zone: ZoneInfo, using: str) -> date:
    retention = Retention.objects.using(using).first()
    if retention is None:
        return date(1, 1, 2)
    day = day_of(retention.records_since, zone)
    # The zone may have been another one when records were pruned.
    return day if day_begins(day, zone) >= retention.records_since else day + timedelta(days=1)


def _next_day(day: date, zone: ZoneInfo, using: str) -> date | None:
    """The first day from this one on that has anything: each a look at the beginning of an index."""
    begin = day_begins(day, zone)
    record = UsageRecord.objects.using(using).filter(started_at__gte=begin).aggregate(at=Min("started_at"))["at"]
    bucket = UsageBucket.objects.using(using).filter(start__gte=begin).aggregate(at=Min("start"))["at"]
    found = DailyUsage.objects.using(using).filter(day__gte=day).aggregate(day=Min("day"))["day"]
    days = [day_of(at, zone) for at in (record, bucket) if at] + ([found] if found else [])
    return min(days, default=None)


def _one_snapshot(using: str) -> transaction.Atomic:
    connection = connections[using]
    atomic = transaction.atomic(using=using)
    if connection.vendor == "postgresql" and not connection.in_atomic_block:
        return _RepeatableRead(using, savepoint=True, durable=False)
    return atomic


class _RepeatableRead(transaction.Atomic):
    """All questions see the same moment. SQLite's transactions are so anyway."""

    def __enter__(self) -> None:
        super().__enter__()
        with connections[self.using].cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def keep_writers_out(using: str) -> None:
    """On SQLite the transaction itself does."""
    connection = connections[using]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # In the order in which the ledger writes them, so that neither waits for the other in a circle.
            cursor.execute(
                "LOCK TABLE usage_usagebucket, usage_dailyusage, usage_enduserusage IN SHARE ROW EXCLUSIVE MODE"
            )
