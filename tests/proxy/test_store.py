"""U1, U11, S3, S5: rows into the database, each once, with their sums, on both databases."""

import itertools
import threading
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from django.db import DatabaseError, connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.ledger.rows import AT
from proxy.ledger.store import Store
from tenants.models import ApiKeyLastUsed
from tests.conftest import default_connection
from tests.factories import make_key
from tests.live.gateway import copied_sqlite
from tests.proxy.spooled import NOON, make_row, value
from usage.models import DailyUsage, UsageBucket, UsageRecord
from usage.retention import prune
from usage.rollups import TABLES, reconcile


@pytest.fixture
def key(database):
    return make_key().row


@pytest.fixture
def store(database, tmp_path):
    return Store("UTC", tmp_path / "quarantine.jsonl")


@pytest.fixture
def row(key):
    def make(**fields):
        return make_row(**{"tenant_id": key.tenant_id, "api_key_id": key.pk, **fields})

    return make


def stored_ids():
    return sorted(pk.hex for pk in UsageRecord.objects.values_list("pk", flat=True))


def quarantined(store):
    if not store.quarantine.exists():
        return []
    return [orjson.loads(line)["row"][0] for line in store.quarantine.read_bytes().splitlines()]


def test_u1_a_row_comes_back_as_it_was(store, row):
    sent = row(
        stream=False, user_id=5, user_name="älice", backend="one", estimated=True, cost_nano=2**62, price_id=9,
        client_address="2001:db8::1", user_agent="\U0001f600" * 256, started_at=NOON + 0.123456, decode_us=10**15,
    )  # fmt: skip
    store.add([sent])
    record = UsageRecord.objects.get()
    assert record.pk.hex == sent[0]
    assert record.started_at == datetime.fromtimestamp(NOON + 0.123456, UTC)
    for name in AT.keys() - {"id", "started_at", "finished_at"}:
        assert getattr(record, name) == value(sent, name), name


def test_u1_the_same_rows_again_change_nothing(store, row):
    rows = [row() for _ in range(7)]
    store.add(rows[:5])
    store.add(rows)
    store.add([*rows, *rows])
    assert stored_ids() == sorted(entry[0] for entry in rows)
    assert UsageBucket.objects.get().requests == DailyUsage.objects.get().requests == 7
    assert reconcile() == []


@pytest.mark.parametrize(
    "poison",
    [
        {"outcome": "unheard of"},
        {"status": None},
        {"prompt_tokens": -1},
        {"prompt_tokens": 2**64 - 1},
        {"started_at": 1e30},
        {"started_at": None},
        {"model": None},
        {"model": ["a", "list"]},
        {"currency": {}},
    ],
    ids=str,
)
def test_u1_a_row_that_fits_no_column_waits_aside_and_the_others_are_stored(store, row, poison):
    rows = [row() for _ in range(9)]
    bad = row(**poison)
    store.add([*rows[:4], bad, *rows[4:]])
    assert stored_ids() == sorted(entry[0] for entry in rows)
    assert quarantined(store) == [bad[0]]
    assert reconcile() == []


def test_u1_a_row_of_another_length_waits_aside(store, row):
    good = row()
    store.add([good, row()[:20], row()[:1]])
    assert stored_ids() == [good[0]]
    assert len(quarantined(store)) == 2


def test_j8_nul_in_a_text_costs_no_other_row(store, row, database):
    rows = [row(), row(user_agent="nul \x00 here")]
    store.add(rows)
    expected = rows if database == "sqlite" else rows[:1]
    assert stored_ids() == sorted(entry[0] for entry in expected)


def test_u1_a_missing_table_is_no_fault_of_the_rows(store, row):
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE usage_dailyusage RENAME TO elsewhere")
    try:
        with pytest.raises(DatabaseError):
            store.add([row(), row()])
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO usage_dailyusage")
    assert stored_ids() == quarantined(store) == []


def test_u1_records_need_no_living_owner(store, row):
    """Keys, users and prices may be gone: their records are stored all the same."""
    store.add([row(tenant_id=10**6, user_id=10**6, api_key_id=10**6, price_id=10**6)])
    assert UsageRecord.objects.count() == 1
    assert ApiKeyLastUsed.objects.count() == 0


