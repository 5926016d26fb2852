"""Rows into the database, each exactly once, with their sums in the same transaction. Runs in the ledger's thread."""

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    ProgrammingError,
    connections,
    transaction,
)

from proxy.ledger.rows import AT, COLUMNS, Row
from usage.rollups import BUCKET, MEASURES, OWNER, SUCCESSES, day_of

logger = logging.getLogger(__name__)

# The last use of a key is noted at most this often (S3).
LAST_USED_SECONDS = 60

# What drivers and conversions raise for a value that a column cannot hold.
_MALFORMED = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)

_NAMES = ", ".join(COLUMNS)
_ROWS_PER_STATEMENT = 100
_SUMS = tuple(MEASURES)  # the order in which _add_sums counts
_OWNERS = ", ".join(OWNER)
_BUCKET_SECONDS = int(BUCKET.total_seconds())
_SUCCESSES = frozenset(SUCCESSES)
_STARTED, _FINISHED, _ESTIMATED = AT["started_at"], AT["finished_at"], AT["estimated"]

# What tells rows of a roll-up apart → sums, in the order of _SUMS.
Sums = dict[tuple[Any, ...], list[int]]


class Store:
    """`zone`: whose days the daily roll-up has. `quarantine`: a file for rows that no database takes."""

    def __init__(self, zone: str, quarantine: Path, using: str = "default") -> None:
        self.zone = ZoneInfo(zone)
        self.quarantine = quarantine
        self.using = using
        self._last_used: dict[int, float] = {}  # by key id, as it is in the database
        self._day = lru_cache(maxsize=512)(self._day_of_bucket)

    def add(self, rows: Sequence[Row]) -> None:
        """Stores rows; those that are there already change nothing. Raises DatabaseError: try again later."""
        try:
            used = self._add_all(rows)
        except (DataError, IntegrityError, ProgrammingError, *_MALFORMED) as exc:
            if not _is_fault_of_row(exc):
                raise
            if len(rows) > 1:
                # One of them is poison; the others must not wait for it.
                middle = len(rows) // 2
                self.add(rows[:middle])
                self.add(rows[middle:])
                return
            logger.exception("The record %.40s fits no column and is kept in %s", rows[0][:1], self.quarantine)
            with self.quarantine.open("ab") as file:
                file.write(orjson.dumps({"error": str(exc), "row": rows[0]}) + b"\n")
        else:
            self._last_used.update(used)

    def close(self) -> None:
        try:
            connections[self.using].close()
        except (DatabaseError, InterfaceError) as exc:
            logger.debug("Closing a broken connection: %s", exc)

    def _add_all(self, rows: Sequence[Row]) -> dict[int, float]:
        """Stores rows, or none of them. Returns the uses of keys that were noted."""
        connection = connections[self.using]
        postgresql = connection.vendor == "postgresql"
        if not postgresql:
            # The spool forgets what is committed, so a commit must outlast a power cut; for pages NORMAL is enough.
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA synchronous = FULL")
        with transaction.atomic(using=self.using), connection.cursor() as cursor:
            # Django's cursor would log and time each row of an executemany; the driver's own does the work.
            with connection.wrap_database_errors:
                fresh = (_insert_postgresql if postgresql else _insert_sqlite)(cursor.cursor, rows)
            if not fresh:
                return {}
            self._add_sums(cursor, fresh)
            return self._note_use(cursor, fresh)

    def _add_sums(self, cursor: Any, rows: Iterable[Row]) -> None:
        buckets: Sums = {}
        labelled: Sums = {}
        for row in rows:
            start = int(row[_STARTED]) // _BUCKET_SECONDS * _BUCKET_SECONDS
            owner = (start, row[4], row[6], row[9], row[13], row[11])
            cost, decode_us, completion_tokens = row[37], row[25], row[30]
            values = (
                1,
                row[19] not in _SUCCESSES,
                bool(row[_ESTIMATED]),
                cost is None,
                row[29],
                completion_tokens,
                cost or 0,
                decode_us,
                row[27],
                completion_tokens if decode_us else 0,
            )
            _count(buckets, owner, values)
            if row[8]:
                _count(labelled, (self._day(start), *owner[1:], row[8]), values)
        days: Sums = {}
        for (start, *whose), sums in buckets.items():
            _count(days, (self._day(start), *whose), sums)
        starts = {(self._moment(start), *whose): sums for (start, *whose), sums in buckets.items()}
        _upsert(cursor, "usage_usagebucket", "start", starts)
        _upsert(cursor, "usage_dailyusage", "day", days)
        _upsert(cursor, "usage_enduserusage", "day", labelled, "end_user")

    def _moment(self, epoch: float) -> Any:
        """A time as Django writes it on this database."""
        return connections[self.using].ops.adapt_datetimefield_value(datetime.fromtimestamp(epoch, UTC))

    def _day_of_bucket(self, start: int) -> Any:
        day = day_of(datetime.fromtimestamp(start, UTC), self.zone)
        return connections[self.using].ops.adapt_datefield_value(day)

    def _note_use(self, cursor: Any, rows: Iterable[Row]) -> dict[int, float]:
        latest: dict[int, float] = {}
        for row in rows:
            if row[_FINISHED] > self._last_used.get(row[9], 0) + LAST_USED_SECONDS:
                latest[row[9]] = max(row[_FINISHED], latest.get(row[9], 0))
        for key_id, moment in sorted(latest.items()):
            # Another worker may have noted it within the minute.
            cursor.execute(
                "INSERT INTO tenants_apikeylastused (key_id, at) SELECT id, %s FROM tenants_apikey WHERE id = %s "
                "ON CONFLICT (key_id) DO UPDATE SET at = excluded.at WHERE tenants_apikeylastused.at < %s",
                [self._moment(moment), key_id, self._moment(moment - LAST_USED_SECONDS)],
            )
        return latest


