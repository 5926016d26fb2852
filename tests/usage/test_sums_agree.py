"""Whoever adds up usage comes to the same sum: by hand, by day, over a range, in the export, in the API, in the headers
of calls. In zones with half hours and with clocks that are put forward and back, over month ends, a leap day and the
end of a year, with records that come late (threat U9)."""

import csv
import json
import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from zoneinfo import ZoneInfo

import pytest
from django.db.models import Q
from django.test import RequestFactory

from gateway_site.analytics import figures
from proxy.ledger.store import Store
from proxy.limits import recorded
from proxy.limits.rules import calendar_window
from tenants import money
from tenants.models import Role
from tests.factories import make_key, make_tenant, make_user
from tests.management_api.conftest import API, Program, create_token
from tests.proxy.spooled import make_row, value
from tests.proxy.test_limits import rule
from usage import export, reports
from usage.reports import PERIODS, Question, Scope, Totals
from usage.rollups import reconcile

# The end of a year, a leap day, spring in the north and autumn on Lord Howe; then the other way round.
SPANS = ((date(2027, 12, 28), date(2028, 4, 6)), (date(2028, 9, 28), date(2028, 11, 8)))
# Days that are looked at by the hour: around each change of the clocks, the leap day, a new year.
CLOSELY = [
    date(2028, 1, 1), date(2028, 2, 29), date(2028, 3, 12), date(2028, 3, 26), date(2028, 4, 2), date(2028, 10, 1),
    date(2028, 10, 29), date(2028, 11, 5),
]  # fmt: skip
ZONES = ["Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "America/St_Johns"]


def moments(zone, chance):
    """Epoch seconds: a few of each day, many at the edges of the days that matter."""
    for first, last in SPANS:
        day = first
        while day <= last:
            midnight = datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
            yield midnight + chance.random() * 86_000
            if day.day == 1 or day in CLOSELY or day - timedelta(days=1) in CLOSELY:
                yield from (midnight - 0.001, midnight, midnight + 0.001)
            if day in CLOSELY:
                yield from (midnight + hour * 1800 + chance.choice((0, 899.999, 900)) for hour in range(8))
            day += timedelta(days=1)


@pytest.fixture
def calls(zone, cast):
    chance = random.Random(zone.key)
    return [
        make_row(
            started_at=at,
            finished_at=at + 2,
            tenant_id=key.tenant_id,
            user_id=key.user_id,
            api_key_id=key.pk,
            model=chance.choice(("llama3.2:latest", "qwen3:8b", "gemma3:4b")),
            backend=chance.choice(("", "gpu1", "gpu2")),
            end_user=chance.choice(("", "", "label one", "=label")),
            outcome=chance.choice(("ok", "ok", "ok", "failed", "cached")),
            prompt_tokens=chance.randrange(10**6),
            completion_tokens=chance.randrange(10**6),
            decode_us=chance.choice((0, chance.randrange(10**8))),
            total_us=chance.randrange(10**9),
            estimated=chance.random() < 0.2,
            cost_nano=chance.choice((None, 0, chance.randrange(10**12))),
        )
        for at in moments(zone, chance)
        for key in (chance.choice(cast.keys),)
    ]


class Cast:
    def __init__(self):
        self.tenant = make_tenant("acme")
        self.owner = make_user("alice", tenant=self.tenant, role=Role.OWNER)
        self.keys = [make_key(self.tenant, name, user=user).row for name, user in (("a", self.owner), ("b", None))]
        self.scope = Scope(f"tenant-{self.tenant.pk}", "acme", Q(tenant=self.tenant.pk))
        self.program = Program(create_token(self.owner, "test", ["read"]).clear_text)
        # Another tenant's are in no sum.
        self.foreign = make_key(make_tenant("other")).row


@pytest.fixture
def zone(database, settings, request):
    settings.TIME_ZONE = request.param
    return ZoneInfo(request.param)


@pytest.fixture
def cast(zone):
    return Cast()


def by_hand(rows):
    sums = Counter()
    for row in rows:
        of = lambda name: value(row, name)  # noqa: B023, E731 - used at once
        sums.update({
            "requests": 1,
            "failures": of("outcome") == "failed",
            "estimated": of("estimated"),
            "unpriced": of("cost_nano") is None,
            "prompt_tokens": of("prompt_tokens"),
            "completion_tokens": of("completion_tokens"),
            "cost_nano": of("cost_nano") or 0,
            "decode_us": of("decode_us"),
            "total_us": of("total_us"),
            "decoded_tokens": of("completion_tokens") if of("decode_us") else 0,
        })  # fmt: skip
    return Totals(**sums)


def local(row, zone):
    return datetime.fromtimestamp(value(row, "started_at"), UTC).astimezone(zone)


def ask(**query):
    return Question.read({name: str(value) for name, value in query.items()}, date(2028, 12, 31))


@pytest.mark.parametrize("zone", ZONES, indirect=True)
def test_u9_days_range_export_api_and_headers_have_one_sum(zone, cast, calls, tmp_path):
    store = Store(zone.key, tmp_path / "quarantine.jsonl")
    late = calls[::5]
    in_time = [row for row in calls if row not in late]
    store.add(in_time)
    store.add(
        [make_row(started_at=row[2], tenant_id=cast.foreign.tenant_id, api_key_id=cast.foreign.pk) for row in late]
    )
    for first, last in SPANS:
        expected = by_hand(row for row in in_time if first <= local(row, zone).date() <= last)
        assert reports.report(cast.scope, ask(by="model", first=first, last=last)).totals == expected
    # Some of what comes late comes with what is there already.
    store.add([*late, *in_time[:20]])
    for first, last in SPANS:
        check_span(zone, cast, [row for row in calls if first <= local(row, zone).date() <= last], first, last)
    for day in CLOSELY:
        check_hours(zone, cast, [row for row in calls if local(row, zone).date() == day], day)
        check_headers(zone, cast, calls, day)
    assert reconcile() == []


def check_span(zone, cast, rows, first, last):
    expected = by_hand(rows)
    assert expected.requests > 50
    assert reports.totals(cast.scope.rows, first, last) == expected
    for by in reports.BY:
        if by == "hour":
            continue
        found = reports.report(cast.scope, ask(by=by, per="day" if by not in PERIODS else "", first=first, last=last))
        assert found.totals == expected, by
        parts = found.groups or found.periods
        assert sum((part.totals for part in parts), Totals()) == expected, by
        check_export(found, expected)
    days = reports.report(cast.scope, ask(by="day", first=first, last=last))
    for period in days.periods:
        assert period.totals == by_hand(row for row in rows if local(row, zone).date() == period.start)
    months = reports.report(cast.scope, ask(by="month", first=first, last=last))
    for period in months.periods:
        of_month = [row for row in rows if f"{local(row, zone):%Y-%m}" == period.label[:7]]
        assert period.totals == by_hand(of_month)
    for by in ("day", "model", "key"):
        check_api(cast, expected, by, first, last)
    check_analytics(cast, expected, first, last)


def check_analytics(cast, expected, first, last):
    """What `/analytics/stats` tells."""
    said = figures.stats(cast.scope, first, last)
    for part in ([said["total"]], said["by_model"], said["by_day"]):
        assert sum(line["requests"] for line in part) == expected.requests
        assert sum(line["failures"] for line in part) == expected.failures
        assert sum(line["total_tokens"] for line in part) == expected.tokens
        assert sum(money.to_nano(line["cost"] or "0") for line in part) == expected.cost_nano
        assert sum(line["requests_without_price"] for line in part) == expected.unpriced


def check_export(found, expected):
    """The file that a page offers, read as a spreadsheet would."""
    text = b"".join(export.report_download(RequestFactory().get("/"), found, "csv")).decode()
    rows = list(csv.DictReader(StringIO(text, newline="")))
    assert sum(int(row["requests"]) for row in rows) == expected.requests
    assert sum(int(row["prompt_tokens"]) for row in rows) == expected.prompt_tokens
    assert sum(int(row["completion_tokens"]) for row in rows) == expected.completion_tokens
    assert sum(money.to_nano(row["cost"] or "0") for row in rows) == expected.cost_nano
    in_json = json.loads(b"".join(export.report_download(RequestFactory().get("/"), found, "json")))
    assert sum(row["requests"] for row in in_json) == expected.requests


def check_api(cast, expected, by, first, last):
    answer = cast.program.get(f"{API}usage?since={first}&until={last}&by={by}")
    assert answer.status_code == 200, answer.content
    said = answer.json()
    for part in ([said["total"]], said["lines"]):
        assert sum(line["requests"] for line in part) == expected.requests
        assert sum(line["completion_tokens"] for line in part) == expected.completion_tokens
        assert sum(money.to_nano(line["cost"] or "0") for line in part) == expected.cost_nano
        assert all((line["cost"] is None) == (0 < line["requests"] == line["unpriced"]) for line in part)


def check_hours(zone, cast, rows, day):
    """A day has as many hours as its clocks show, and each has its own calls."""
    found = reports.report(cast.scope, ask(by="hour", first=day, last=day))
    assert found.totals == by_hand(rows) == reports.totals(cast.scope.rows, day, day)
    in_hours = Counter((local(row, zone).hour, local(row, zone).utcoffset()) for row in rows)
    assert {
        (period.start.hour, period.start.utcoffset()): period.totals.requests
        for period in found.periods
        if period.totals.requests
    } == in_hours
    assert len({period.label for period in found.periods}) == len(found.periods)
    assert [period.start for period in found.periods] == sorted(period.start for period in found.periods)


def check_headers(zone, cast, calls, day):
    """What `x-ratelimit-*` starts from: the budgets' windows that run at noon of a day."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=zone).timestamp()
    for window in ("hour", "day", "month"):
        start, end = calendar_window(window, zone.key, int(noon // 60))
        expected = by_hand(row for row in calls if start <= value(row, "started_at") < end)
        amounts = {"requests": expected.requests, "tokens": expected.tokens, "cost": expected.cost_nano}
        for metric, amount in amounts.items():
            limit = ("tenant", cast.tenant.pk, None, None, rule(metric, window, id=1))
            used = recorded.read([limit], zone.key, noon, "default")
            assert sum(used.values()) == amount, (window, metric)


@pytest.mark.parametrize("zone", ZONES[2:3], indirect=True)
def test_all_tenants_together_are_the_sum_of_each(zone, cast, calls, tmp_path):
    """Their days have a roll-up of their own: whatever is asked, it answers as the one of each tenant's does."""
    Store(zone.key, tmp_path / "quarantine.jsonl").add(calls)
    together, each = Scope("all", "all", Q()), Scope("each", "each", Q(tenant__gt=0))
    for by in reports.BY:
        for first, last in (SPANS[1], (CLOSELY[3], CLOSELY[3])):
            for per, top in (("day", 1), ("month", 2), ("month", 8)):
                if by == "hour" and first != last:
                    continue
                question = ask(by=by, first=first, last=last, per=per, top=top)
                one, other = reports.report(together, question), reports.report(each, question)
                assert (one.totals, one.previous, one.periods) == (other.totals, other.previous, other.periods)
                assert (one.groups, one.others) == (other.groups, other.others)