QUARTERS = st.integers(min_value=-200, max_value=200).map(lambda number: NOON + number * 450.0)
CALLS = st.fixed_dictionaries(
    {
        "started_at": QUARTERS,
        "user_id": st.sampled_from([None, 1, 2]),
        "model": st.sampled_from(["a:latest", "b:latest"]),
        "backend": st.sampled_from(["", "one", "two"]),
        "end_user": st.sampled_from(["", "", "a label"]),
        "outcome": st.sampled_from(["ok", "failed", "interrupted", "cached", "cut"]),
        "prompt_tokens": st.integers(0, 10**6),
        "completion_tokens": st.integers(0, 10**6),
        "cost_nano": st.one_of(st.none(), st.integers(0, 10**12)),
        "decode_us": st.integers(0, 10**9),
        "total_us": st.integers(0, 10**9),
        "estimated": st.booleans(),
    }
)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu"])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(calls=st.lists(CALLS, min_size=1, max_size=20), order=st.lists(st.lists(st.integers(0, 19)), max_size=6))
def test_u11_roll_ups_equal_records_whatever_is_replayed(row, tmp_path, settings, zone, calls, order):
    settings.TIME_ZONE = zone
    for table in (UsageRecord, *TABLES):
        table.objects.all().delete()
    store = Store(zone, tmp_path / "quarantine.jsonl")
    rows = [row(**fields) for fields in calls]
    for batch in order:  # some of them, some twice, in any order
        if batch:
            store.add([rows[number % len(rows)] for number in batch])
    store.add(rows)
    assert stored_ids() == sorted(entry[0] for entry in rows)
    assert reconcile() == []
    assert sum(UsageBucket.objects.values_list("total_us", flat=True)) == sum(
        value(entry, "total_us") for entry in rows
    )


def test_u11_a_row_from_before_the_records_that_are_kept_is_not_counted_again(store, row):
    """Of a spool that comes back after its records were pruned."""
    rows, late = [row(started_at=NOON - 86_400), row()], row()
    store.add(rows)
    assert list(prune(datetime.fromtimestamp(NOON - 3600, UTC))) == [1]
    store.add([*rows, late])
    assert stored_ids() == sorted([rows[1][0], late[0]])
    assert sum(UsageBucket.objects.values_list("requests", flat=True)) == 3
    assert quarantined(store) == [rows[0][0]]
    store.add(rows[:1])
    assert sum(DailyUsage.objects.values_list("requests", flat=True)) == 3


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def shared_url(request, tmp_path):
    """A migrated database for several threads; SQLite in a file, as it is in life."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return copied_sqlite(request.getfixturevalue("sqlite_template"), tmp_path / "shared.sqlite3")


def test_s3_writers_beside_each_other_lose_nothing(shared_url, tmp_path, django_db_blocker):
    """Eight workers, the same keys and buckets, each row given to several of them."""
    rows = [make_row(started_at=NOON + number % 4 * 900) for number in range(400)]
    failures = []

    def work(number):
        with django_db_blocker.unblock(), default_connection(shared_url):
            store = Store("UTC", tmp_path / "quarantine.jsonl")
            try:
                for first in range(0, 400, 40):
                    store.add([rows[(first + number * 37 + offset) % 400] for offset in range(60)])
            except Exception as exc:
                failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with django_db_blocker.unblock(), default_connection(shared_url):
        assert stored_ids() == sorted(entry[0] for entry in rows)
        assert reconcile() == []


def test_s3_the_last_use_of_a_key_is_noted_at_most_once_a_minute(row, key, tmp_path, database):
    workers = [Store("UTC", tmp_path / "quarantine.jsonl") for _ in range(4)]
    noted = []
    for second in range(0, 300, 5):
        workers[second % 4].add([row(finished_at=NOON + second)])
        noted.append(ApiKeyLastUsed.objects.get(key=key).at)
    changes = sorted(set(noted))
    assert 4 <= len(changes) <= 5
    assert min(later - earlier for earlier, later in itertools.pairwise(changes)) > timedelta(minutes=1)
    workers[0].add([row(finished_at=NOON - 3600)])
    assert ApiKeyLastUsed.objects.get(key=key).at == changes[-1]
