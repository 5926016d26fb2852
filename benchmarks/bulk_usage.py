"""Many invented records into an empty database, a day at a time, with their sums: by SQL, where it is fastest.

What calls have in common (whose, which model, tokens, cost) stands once in a table of bodies; of each call only its id,
its moment, its body and its label go to the database, which makes records and sums of them. `manage.py reconcile`
proves that both agree.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

from django.db import connection

from proxy.ledger.rows import AT, COLUMNS, Row
from usage.models import UsageRecord
from usage.models.records import SUCCESSES
from usage.rollups import DIMENSIONS, END_USER, MEASURES, OWNER

# (id in hex, when it was admitted in epoch seconds, number of its body, end-user label)
Call = tuple[str, float, int, str]

_OF_CALL = ("id", "started_at", "finished_at", "end_user")
_OF_BODY = tuple(name for name in COLUMNS if name not in _OF_CALL)
_SUMS = ", ".join(MEASURES)
_ADDED = ", ".join(f"sum({name}) AS {name}" for name in MEASURES)
_OWNER = ", ".join(OWNER)
# What a call of a body adds to each sum.
_MEASURED = {
    "requests": "1",
    "failures": f"CASE WHEN outcome IN ({', '.join(repr(str(each)) for each in SUCCESSES)}) THEN 0 ELSE 1 END",
    "estimated": "CASE WHEN estimated THEN 1 ELSE 0 END",
    "unpriced": "CASE WHEN cost_nano IS NULL THEN 1 ELSE 0 END",
    "cost_nano": "coalesce(cost_nano, 0)",
    "decoded_tokens": "CASE WHEN decode_us > 0 THEN completion_tokens ELSE 0 END",
}


class BulkUsage:
    """For one connection, within `with`: before it indexes go and safety is put off, after it both come back."""

    def __init__(self, bodies: Sequence[Row]) -> None:
        self.bodies = bodies
        self.durations = [body[AT["total_us"]] / 1_000_000 for body in bodies]
        self.sqlite = connection.vendor == "sqlite"

    def __enter__(self) -> "BulkUsage":
        with connection.schema_editor() as editor:
            for index in UsageRecord._meta.indexes:
                editor.remove_index(UsageRecord, index)
        connection.ensure_connection()
        with closing(connection.connection.cursor()) as cursor:
            for statement in self._preparing():
                cursor.execute(statement)
            self._fill(cursor, "bodies", ("body", "owner", *_OF_BODY), self._numbered())
            values = ", ".join(_MEASURED.get(name, name) for name in MEASURES)
            cursor.execute(f"INSERT INTO measured SELECT body, owner, {values} FROM bodies")
            if not self.sqlite:
                cursor.execute("CREATE UNIQUE INDEX ON bodies (body)")
                cursor.execute("ANALYZE bodies")
                cursor.execute("ANALYZE measured")
        self._commit()
        return self

    def __exit__(self, *exc: object) -> None:
        with closing(connection.connection.cursor()) as cursor:
            for table in ("calls", "bodies", "measured", "quarters"):
                cursor.execute(f"DROP TABLE {table}")
        self._commit()
        for index in UsageRecord._meta.indexes:
            with connection.schema_editor() as editor:
                editor.add_index(UsageRecord, index)
        with closing(connection.connection.cursor()) as cursor:
            if self.sqlite:
                cursor.execute("ANALYZE")
                cursor.execute("PRAGMA locking_mode = NORMAL")
                cursor.execute("PRAGMA journal_mode = WAL").fetchall()
            else:
                connection.connection.autocommit = True
                cursor.execute("VACUUM ANALYZE")

    def _preparing(self) -> Iterable[str]:
        names = ", ".join(_OF_BODY)
        if self.sqlite:
            # What is lost with the machine is made anew.
            yield "PRAGMA journal_mode = OFF"
            yield "PRAGMA synchronous = OFF"
            yield "PRAGMA locking_mode = EXCLUSIVE"
            yield "PRAGMA temp_store = MEMORY"
            yield "PRAGMA cache_size = -400000"
            yield "CREATE TEMP TABLE calls (id, started_at, finished_at, quarter INTEGER, body INTEGER, end_user)"
            yield f"CREATE TEMP TABLE bodies (body INTEGER PRIMARY KEY, owner INTEGER, {names})"
        else:
            yield "SET statement_timeout = 0"
            yield "SET synchronous_commit = off"
            yield "SET maintenance_work_mem = '512MB'"
            yield "SET work_mem = '128MB'"
            yield (
                "CREATE TEMP TABLE calls (id uuid, started_at timestamptz, finished_at timestamptz, quarter bigint, "
                "body integer, end_user varchar)"
            )
            yield (
                f"CREATE TEMP TABLE bodies AS SELECT 0 AS body, 0 AS owner, {names} FROM usage_usagerecord WITH NO DATA"
            )
        sums = ", ".join(f"{name} bigint" for name in MEASURES)
        yield f"CREATE TEMP TABLE measured (body integer PRIMARY KEY, owner integer, {sums})"
        yield f"CREATE TEMP TABLE quarters (quarter bigint, owner integer, {sums})"

    def _numbered(self) -> Iterable[Sequence[Any]]:
        """The bodies, each with its number and that of the first body with the same owner."""
        places = [AT[name] for name in OWNER]
        owners: dict[tuple[Any, ...], int] = {}
        for number, body in enumerate(self.bodies):
            owner = owners.setdefault(tuple(body[place] for place in places), number)
            yield number, owner, *(body[AT[name]] for name in _OF_BODY)

    def add_day(self, day: date, calls: Sequence[Call]) -> None:
        """The calls of one day of the reporting zone, and what they add up to."""
        time = _sqlite_time if self.sqlite else _moment
        rows = (
            (pk, time(at), time(at + self.durations[body]), int(at) // 900 * 900, body, label)
            for pk, at, body, label in calls
        )
        with closing(connection.connection.cursor()) as cursor:
            self._fill(cursor, "calls", ("id", "started_at", "finished_at", "quarter", "body", "end_user"), rows)
            for statement in self._adding(day):
                cursor.execute(statement)
            for table in ("calls", "quarters"):
                cursor.execute(f"DELETE FROM {table}" if self.sqlite else f"TRUNCATE {table}")
        self._commit()

    def _adding(self, day: date) -> Iterable[str]:
        of_body = ", ".join(f"bodies.{name}" for name in _OF_BODY)
        on = f"'{day}'" if self.sqlite else f"DATE '{day}'"
        start = "datetime(quarter, 'unixepoch')" if self.sqlite else "to_timestamp(quarter)"
        summed = ", ".join(f"added.{name}" for name in MEASURES)
        named = f"SELECT {{period}}, {_OWNER}{{label}}, {summed} FROM ({{added}}) AS added JOIN bodies ON body = whose"
        yield (
            f"INSERT INTO usage_usagerecord (id, started_at, finished_at, end_user, {', '.join(_OF_BODY)}) "
            f"SELECT calls.id, started_at, finished_at, calls.end_user, {of_body} FROM calls JOIN bodies USING (body)"
        )
        yield (
            f"INSERT INTO quarters SELECT quarter, owner, {_ADDED} FROM calls JOIN measured USING (body) "
            "GROUP BY quarter, owner"
        )
        buckets = f"SELECT quarter, owner AS whose, {_SUMS} FROM quarters"
        yield (
            f"INSERT INTO usage_usagebucket (start, {_OWNER}, {_SUMS}) "
            + named.format(period=start, label="", added=buckets)
        )
        days = f"SELECT owner AS whose, {_ADDED} FROM quarters GROUP BY owner"
        yield f"INSERT INTO usage_dailyusage (day, {_OWNER}, {_SUMS}) " + named.format(period=on, label="", added=days)
        labelled = (
            f"SELECT owner AS whose, end_user AS label, {_ADDED} FROM calls JOIN measured USING (body) "
            "WHERE end_user <> '' GROUP BY owner, end_user"
        )
        yield (
            f"INSERT INTO usage_enduserusage (day, {_OWNER}, end_user, {_SUMS}) "
            + named.format(period=on, label=", label", added=labelled)
        )
        yield (
            f"INSERT INTO usage_dailytotal (day, dimension, value, {_SUMS}) "
            f"SELECT {on}, '{END_USER}', end_user, {_ADDED} FROM usage_enduserusage WHERE day = {on} GROUP BY end_user"
        )
        for dimension, place in DIMENSIONS.items():
            # As usage.rollups.totals_of: what is nobody's has a line of its own.
            value = "''" if place is None else f"coalesce(CAST({OWNER[place]} AS varchar), '')"
            grouped = "" if place is None else f" GROUP BY {OWNER[place]}"
            yield (
                f"INSERT INTO usage_dailytotal (day, dimension, value, {_SUMS}) "
                f"SELECT {on}, '{dimension}', {value}, {_ADDED} FROM usage_dailyusage WHERE day = {on}{grouped}"
            )

    def _fill(self, cursor: Any, table: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        columns = ", ".join(names)
        if self.sqlite:
            marks = ", ".join("?" * len(names))
            cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)
            return
        with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def _commit(self) -> None:
        if not self.sqlite:
            return
        if connection.connection.in_transaction:
            connection.connection.commit()


def _moment(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)


def _sqlite_time(epoch: float) -> str:
    """As Django writes it: UTC, without a zone."""
    second = int(epoch)
    return f"{_sqlite_second(second)}.{int((epoch - second) * 1_000_000):06d}"


@lru_cache(maxsize=4096)
def _sqlite_second(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).replace(tzinfo=None).isoformat(" ")
