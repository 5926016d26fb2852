"""Every question that request lists ask of records is served by an index, in its order, on both databases."""

import json
import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection
from django.db.models import Q

from tests.factories import make_admin, make_key, make_tenant, make_user
from usage import request_lists
from usage.models import UsageRecord
from usage.reports import Scope
from usage.request_lists import Cursor, RequestFilters

ROWS = 40_000
START = datetime(2026, 3, 1, tzinfo=UTC)

FILTERS = [
    {}, {"model": "m1"}, {"model": "none such"}, {"backend": "b1"}, {"outcome": "cut"}, {"outcome": "failures"},
    {"outcome": "ok"}, {"status": "5xx"}, {"slower_ms": "100"}, {"key": "KEY"}, {"user": "USER"}, {"user": "none"},
    {"end_user": "label 3"}, {"client_id": "theirs"}, {"id": "018f0000000070008000000000000001"},
    {"tenant": "TENANT"}, {"tenant": "TENANT", "end_user": "label 3"}, {"key": "KEY", "outcome": "failures"},
    {"since": "2026-03-02", "until": "2026-03-05", "model": "m1"}, {"until": "2026-03-02"},
]  # fmt: skip


@pytest.fixture
def keys(database):
    return [make_key(make_tenant(), user=make_user()).row for _ in range(50)]


@pytest.fixture
def many(keys):
    """Statistics are what planners go by, so there are enough rows to have some: every minute one."""
    owners = [(key.pk, key.tenant_id, key.user_id) for key in keys]
    columns = [field.column for field in UsageRecord._meta.concrete_fields]
    if connection.vendor == "sqlite":
        numbers = (
            f"(WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS - 1}) SELECT i FROM n)"
        )
        at = "strftime('%Y-%m-%d %H:%M:%S', '2026-03-01', '+' || i || ' minutes')"
        pk = "printf('018f%028x', i)"
    else:
        numbers = f"generate_series(0, {ROWS - 1}) AS n(i)"
        at = "timestamptz '2026-03-01 00:00:00+00' + i * interval '1 minute'"
        pk = "('018f' || lpad(to_hex(i), 28, '0'))::uuid"

    def one_of(place):
        """A small tenant's calls are few of all: else a planner may rightly take the index of all."""
        cases = " ".join(f"WHEN {number} THEN {owner[place]}" for number, owner in enumerate(owners))
        return f"CASE i % {len(owners)} {cases} END"

    values = {
        "id": pk, "started_at": at, "finished_at": at, "api_key_id": one_of(0), "tenant_id": one_of(1),
        "user_id": one_of(2), "model": "'m' || (i % 5)", "backend": "'b' || (i % 3)", "status": "200",
        "outcome": "CASE WHEN i % 50 = 0 THEN 'failed' WHEN i % 5000 = 1 THEN 'cut' ELSE 'ok' END",
        "end_user": "CASE WHEN i % 10 = 0 THEN 'label ' || (i / 10 % 20) ELSE '' END",
        "client_request_id": "CASE WHEN i % 1000 = 0 THEN 'theirs' ELSE '' END", "currency": "'EUR'",
        "price_id": "NULL", "cost_nano": "NULL", "client_address": "NULL",
    }  # fmt: skip
    texts = {field.column for field in UsageRecord._meta.concrete_fields if field.get_internal_type() == "CharField"}
    booleans = {"stream": "true", "estimated": "false"}
    written = [values.get(name) or booleans.get(name) or ("''" if name in texts else "0") for name in columns]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO usage_usagerecord ({', '.join(columns)}) SELECT {', '.join(written)} FROM {numbers}"
        )
        cursor.execute("ANALYZE")
    assert UsageRecord.objects.count() == ROWS
    return keys


def plans(ask):
    """The plans of all questions that are put to the records meanwhile."""
    asked = []

    def listen(execute, sql, params, many, context):
        if "usage_usagerecord" in sql:
            asked.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(listen):
        ask()
    with connection.cursor() as cursor:
        for sql, params in asked:
            sqlite = connection.vendor == "sqlite"
            cursor.execute(f"{'EXPLAIN QUERY PLAN' if sqlite else 'EXPLAIN (FORMAT JSON)'} {sql}", params)
            rows = cursor.fetchall()
            if sqlite:
                yield sql, [row[3] for row in rows]
            else:
                plan = rows[0][0] if isinstance(rows[0][0], list) else json.loads(rows[0][0])
                yield sql, list(nodes(plan[0]["Plan"]))


