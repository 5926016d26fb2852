"""The database and Redis: whether they answer, fit this program, and have the same time as this machine."""

from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import redis
from django.conf import settings
from django.db import DatabaseError, OperationalError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from gateway_site.doctor.findings import Finding, note, ok, problem, warning
from proxy import triggers
from proxy.models import WorkerReport

# Seconds by which clocks may differ: windows of limits and ends of keys are judged by ours.
MOST_APART = 2.0
PATIENCE = 3.0


def look_at_database() -> Iterator[Finding]:
    try:
        connection.ensure_connection()
    except OperationalError as exc:
        yield problem(
            f"does not answer: {' '.join(str(exc).split())[:300]}",
            "Start it, or correct DATABASE_URL. Running gateways go on with the rules they know (DB_GRACE_SECONDS).",
        )
        return
    if connection.vendor == "postgresql":
        asked = timezone.now()
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            yield from _clock("The database's clock", cursor.fetchone()[0], asked)
    executor = MigrationExecutor(connection)
    pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if pending and executor.loader.applied_migrations:
        yield problem(
            f"{len(pending)} migrations are missing, e.g. {pending[0][0].app_label}.{pending[0][0].name}.",
            "manage.py migrate. Gateways of the version before run on meanwhile.",
        )
    elif pending:
        yield note("is empty: serve makes the tables at its first start.")
    elif lost := triggers.missing():
        yield problem(
            f"{len(lost)} triggers are missing, e.g. {lost[0]}: changes would not reach running workers.",
            "manage.py migrate puts them back.",
        )
    else:
        yield ok(f"{connection.display_name} {_version()}, migrated.")


def look_at_redis() -> Iterator[Finding]:
    if not settings.REDIS_URL:
        try:
            workers = WorkerReport.objects.running().count()
        except DatabaseError:  # there are no tables yet, or the database is away, as is told above
            workers = 0
        if workers > 1:
            yield warning(
                f"{workers} workers run without Redis: each allows the whole amount of every limit.",
                "Set REDIS_URL, the same for all.",
            )
        else:
            yield ok("not used; one process counts its limits itself.")
        return
    where, asked = urlsplit(settings.REDIS_URL), timezone.now()
    place = where.hostname or where.path
    try:
        with redis.Redis.from_url(
            settings.REDIS_URL, socket_connect_timeout=PATIENCE, socket_timeout=PATIENCE
        ) as client:
            seconds, microseconds = client.time()
            clock = list(_clock("The clock of Redis", datetime.fromtimestamp(seconds + microseconds / 1e6, UTC), asked))
            version = client.info("server").get("redis_version", "")
    except (redis.RedisError, ValueError, OSError) as exc:
        yield problem(
            f"{place} does not answer ({type(exc).__name__}): each process counts limits for itself.",
            "Start it, or correct REDIS_URL, e.g. redis://:password@host:6379/0.",
        )
        return
    yield from clock
    yield ok(f"{version} at {place}.")


def _clock(whose: str, moment: datetime, asked: datetime) -> Iterator[Finding]:
    """`moment`: what it said, at some time between `asked` and now."""
    apart = max((asked - moment).total_seconds(), (moment - timezone.now()).total_seconds())
    if apart > MOST_APART:
        yield warning(
            f"{whose} and this machine's are {apart:.0f} s apart: limits, keys and records are judged by this one's.",
            "Have both machines follow a time server: timedatectl set-ntp true.",
        )


def _version() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version" if connection.vendor == "postgresql" else "SELECT sqlite_version()")
        return str(cursor.fetchone()[0]).split()[0]
