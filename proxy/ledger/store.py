"""Rows into the database, each exactly once, with their sums in the same transaction. Runs in the ledger's thread."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import compress
from operator import itemgetter
from pathlib import Path
from typing import Any
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

from proxy.clock import all_in_utc, in_utc
from proxy.ledger.rows import AT, COLUMNS, Row
from usage.models import Retention
from usage.models.records import SUCCESSES
from usage.rollups import BUCKET, MEASURES, OWNER, added_up, day_of, totals_of

logger = logging.getLogger(__name__)

# The last use of a key is noted at most this often (S3).
LAST_USED_SECONDS = 60

# Calls that began later are surely not pruned.
RECENT_SECONDS = 86_400

# What drivers and conversions raise for a value that a column cannot hold.
_MALFORMED = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)

_NAMES = ", ".join(COLUMNS)
_ROWS_PER_STATEMENT = (500, 100, 25, 5, 1)
_SUMS = tuple(MEASURES)  # the order in which _sums_of counts
_BUCKET_SECONDS = int(BUCKET.total_seconds())
_SUCCESSES = frozenset(SUCCESSES)
_STARTED, _FINISHED, _END_USER = AT["started_at"], AT["finished_at"], AT["end_user"]
_started_of = itemgetter(_STARTED)
_owner_of = itemgetter(*(AT[name] for name in OWNER))
_summed = itemgetter(
    *(
        AT[name]
        for name in (
            "outcome", "estimated", "cost_nano", "prompt_tokens", "completion_tokens", "decode_us", "total_us",
        )
    )
)  # fmt: skip

# What tells rows of a roll-up apart → sums, in the order of _SUMS.
Sums = Mapping[tuple[Any, ...], Sequence[int]]


class Store:
    """`zone`: whose days the daily roll-up has. `quarantine`: a file for rows that no database takes."""

    def __init__(self, zone: str, quarantine: Path, using: str = "default") -> None:
        self.zone = ZoneInfo(zone)
        self.quarantine = quarantine
        self.using = using
        self._prepared: object = None  # the connection that has tables for what comes in
        self._last_used: dict[int, float] = {}  # by key id, as it is in the database
        self._day = lru_cache(maxsize=512)(self._day_of_bucket)
        self._start = lru_cache(maxsize=512)(self._moment)

    def add(self, rows: Sequence[Row]) -> None:
        """Stores rows; those that are there already change nothing. Raises DatabaseError: try again later."""
        try:
            rows = self._not_pruned(rows)
            used = self._add_all(rows) if rows else {}
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
            self._put_aside(rows, str(exc))
        else:
            self._last_used.update(used)

    def _not_pruned(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Without those from before the records that are kept: whether they are in the sums already, nobody can tell
        any more (U11). A spool that comes back after so long has some."""
        if min(map(_started_of, rows)) > time.time() - RECENT_SECONDS:
            return rows
        since = Retention.objects.using(self.using).values_list("records_since", flat=True).first()
        begin = since.timestamp() if since is not None else 0.0
        pruned = [row for row in rows if row[_STARTED] < begin]
        if not pruned:
            return rows
        logger.error("%d records are older than those that are kept, and lie in %s", len(pruned), self.quarantine)
        self._put_aside(pruned, "older than the records that are kept: it may be in the sums already")
        return [row for row in rows if row[_STARTED] >= begin]

    def _put_aside(self, rows: Iterable[Row], why: str) -> None:
        with self.quarantine.open("ab") as file:
            file.writelines(orjson.dumps({"error": why, "row": row}) + b"\n" for row in rows)

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
            with connection.cursor() as cursor:
                # The spool forgets what is committed, so a commit must outlast a power cut; for pages NORMAL is enough.
                cursor.execute("PRAGMA synchronous = FULL")
                # Each batch touches a page of each index for each key: they stay in memory (KiB), and are copied into
                # the file less often (pages).
                cursor.execute("PRAGMA cache_size = -16384")
                cursor.execute("PRAGMA wal_autocheckpoint = 4000")
        write: type[_Writer] = _PostgresqlWriter if postgresql else _SqliteWriter
        with transaction.atomic(using=self.using):
            # Django's cursor would rewrite, count and time each statement; the driver's own does the work.
            with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
                writer = write(cursor)
                if postgresql and self._prepared is not connection.connection:
                    cursor.execute(_INCOMING)
                fresh = writer.insert(rows)
                if fresh:
                    self._add_sums(writer, fresh)
            used = self._note_use(fresh) if fresh else {}
        self._prepared = connection.connection
        return used

    def _add_sums(self, writer: "_Writer", rows: Sequence[Row]) -> None:
        buckets: dict[tuple[Any, ...], Sequence[int]] = {}
        with_label: dict[tuple[Any, ...], list[Row]] = {}
        for start, of_bucket in _by_bucket(rows):
            alike: dict[tuple[Any, ...], list[Row]] = {}
            for row in of_bucket:
                owner = _owner_of(row)
                if (group := alike.get(owner)) is None:
                    alike[owner] = [row]
                else:
                    group.append(row)
                if row[_END_USER]:
                    with_label.setdefault((self._day(start), *owner, row[_END_USER]), []).append(row)
            buckets |= {(start, *owner): _sums_of(group) for owner, group in alike.items()}
        labelled = {key: _sums_of(group) for key, group in with_label.items()}
        days = added_up(((self._day(start), *whose), sums) for (start, *whose), sums in buckets.items())
        starts = {(self._start(start), *whose): sums for (start, *whose), sums in buckets.items()}
        # The totals last: all workers add to the same few rows, and wait for whoever has them to commit.
        rollups = ((_BUCKETS, starts), (_DAYS, days), (_END_USERS, labelled), (_TOTALS, totals_of(days, labelled)))
        for rollup, added in rollups:
            if added:
                writer.add(rollup, added)

    def _moment(self, epoch: float) -> Any:
        """A time as Django writes it on this database."""
        return connections[self.using].ops.adapt_datetimefield_value(datetime.fromtimestamp(epoch, UTC))

    def _day_of_bucket(self, start: int) -> Any:
        day = day_of(datetime.fromtimestamp(start, UTC), self.zone)
        return connections[self.using].ops.adapt_datefield_value(day)

    def _note_use(self, rows: Iterable[Row]) -> dict[int, float]:
        latest: dict[int, float] = {}
        for row in rows:
            if row[_FINISHED] > self._last_used.get(row[9], 0) + LAST_USED_SECONDS:
                latest[row[9]] = max(row[_FINISHED], latest.get(row[9], 0))
        if latest:
            with connections[self.using].cursor() as cursor:
                for key_id, moment in sorted(latest.items()):
                    # Another worker may have noted it within the minute.
                    cursor.execute(
                        "INSERT INTO tenants_apikeylastused (key_id, at) SELECT id, %s FROM tenants_apikey "
                        "WHERE id = %s "
                        "ON CONFLICT (key_id) DO UPDATE SET at = excluded.at WHERE tenants_apikeylastused.at < %s",
                        [self._moment(moment), key_id, self._moment(moment - LAST_USED_SECONDS)],
                    )
        return latest


