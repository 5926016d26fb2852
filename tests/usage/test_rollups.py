"""Roll-ups add up to the records, on both databases (threats U9, U11)."""

import json
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import NOON, make_key, make_tenant, make_usage, make_user
from usage.models import DailyUsage, Outcome, UsageBucket, UsageRecord
from usage.retention import prune
from usage.rollups import TABLES, bucket_start, day_begins, day_of, rebuild, reconcile, reporting_zone

ZONES = [
    "UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Asia/Kolkata", "Australia/Lord_Howe",
    "Pacific/Apia", "America/St_Johns", "Asia/Beirut", "Atlantic/Azores", "America/Havana",
]  # fmt: skip
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))


@given(MOMENTS)
def test_buckets_are_quarters_of_hours_of_utc(at):
    start = bucket_start(at)
    assert start <= at < start + timedelta(minutes=15)
    assert (start.minute % 15, start.second, start.microsecond, start.tzinfo) == (0, 0, 0, UTC)
    assert bucket_start(at.astimezone(ZoneInfo("Asia/Kathmandu"))) == start


@given(MOMENTS, st.sampled_from(ZONES))
def test_u9_every_moment_lies_in_the_day_that_begins_before_it(at, name):
    zone = ZoneInfo(name)
    day = day_of(at, zone)
    assert day_begins(day, zone) <= at < day_begins(day + timedelta(days=1), zone)


@given(MOMENTS, st.sampled_from(ZONES))
def test_u9_a_bucket_lies_in_one_day(at, name):
    zone = ZoneInfo(name)
    start = bucket_start(at)
    assert day_of(start, zone) == day_of(start + timedelta(minutes=14, seconds=59), zone)


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        (date(2026, 3, 29), 23),
        (date(2026, 10, 25), 25),
        (date(2028, 2, 29), 24),
        (date(2026, 12, 31), 24),
    ],
)
def test_u9_days_have_the_hours_of_the_zone(day, hours):
    berlin = ZoneInfo("Europe/Berlin")
    assert day_begins(day + timedelta(days=1), berlin) - day_begins(day, berlin) == timedelta(hours=hours)


def make_a_week(key):
    """Records of all kinds, at the edges of buckets, hours and days."""
    someone = make_key(key.tenant, user=make_user(tenant=key.tenant)).row
    for number in range(120):
        at = NOON + timedelta(minutes=14 * number, microseconds=number % 3)
        make_usage(
            someone if number % 3 else key,
            at=at,
            outcome=Outcome.values[number % len(Outcome.values)],
            model=f"m{number % 2}:latest",
            backend="" if number % 5 == 0 else "gpu1",
            estimated=number % 7 == 0,
            end_user="label" if number % 6 == 0 else "",
            cost_nano=None if number % 4 == 0 else number * 10**9,
            prompt_tokens=number,
        )
    make_usage(key, at=datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))


def test_u11_a_rebuild_leaves_no_difference(database):
    make_a_week(make_key().row)
    assert {found.table for found in reconcile()} == {table.__name__ for table in TABLES}
    rebuild()
    assert reconcile() == []
    assert sum(UsageBucket.objects.values_list("requests", flat=True)) == 121
    assert sum(DailyUsage.objects.values_list("requests", flat=True)) == 121


def test_u9_the_zone_decides_the_day_and_both_databases_agree(database, settings):
    settings.TIME_ZONE = "Europe/Berlin"
    key = make_key().row
    for at in ("2026-03-28T22:59:59", "2026-03-28T23:00:00", "2026-03-29T21:59:59", "2026-03-29T22:00:00"):
        make_usage(key, at=datetime.fromisoformat(f"{at}+00:00"))
    rebuild()
    assert list(DailyUsage.objects.order_by("day").values_list("day", "requests")) == [
        (date(2026, 3, 28), 1),
        (date(2026, 3, 29), 2),
        (date(2026, 3, 30), 1),
    ]
    assert reconcile() == []


def test_measures_are_what_they_say(database):
    key = make_key().row
    for outcome in Outcome.values:
        make_usage(key, outcome=outcome)
    make_usage(key, estimated=True, cost_nano=None)
    rebuild()
    row = UsageBucket.objects.get()
    assert row.start == NOON
    assert row.requests == len(Outcome.values) + 1
    assert row.failures == len(Outcome.values) - 3
    assert (row.estimated, row.unpriced) == (1, 1)
    assert (row.prompt_tokens, row.completion_tokens) == (10 * row.requests, 20 * row.requests)
    assert row.cost_nano == 5_000 * len(Outcome.values)