def nodes(plan):
    # A few rows are rightly sorted rather than looked for one by one.
    few = "few: " if plan["Plan Rows"] <= ROWS / 40 else ""
    yield f"{few}{plan['Node Type']} {plan.get('Relation Name', '')} {plan.get('Index Name', '')}"
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def is_served(sql, plan):
    """Does not read all records, nor sort more than a bounded part."""
    if connection.vendor == "postgresql":
        return not any(re.match("(few: )?Seq Scan usage_usagerecord|Sort|Incremental Sort", step) for step in plan)
    is_bounded = 'started_at" >= ' in sql and 'started_at" <= ' in sql
    return not any(
        re.match("SCAN usage_usagerecord(?! USING)", step) or (step.startswith("USE TEMP") and not is_bounded)
        for step in plan
    )


def scopes(keys):
    first = keys[0]
    return [
        Scope("all", "all", Q()),
        Scope(f"tenant-{first.tenant_id}", "tenant", Q(tenant=first.tenant_id)),
        Scope("mine", "mine", Q(user=first.user_id, tenant__in=[first.tenant_id])),
    ]


def places():
    middle = START + timedelta(minutes=ROWS // 2)
    return [None, *(Cursor(middle, UUID(int=7), newer) for newer in (False, True))]


@pytest.fixture
def looks(monkeypatch):
    """As small a share of these records as it is of ten millions."""
    monkeypatch.setattr(request_lists, "LOOKED_THROUGH", (60, 200))
    monkeypatch.setattr(request_lists, "NEWEST", 200)


def test_no_list_reads_or_sorts_all_records(many, looks):
    key = many[0]
    names = {"KEY": key.prefix, "USER": str(key.user_id), "TENANT": str(key.tenant_id)}
    unserved, questions = [], 0
    for scope in scopes(many):
        for query in FILTERS:
            filters = RequestFilters.read({name: names.get(value, value) for name, value in query.items()})
            for place in places():
                for sql, plan in plans(lambda: request_lists.page(scope, filters, place)):  # noqa: B023
                    questions += 1
                    if not is_served(sql, plan):
                        unserved.append((scope.slug, query, place, plan, sql[-300:]))
    assert not unserved, "\n".join(map(str, unserved[:10]))
    assert questions > 150


def test_rare_and_ordinary_filters_have_their_index(many):
    """The one they were given, so that the page is full after the first look."""
    key = many[0]
    everything, tenant, mine = scopes(many)
    for scope, query, index in (
        (everything, {}, "record_recent"),
        (tenant, {}, "record_tenant_recent"),
        (mine, {}, "record_user_recent"),
        (tenant, {"key": key.prefix}, "record_key_recent"),
        (tenant, {"end_user": "label 3"}, "record_end_user"),
        (everything, {"outcome": "cut"}, "record_failures"),
        (tenant, {"outcome": "cut"}, "record_tenant_failures"),
        (mine, {"outcome": "failures"}, "record_user_failures"),
        (everything, {"client_id": "theirs"}, "record_client_id"),
    ):
        for _, plan in plans(lambda: request_lists.page(scope, RequestFilters.read(query))):  # noqa: B023
            assert any(re.search(rf"\b{index}\b", step) for step in plan), (index, plan)


def test_the_admins_list_reads_and_sorts_no_more(many, looks, client):
    client.force_login(make_admin())
    path = "/admin/usage/usagerecord/"
    for query in (
        {}, {"outcome__exact": "cut"}, {"outcome__exact": "ok"}, {"outcome__exact": "coalesced"},
        {"stream__exact": "0"}, {"estimated__exact": "1"}, {"q": "theirs"}, {"q": "nothing such"},
        {"outcome__exact": "cut", "started_at__gte": "2026-03-02 00:00:00+00:00"},
    ):  # fmt: skip

        def ask():
            assert client.get(path, query).status_code == 200  # noqa: B023

        for sql, plan in plans(ask):
            assert is_served(sql, plan), (query, plan, sql[-300:])
            if "q" in query:
                assert any("record_client_id" in step for step in plan), (query, plan)


def test_the_admins_filters_look_through_a_bounded_number_of_rows(many, looks, client):
    """Of an outcome that nobody has had, in whatever dates."""
    client.force_login(make_admin())
    path = "/admin/usage/usagerecord/"
    asked = []

    def listen(execute, sql, params, many, context):
        if "usage_usagerecord" in sql:
            asked.append(sql)
        return execute(sql, params, many, context)

    for dates in ({}, {"started_at__gte": "2026-03-02 00:00:00+00:00"}):
        with connection.execute_wrapper(listen):
            answer = client.get(path, {"outcome__exact": "coalesced", **dates})
        assert answer.status_code == 200
    looking = [sql for sql in asked if '"outcome" = ' in sql]
    assert looking
    assert all('started_at" >= ' in sql for sql in looking)
    answer = client.get(path, {"outcome__exact": "cut"})
    assert answer.context["cl"].result_count == 1  # among the newest 200 failures, of which every hundredth was cut