def _by_bucket(rows: Sequence[Row]) -> Iterable[tuple[int, Sequence[Row]]]:
    """(its start, rows) of each quarter of an hour. Nearly always it is one."""
    starts = list(map(_started_of, rows))
    first = _bucket_of(min(starts))
    if first == _bucket_of(max(starts)):
        return [(first, rows)]
    found: dict[int, list[Row]] = {}
    for row, at in zip(rows, starts, strict=True):
        found.setdefault(_bucket_of(at), []).append(row)
    return found.items()


def _bucket_of(epoch: float) -> int:
    return int(epoch) // _BUCKET_SECONDS * _BUCKET_SECONDS


def _sums_of(rows: Sequence[Row]) -> tuple[int, ...]:
    """What calls add up to, column by column: the ledger does it for each call."""
    outcomes, estimated, costs, prompt, completion, decode, total = zip(*map(_summed, rows), strict=True)
    return (
        len(rows),
        len(rows) - sum(map(outcomes.count, _SUCCESSES)),
        sum(map(bool, estimated)),
        costs.count(None),
        sum(prompt),
        sum(completion),
        sum(filter(None, costs)),
        sum(decode),
        sum(total),
        sum(compress(completion, decode)),
    )


def _is_fault_of_row(exc: Exception) -> bool:
    """Whether a row can never be stored. A table or a right that is missing may come yet."""
    return not isinstance(exc, ProgrammingError) or not getattr(exc.__cause__, "sqlstate", None)


@dataclass(frozen=True, slots=True)
class _Rollup:
    """`owner`: what its rows are told apart by, the period first. `unique`: the same, as its constraint has it."""

    table: str
    owner: tuple[str, ...]
    unique: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.owner, *_SUMS)

    @property
    def adding(self) -> str:
        """What an INSERT into it ends with."""
        sums = ", ".join(f"{name} = {self.table}.{name} + excluded.{name}" for name in _SUMS)
        return f"ON CONFLICT ({self.unique}) DO UPDATE SET {sums}"


_UNIQUE = "tenant_id, api_key_id, coalesce(user_id, 0), model, backend"
_BUCKETS = _Rollup("usage_usagebucket", ("start", *OWNER), f"start, {_UNIQUE}")
_DAYS = _Rollup("usage_dailyusage", ("day", *OWNER), f"day, {_UNIQUE}")
_END_USERS = _Rollup("usage_enduserusage", ("day", *OWNER, "end_user"), f"day, {_UNIQUE}, end_user")
_TOTALS = _Rollup("usage_dailytotal", ("day", "dimension", "value"), "dimension, day, value")