def _is_fault_of_row(exc: Exception) -> bool:
    """Whether a row can never be stored. A table or a right that is missing may come yet."""
    return not isinstance(exc, ProgrammingError) or not getattr(exc.__cause__, "sqlstate", None)


def _count(sums: Sums, owner: tuple[Any, ...], values: Sequence[int]) -> None:
    found = sums.get(owner)
    if found is None:
        found = sums[owner] = [0] * len(_SUMS)
    for position, value in enumerate(values):
        found[position] += value


def _upsert(cursor: Any, table: str, period: str, sums: Sums, *more: str) -> None:
    """`more`: columns that tell rows apart besides the period and the owner."""
    names = ", ".join((period, _OWNERS, *more, *_SUMS))
    marks = ", ".join(["%s"] * (6 + len(more) + len(_SUMS)))
    adding = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in _SUMS)
    conflict = ", ".join((period, "tenant_id, api_key_id, coalesce(user_id, 0), model, backend", *more))
    statement = f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT ({conflict}) DO UPDATE SET {adding}"  # noqa: S608
    # In one order everywhere, so that two workers never wait for each other in a circle.
    for owner in sorted(sums, key=lambda owner: tuple(str(part) for part in owner)):
        cursor.execute(statement, [*owner, *sums[owner]])


def _insert_sqlite(cursor: Any, rows: Sequence[Row]) -> list[Row]:
    """The rows that were not there. The transaction holds SQLite's one write lock, so nobody comes in between."""
    known: set[str] = set()
    for first in range(0, len(rows), 500):
        ids = [row[0] for row in rows[first : first + 500]]
        marks = ", ".join(["?"] * len(ids))
        found = cursor.execute(f"SELECT id FROM usage_usagerecord WHERE id IN ({marks})", ids)  # noqa: S608
        known.update(pk for (pk,) in found)
    fresh = []
    for row in rows:
        if row[0] not in known:
            known.add(row[0])
            fresh.append(row)
    # Many rows to a statement: after each one the thread has to win the GIL back from a busy event loop.
    for first in range(0, len(fresh), _ROWS_PER_STATEMENT):
        values: list[Any] = []
        part = fresh[first : first + _ROWS_PER_STATEMENT]
        for row in part:
            values += row[:_STARTED]
            values += _sqlite_time(row[_STARTED]), _sqlite_time(row[_FINISHED])
            values += row[_FINISHED + 1 :]
        cursor.execute(_sqlite_insert(len(part)), values)
    return fresh


@lru_cache(maxsize=_ROWS_PER_STATEMENT)
def _sqlite_insert(rows: int) -> str:
    marks = ", ".join(["?"] * len(COLUMNS))
    return f"INSERT INTO usage_usagerecord ({_NAMES}) VALUES {', '.join([f'({marks})'] * rows)}"  # noqa: S608


def _sqlite_time(epoch: float) -> str:
    """As Django writes it: UTC, without a zone."""
    second = int(epoch)
    return f"{_sqlite_second(second)}.{int((epoch - second) * 1_000_000):06d}"


@lru_cache(maxsize=256)
def _sqlite_second(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).replace(tzinfo=None).isoformat(" ")


def _insert_postgresql(cursor: Any, rows: Sequence[Row]) -> list[Row]:
    cursor.execute("CREATE TEMPORARY TABLE IF NOT EXISTS usage_incoming (LIKE usage_usagerecord) ON COMMIT DELETE ROWS")
    with cursor.copy(f"COPY usage_incoming ({_NAMES}) FROM STDIN") as copy:
        for row in rows:
            started, finished = (datetime.fromtimestamp(epoch, UTC) for epoch in row[_STARTED : _FINISHED + 1])
            copy.write_row([UUID(row[0]), *row[1:_STARTED], started, finished, *row[_FINISHED + 1 :]])
    cursor.execute(
        f"INSERT INTO usage_usagerecord ({_NAMES}) SELECT {_NAMES} FROM usage_incoming "  # noqa: S608
        "ON CONFLICT (id) DO NOTHING RETURNING id"
    )
    stored = {pk.hex for (pk,) in cursor.fetchall()}
    # Of two rows with one id the first was inserted.
    fresh = {row[0]: row for row in reversed(rows) if UUID(row[0]).hex in stored}
    return list(fresh.values())
