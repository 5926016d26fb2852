"""Row U7: a budget goes on where the roll-ups say it stands."""

import queue
import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.db import connections

from proxy import rules_watch
from proxy.limits import recorded
from tenants.models import ApiKey, Limit, Tenant
from tests.factories import make_key, make_limit, make_tenant, make_user
from tests.live.gateway import use_database
from tests.proxy.test_limits import rule
from usage.models import DailyUsage, UsageBucket

NOON = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)
ZONE = "Europe/Berlin"
PATIENCE = 30


def use(key, day, *, user=None, model="m:latest", requests=1, tokens=10, cost=5):
    sums = {"requests": requests, "prompt_tokens": tokens - 1, "completion_tokens": 1, "cost_nano": cost}
    DailyUsage.objects.create(tenant=key.tenant, user=user, api_key=key, model=model, day=day, **sums)
    return sums


def used(*limits, now=NOON):
    return recorded.read(limits, ZONE, now.timestamp(), "default")


def counter(limit, counted_for, now=NOON):
    return limit.window_at(now.timestamp(), "", ZONE, counted_for=counted_for).key


@pytest.mark.django_db
def test_u7_what_each_subject_used_in_the_window_that_runs():
    one, other = make_tenant("one"), make_tenant("other")
    user = make_user("ada", tenant=one)
    key, second, foreign = make_key(one, user=user).row, make_key(one).row, make_key(other).row
    use(key, "2026-03-29", user=user)
    use(key, "2026-03-01", user=user, model="big:latest", tokens=100, cost=50)
    use(key, "2026-02-28", user=user, tokens=7777)
    use(second, "2026-03-29", tokens=20)
    use(foreign, "2026-03-29", tokens=1000)
    tenant = rule("tokens", "month", id=1)
    day = rule("requests", "day", id=2)
    big = rule("cost", "month", id=3, model="big:latest")
    default = rule("tokens", "day", id=4)
    found = used(
        ("tenant", one.id, None, None, tenant),
        ("user", None, user.id, None, day),
        ("key", None, None, key.id, big),
        ("default", None, None, None, default),
        ("tenant", one.id, None, None, rule(id=5)),
        ("tenant", one.id, None, None, rule("concurrent", "none", id=6)),
    )
    assert found == {
        counter(tenant, f"tenant {one.id}"): 130,
        counter(day, f"user {user.id}"): 1,
        counter(big, f"key {key.id}"): 50,
        counter(default, key.prefix): 10,
        counter(default, second.prefix): 20,
        counter(default, foreign.prefix): 1000,
    }


@pytest.mark.django_db
def test_u7_hours_are_read_from_the_buckets_of_their_zone():
    key = make_key(make_tenant("one")).row
    for minutes, tokens in ((-1, 1000), (0, 10), (45, 5)):
        start = datetime(2026, 3, 29, 12, 0, tzinfo=UTC) + timedelta(minutes=minutes)
        UsageBucket.objects.create(tenant=key.tenant, api_key=key, model="m:latest", start=start, prompt_tokens=tokens)
    limit = rule("tokens", "hour")
    now = NOON + timedelta(minutes=50)
    found = used(("key", None, None, key.id, limit), now=now)
    assert found == {counter(limit, f"key {key.id}", now): 15}


@pytest.mark.django_db
def test_u7_nothing_is_asked_where_no_limit_needs_it(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert used(("key", None, None, 1, rule()), ("address", None, None, None, rule("tokens", "day"))) == {}


@pytest.mark.django_db(transaction=True)
def test_u7_what_is_recorded_meanwhile_is_read_again_and_told_once(monkeypatch):
    key = make_key(make_tenant("one")).row
    limit = make_limit(1000, metric="tokens", window="month", tenant=key.tenant)
    told = []
    watch = rules_watch.RulesWatch(told.append, "UTC")
    watch._poll()
    use(key, datetime.now(UTC).date(), tokens=70)
    watch._poll()
    assert [tables.recorded for tables in told] == [{}]
    monkeypatch.setattr(rules_watch, "RECORDED_SECONDS", -1)
    for _ in range(3):
        watch._poll()
        watch._summing.join(PATIENCE)
    assert [list(tables.recorded.values()) for tables in told] == [[], [70]]
    assert next(iter(told[1].recorded)).startswith(f"{limit.id}:tokens:month:tenant {key.tenant_id}:")


@pytest.mark.postgres
def test_a7_a_revocation_does_not_wait_for_what_was_used(watched, monkeypatch):
    """Where the sums of a month take their time, or somebody has locked the roll-ups to tidy them up."""
    monkeypatch.setattr(rules_watch, "RECORDED_SECONDS", 0.0)
    alias, url = watched
    tenant = Tenant.objects.using(alias).create(name="one")
    key = ApiKey.objects.using(alias).create(tenant=tenant, name="one", prefix="x1Y2z3A4", digest=b"d" * 32)
    Limit.objects.using(alias).create(scope="tenant", tenant=tenant, metric="tokens", window="month", amount=1000)
    told = queue.SimpleQueue()
    watch = rules_watch.RulesWatch(told.put, "UTC", alias)
    with psycopg.connect(url) as other:
        watch.start()
        assert not told.get(timeout=PATIENCE).keys[key.pk].revoked
        other.execute("LOCK TABLE usage_dailyusage IN ACCESS EXCLUSIVE MODE")
        until(lambda: other.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0])
        began = time.monotonic()
        ApiKey.objects.using(alias).filter(pk=key.pk).update(revoked_at=datetime.now(UTC))
        try:
            while not told.get(timeout=PATIENCE).keys[key.pk].revoked:
                pass
            print(f"revoked after {time.monotonic() - began:.2f} s")
        finally:
            other.rollback()
            watch.stop()
            for thread in (watch._thread, watch._summing):
                thread.join(PATIENCE)


@pytest.fixture
def watched(postgres_url, django_db_blocker):
    """(alias, URL) of a database that other threads reach, too."""
    alias = f"watched-{postgres_url.rpartition('/')[2]}"
    use_database(alias, postgres_url)
    with django_db_blocker.unblock():
        yield alias, postgres_url
        connections[alias].close()
    del connections.databases[alias]


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
