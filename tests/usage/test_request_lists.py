"""Request lists: each row once, whatever the page, the filter and the direction; nothing of others."""

from datetime import timedelta

import pytest
from django.db.models import Q

from tests.factories import NOON, make_key, make_usage, make_user
from usage import request_lists
from usage.models import UsageRecord
from usage.reports import BadQuestion, Scope
from usage.request_lists import Cursor, RequestFilters, page


def of(tenant):
    return Scope(f"tenant-{tenant.pk}", str(tenant), Q(tenant=tenant.pk))


EVERYTHING = Scope("all", "All tenants", Q())


def walked(scope, filters, size=7):
    """All records, by following `older`."""
    found, cursor = [], None
    while True:
        part = page(scope, filters, cursor, size)
        found += part.records
        cursor = part.older
        if cursor is None:
            return found


@pytest.fixture
def some_records(db):
    """Of two tenants, several at one moment, with every kind of value a filter asks for."""
    key = make_key(user=make_user("ann")).row
    other = make_key().row
    for number in range(90):
        make_usage(
            other if number % 3 == 0 else key,
            at=NOON + timedelta(minutes=number // 4),
            model=f"m{number % 5}",
            backend="gpu1" if number % 2 else "gpu2",
            outcome=["ok", "failed", "cut", "cached"][number % 4],
            status=[200, 500, 499, 200][number % 4],
            end_user=f"label {number % 6}" if number % 2 else "",
            client_request_id="theirs" if number % 10 == 0 else "",
            total_us=number * 1000,
        )
    return key, other


@pytest.mark.parametrize("looked_through", [(1_000, 5_000), (3, 5)])
@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ({}, lambda row: True),
        ({"model": "m3"}, lambda row: row.model == "m3"),
        ({"backend": "gpu2", "model": "m1"}, lambda row: row.backend == "gpu2" and row.model == "m1"),
        ({"outcome": "cut"}, lambda row: row.outcome == "cut"),
        ({"outcome": "ok"}, lambda row: row.outcome == "ok"),
        ({"outcome": "failures"}, lambda row: row.outcome in ("cut", "failed")),
        ({"status": "5xx"}, lambda row: row.status == 500),
        ({"status": "499"}, lambda row: row.status == 499),
        ({"end_user": "label 3"}, lambda row: row.end_user == "label 3"),
        ({"client_id": "theirs"}, lambda row: row.client_request_id == "theirs"),
        ({"slower_ms": "50"}, lambda row: row.total_us >= 50_000),
        ({"user": "none"}, lambda row: row.user_id is None),
        ({"since": "2026-03-10T12:05:00+00:00", "until": "2026-03-10T12:11:00+00:00"},
         lambda row: timedelta(minutes=5) <= row.started_at - NOON < timedelta(minutes=11)),
        ({"outcome": "failures", "model": "m2", "since": "2026-03-10"}, lambda row: row.outcome in ("cut", "failed")
         and row.model == "m2"),
    ],
)  # fmt: skip
def test_each_fitting_row_comes_once_in_both_directions(some_records, monkeypatch, looked_through, query, fits):
    monkeypatch.setattr(request_lists, "LOOKED_THROUGH", looked_through)
    filters = RequestFilters.read(query)
    for scope in (EVERYTHING, of(some_records[0].tenant)):
        rows = UsageRecord.objects.filter(scope.rows).order_by("-started_at", "-id")
        expected = [row.pk for row in rows if fits(row)]
        assert [row.pk for row in walked(scope, filters)] == expected
        back, cursor = [], Cursor(NOON - timedelta(days=1), UsageRecord.objects.first().pk, newer=True)
        while cursor is not None:
            part = page(scope, filters, cursor, 7)
            back = [row.pk for row in part.records] + back
            cursor = part.newer
        assert back == expected
        parts = request_lists.parts(scope, filters, ("id", "model", "started_at"), 7)
        assert [pk for part in parts for pk, _, _ in part] == expected


def test_the_state_of_a_list_fits_an_address(some_records):
    query = {
        "id": "0" * 32, "client_id": "c", "tenant": "1", "key": "abc", "user": "2", "model": "m", "backend": "b",
        "outcome": "failures", "status": "4xx", "end_user": "x", "since": "2026-03-10T12:05:00+00:00",
        "until": "2026-03-11T00:00:00+00:00", "slower_ms": "100",
    }  # fmt: skip
    assert RequestFilters.read(query).query() == query
    cursor = page(EVERYTHING, RequestFilters()).older
    assert Cursor.read(str(cursor)) == cursor


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"outcome": "great"}, "outcome"),
        ({"status": "6xx"}, "status"),
        ({"status": "²²²"}, "status"),
        ({"since": "yesterday"}, "since"),
        ({"until": "0001-01-01"}, "until"),
        ({"until": "9999-12-31T23:59:59-12:00"}, "until"),
        ({"slower_ms": "-1"}, "slower_ms"),
        ({"slower_ms": "9" * 13}, "slower_ms"),
        ({"model": "a\0b"}, "model"),
        ({"model": "x" * 501}, "model"),
    ],
)
def test_what_cannot_be_asked_is_named(query, parameter):
    with pytest.raises(BadQuestion) as refused:
        RequestFilters.read(query)
    assert refused.value.parameter == parameter


@pytest.mark.parametrize(
    "place", ["", "older", "older-1-2", "older-99999999999999999999-" + "0" * 32, "x-1-" + "0" * 32]
)
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(BadQuestion):
        Cursor.read(place)


def test_t1_nothing_of_another_tenant_is_found_by_any_filter(some_records):
    key, other = some_records
    theirs = UsageRecord.objects.filter(tenant=other.tenant).first()
    scope = of(key.tenant)
    for query in (
        {"key": other.prefix}, {"tenant": str(other.tenant_id)}, {"id": str(theirs.pk)},
        {"id": "no id"}, {"key": "nothing"}, {"tenant": "0"}, {"user": "99999"},
    ):  # fmt: skip
        found = page(scope, RequestFilters.read(query))
        assert (found.records, found.older, found.newer, found.searched_to) == ([], None, None, None)
    assert request_lists.one(scope, str(theirs.pk)) is None
    assert request_lists.one(EVERYTHING, str(theirs.pk)) == theirs
    assert request_lists.one(EVERYTHING, "nonsense") is None


def test_a_page_that_looked_through_all_it_may_says_how_far_it_came(some_records, monkeypatch):
    monkeypatch.setattr(request_lists, "LOOKED_THROUGH", (10, 20))
    found = page(EVERYTHING, RequestFilters.read({"model": "nobody's"}))
    assert found.records == []
    assert found.older is not None
    rows = UsageRecord.objects.order_by("-started_at", "-id")
    assert found.searched_to == rows[29].started_at