@pytest.mark.parametrize("table", [UsageBucket, DailyUsage])
def test_each_kind_of_drift_is_found_and_named(database, table):
    key = make_key().row
    make_usage(key)
    rebuild()
    row = table.objects.get()

    table.objects.update(completion_tokens=21)
    (found,) = reconcile()
    assert (found.table, found.measure, found.records, found.rolled_up) == (table.__name__, "completion_tokens", 20, 21)
    assert found.api_key_id == key.pk

    table.objects.all().delete()
    assert {found.rolled_up for found in reconcile()} == {0}

    rebuild()
    row.pk, row.model = None, "never-used:latest"
    row.save(force_insert=True)
    assert {(found.model, found.records) for found in reconcile()} == {("never-used:latest", 0)}
    rebuild()
    assert reconcile() == []


def test_a_record_that_vanished_is_found(database):
    make_usage()
    rebuild()
    UsageRecord.objects.all().delete()
    assert reconcile()
    rebuild()
    assert not UsageBucket.objects.exists()


def test_a_day_is_rebuilt_in_a_transaction_of_its_own(database):
    """So that the ledger waits for one day, not for all."""
    day = day_of(make_usage().started_at, reporting_zone())

    def days():
        yield day
        raise InterruptedError

    with pytest.raises(InterruptedError):
        rebuild(days=days())
    assert UsageBucket.objects.count() == 1


def test_u11_a_day_whose_records_were_deleted_meanwhile_keeps_its_sums(database):
    """Between the look at what differs and the mending of it."""
    make_usage(at=datetime(2020, 1, 1, tzinfo=UTC))
    rebuild()
    kept = list(UsageBucket.objects.values())
    for _ in prune(datetime(2021, 1, 1, tzinfo=UTC)):
        pass
    rebuild(days=[date(2020, 1, 1), date(2019, 12, 31)])
    assert kept
    assert list(UsageBucket.objects.values()) == kept


def test_gaps_of_years_cost_no_questions(database):
    key = make_key().row
    make_usage(key, at=datetime(1999, 12, 31, tzinfo=UTC))
    make_usage(key, at=datetime(2026, 1, 1, tzinfo=UTC))
    rebuild()
    with CaptureQueriesContext(connection) as queries:
        assert reconcile() == []
    assert len(queries) < 30


def run(*arguments):
    from io import StringIO

    out, err = StringIO(), StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue()


def test_the_command_says_equal_lists_and_fixes(database):
    assert run("reconcile") == "Records and roll-ups are equal.\n"
    make_usage()
    with pytest.raises(CommandError, match="reconcile --fix") as refused:
        run("reconcile")
    assert refused.value.returncode == 1
    assert json.loads(run("reconcile", "--fix", "--json"))["fixed"] is True
    assert json.loads(run("reconcile", "--json")) == {"differences": [], "fixed": False, "changed": False}


def test_a_fix_leaves_other_days_alone(database):
    key = make_key().row
    make_usage(key)
    make_usage(key, at=NOON + timedelta(days=3))
    rebuild()
    other = UsageBucket.objects.latest("start").pk
    UsageBucket.objects.filter(start=NOON).update(requests=7)
    run("reconcile", "--fix")
    assert reconcile() == []
    assert UsageBucket.objects.latest("start").pk == other


def test_a_rebuild_waits_for_the_ledger_and_the_ledger_for_it(database, postgres):
    """A batch that is being written while roll-ups are made anew is neither lost nor counted twice."""
    if database == "sqlite":
        return  # the transactions of which never overlap
    import threading

    from tests.conftest import default_connection

    key = make_key().row
    make_usage(key)
    rebuild()
    url = postgres.url_of(connection.settings_dict["NAME"])
    written, finish = threading.Event(), threading.Event()

    def ledger():
        from django.db import transaction
        from django.db.models import F

        with default_connection(url), transaction.atomic():
            make_usage(key)
            for table in (UsageBucket, DailyUsage):
                table.objects.update(
                    requests=F("requests") + 1,
                    prompt_tokens=F("prompt_tokens") + 10,
                    completion_tokens=F("completion_tokens") + 20,
                    cost_nano=F("cost_nano") + 5_000,
                    decode_us=F("decode_us") + 1_000_000,
                    total_us=F("total_us") + 1_500_000,
                )
            written.set()
            finish.wait(20)

    thread = threading.Thread(target=ledger)
    thread.start()
    assert written.wait(20)
    threading.Timer(0.3, finish.set).start()
    rebuild()
    thread.join()
    assert reconcile() == []
    assert UsageBucket.objects.get().requests == 2


def test_tenants_are_told_apart(database):
    for _ in range(2):
        make_usage(make_key(make_tenant()).row)
    rebuild()
    assert UsageBucket.objects.count() == 2
