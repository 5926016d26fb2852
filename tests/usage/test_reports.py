"""What people see of their usage, and how numbers are written and drawn."""

from datetime import date, timedelta

import pytest
from django.db.models import Q
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenants.models import Membership, Role
from tests.factories import make_key, make_tenant, make_user
from usage import charts, reports
from usage.models import DailyUsage
from usage.reports import Line, Totals
from usage.templatetags import figures

DAY = date(2026, 3, 10)


def add(key, day=DAY, model="llama3.2:latest", **sums):
    DailyUsage.objects.create(
        day=day, tenant=key.tenant, user=key.user, api_key=key, model=model, **{"requests": 1, **sums}
    )


@pytest.mark.django_db
def test_days_without_a_call_are_there_with_zeros():
    key = make_key().row
    add(key, prompt_tokens=5)
    lines = reports.by_day(Q(tenant=key.tenant), DAY - timedelta(days=2), DAY + timedelta(days=1))
    assert [(line.label.day, line.totals.requests, line.totals.tokens) for line in lines] == [
        (8, 0, 0), (9, 0, 0), (10, 1, 5), (11, 0, 0),
    ]  # fmt: skip


@pytest.mark.django_db
def test_sums_are_of_the_days_and_the_rows_that_were_asked_for():
    mine, other = make_key().row, make_key().row
    add(mine, requests=2, failures=1, estimated=1, unpriced=1, prompt_tokens=3, completion_tokens=4, cost_nano=7)
    add(mine, model="qwen3:8b", requests=5, cost_nano=10)
    add(mine, day=DAY - timedelta(days=1), requests=100)
    add(other, requests=1000)
    rows = Q(tenant=mine.tenant)
    assert reports.totals(rows, DAY, DAY) == Totals(7, 1, 1, 1, 3, 4, 17)
    assert reports.totals(rows, DAY + timedelta(days=1), DAY + timedelta(days=1)) == Totals()


@pytest.mark.django_db
def test_models_and_keys_are_listed_with_the_most_tokens_first():
    tenant = make_tenant()
    one, two = make_key(tenant, "one").row, make_key(tenant, "two").row
    add(one, prompt_tokens=1)
    add(two, model="big:70b", prompt_tokens=100)
    add(two, model="big:7b", prompt_tokens=10)
    rows = Q(tenant=tenant)
    assert [line.label for line in reports.by_model(rows, DAY, DAY)] == ["big:70b", "big:7b", "llama3.2:latest"]
    assert [(line.label, line.prefix) for line in reports.by_key(rows, DAY, DAY)] == [
        ("two", two.prefix), ("one", one.prefix),
    ]  # fmt: skip
    DailyUsage.objects.filter(api_key=one.pk).update(api_key=999_999)
    assert reports.by_key(rows, DAY, DAY)[-1].label == "a key that is gone"


@pytest.mark.django_db
def test_a_page_of_usage_asks_the_same_number_of_questions_however_much_there_is(client, django_assert_max_num_queries):
    user = make_user("somebody", tenant=make_tenant("acme"), role=Role.OWNER)
    client.force_login(user)
    for number in range(40):
        add(make_key(user.tenants.get()).row, model=f"model-{number}", day=reports.today())
    with django_assert_max_num_queries(15):
        assert client.get("/usage/").status_code == 200
    with django_assert_max_num_queries(18):
        assert client.get("/").status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("roles", "slugs"),
    [
        ([], []),
        ([Role.MEMBER], ["mine"]),
        ([Role.VIEWER], ["tenant"]),
        ([Role.OWNER], ["tenant", "mine"]),
        ([Role.VIEWER, Role.MEMBER], ["tenant", "mine"]),
        ([Role.OWNER, Role.VIEWER], ["tenant", "tenant", "mine"]),
    ],
)
def test_t2_whose_usage_may_be_seen(roles, slugs):
    user = make_user("somebody")
    for role in roles:
        Membership.objects.create(user=user, tenant=make_tenant(), role=role)
    archived = make_tenant("gone")
    Membership.objects.create(user=user, tenant=archived, role=Role.OWNER)
    archived.archive()
    assert [scope.slug.partition("-")[0] for scope in reports.scopes(user)] == slugs


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (12_345, "12.3 k"), (1_500_000, "1.5 M"), (2_340_000_000, "2.34 G"),
     (100_000, "100 k")],
)  # fmt: skip
def test_big_numbers_are_written_with_three_digits(number, text):
    assert figures.compact(number) == text


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.00 EUR"), (1_234_567_890_000, "1,234.57 EUR"), (150_000_000, "0.15 EUR"), (12_340_000, "0.0123 EUR"),
     (12_340, "0.000012 EUR"), (-150_000_000, "-0.15 EUR")],
)  # fmt: skip
def test_small_amounts_are_not_written_as_nothing(nano, text):
    assert figures.money(nano) == text


def test_estimates_are_marked():
    assert figures.approximately(Totals(requests=2, estimated=1)) == "≈ "
    assert figures.approximately(Totals(requests=2)) == ""


tokens = st.integers(min_value=0, max_value=10**15)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(tokens, tokens), max_size=95))
def test_every_bar_is_within_the_chart_and_as_high_as_its_share(days):
    lines = [
        Line(DAY + timedelta(days=number), Totals(prompt_tokens=prompt, completion_tokens=answer))
        for number, (prompt, answer) in enumerate(days)
    ]
    chart = charts.tokens_per_day(lines)
    assert len(chart.bars) == len(days)
    top = chart.levels[-1].value
    assert top >= max((prompt + answer for prompt, answer in days), default=0)
    room = chart.baseline - chart.levels[-1].at
    for bar, (prompt, answer) in zip(chart.bars, days, strict=True):
        assert chart.left <= bar.x <= bar.x + bar.width <= chart.width + 0.1
        assert bar.upper_y >= chart.levels[-1].at - 0.1
        assert abs(bar.lower_height - room * prompt / top) < 0.1
        assert abs(bar.lower_y - bar.upper_height - bar.upper_y) < 0.1
        assert abs(bar.upper_height - room * answer / top) < 0.1
    assert chart.levels[1].value * 2 == top