class _Writer:
    def __init__(self, cursor: Any) -> None:
        self.cursor = cursor

    def insert(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that were not there."""
        raise NotImplementedError

    def add(self, rollup: _Rollup, sums: Sums) -> None:
        """Adds sums to those of the same owner and period. In one order everywhere, so that two workers never wait
        for each other in a circle."""
        raise NotImplementedError


class _SqliteWriter(_Writer):
    """Many rows to a statement: after each one the thread has to win the GIL back from a busy event loop."""

    def insert(self, rows: Sequence[Row]) -> list[Row]:
        """The transaction holds SQLite's one write lock, so nobody comes in between."""
        ids = [row[0] for row in rows]
        known = self._known(ids)
        fresh = list(rows)
        if known or len(set(ids)) < len(ids):
            fresh = []
            for row in rows:
                if row[0] not in known:
                    known.add(row[0])
                    fresh.append(row)
        for part in _parts(fresh):
            values: list[Any] = []
            for row in part:
                values += row
            for column in (_STARTED, _FINISHED):
                values[column :: len(COLUMNS)] = all_in_utc([row[column] for row in part], " ")
            self.cursor.execute(_inserted("usage_usagerecord", COLUMNS, len(part)), values)
        return fresh

    def _known(self, ids: Sequence[str]) -> set[str]:
        """Those that are there. Ids go with the time: mostly there is none at all between the first and the last."""
        ends = min(ids), max(ids)
        found = self.cursor.execute("SELECT 1 FROM usage_usagerecord WHERE id BETWEEN ? AND ? LIMIT 1", ends)
        if found.fetchone() is None:
            return set()
        known: set[str] = set()
        for first in range(0, len(ids), 500):
            some = ids[first : first + 500]
            marks = ", ".join(["?"] * len(some))
            found = self.cursor.execute(f"SELECT id FROM usage_usagerecord WHERE id IN ({marks})", some)  # noqa: S608
            known.update(pk for (pk,) in found)
        return known

    def add(self, rollup: _Rollup, sums: Sums) -> None:
        # No order: there is one writer at a time.
        for part in _parts(list(sums.items())):
            values: list[Any] = []
            for owner, numbers in part:
                values += owner
                values += numbers
            self.cursor.execute(_inserted(rollup.table, rollup.columns, len(part), rollup.adding), values)


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """In few sizes, so that the driver keeps the statements: to parse a large one takes longer than to run it."""
    first = 0
    for size in _ROWS_PER_STATEMENT:
        while len(rows) - first >= size:
            yield rows[first : first + size]
            first += size


@lru_cache(maxsize=64)
def _inserted(table: str, columns: Sequence[str], rows: int, ending: str = "") -> str:
    marks = f"({', '.join(['?'] * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([marks] * rows)} {ending}"  # noqa: S608


def _utc(epoch: float) -> str:
    """2026-03-10 12:00:00.000000, as Django writes it to SQLite."""
    return in_utc(epoch, " ")


# Made once a connection: what is copied into them goes with the transaction.
_INCOMING = "".join(
    f"CREATE TEMPORARY TABLE IF NOT EXISTS {table}_incoming ON COMMIT DELETE ROWS "  # noqa: S608
    f"AS SELECT {', '.join(columns)} FROM {table} WITH NO DATA;"
    for table, columns in (
        ("usage_usagerecord", COLUMNS),
        *((rollup.table, rollup.columns) for rollup in (_BUCKETS, _DAYS, _END_USERS, _TOTALS)),
    )
)


class _PostgresqlWriter(_Writer):
    def insert(self, rows: Sequence[Row]) -> list[Row]:
        with self.cursor.copy(f"COPY usage_usagerecord_incoming ({_NAMES}) FROM STDIN") as copy:
            for row in rows:
                # Texts where the driver would make objects of them and texts of those again.
                times = _utc(row[_STARTED]) + "Z", _utc(row[_FINISHED]) + "Z"
                copy.write_row([*row[:_STARTED], *times, *row[_FINISHED + 1 :]])
        self.cursor.execute(
            f"INSERT INTO usage_usagerecord ({_NAMES}) SELECT {_NAMES} FROM usage_usagerecord_incoming "  # noqa: S608
            "ON CONFLICT (id) DO NOTHING RETURNING encode(uuid_send(id), 'hex')"
        )
        stored = {pk for (pk,) in self.cursor.fetchall()}
        # Of two rows with one id the first was inserted.
        fresh = {row[0]: row for row in reversed(rows) if row[0] in stored}
        return list(fresh.values())

    def add(self, rollup: _Rollup, sums: Sums) -> None:
        names = ", ".join(rollup.columns)
        with self.cursor.copy(f"COPY {rollup.table}_incoming ({names}) FROM STDIN") as copy:
            for owner, numbers in sums.items():
                copy.write_row((*owner, *numbers))
        order = ", ".join(rollup.owner)
        self.cursor.execute(
            f"INSERT INTO {rollup.table} ({names}) SELECT {names} FROM {rollup.table}_incoming "  # noqa: S608
            f"ORDER BY {order} {rollup.adding}"
        )
