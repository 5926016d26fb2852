"""The pages of usage and requests: what they say, where they lead, and that files hold the same."""

import csv
import json
import re
from datetime import timedelta
from html import unescape

import pytest
from django.test import Client
from django.urls import reverse

from tenants.models import Role
from tests.factories import make_admin, make_key, make_tenant, make_usage, make_user
from usage import reports
from usage.models import Price, Retention, UsageRecord
from usage.rollups import day_begins, rebuild, reporting_zone

pytestmark = pytest.mark.django_db


def at_noon(days_ago=0):
    return day_begins(reports.today() - timedelta(days=days_ago), reporting_zone()) + timedelta(hours=12)


@pytest.fixture
def owner():
    return make_user("olga", tenant=make_tenant("acme"), role=Role.OWNER)


@pytest.fixture
def client(owner):
    client = Client()
    client.force_login(owner)
    return client


@pytest.fixture
def key(owner):
    return make_key(owner.tenants.get(), "app", user=owner).row


def text_of(html):
    """What a person reads, with single blanks."""
    html = re.sub(r"<(svg|head|datalist)\b.*?</\1>", "", html, flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html))).replace("\N{NO-BREAK SPACE}", " ")


def page_of(client, name, **query):
    answer = client.get(reverse(name), query)
    assert answer.status_code == 200
    return answer.content.decode()


def table_of(html, label):
    """The rows of the table in the region of this name, as texts."""
    region = html.split(f'aria-label="{label}"', 1)[1].split("</table>")[0]
    return [
        [text_of(cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)]
        for row in re.findall(r"<tr.*?</tr>", region, re.S)
    ]


def links_of(html):
    found = re.findall(r'<a\b[^>]*href="([^"]+)"[^>]*>(.*?)</a>', html, re.S)
    return {text_of(text).strip(): unescape(link) for link, text in found}


def rows_of(answer, form):
    text = b"".join(answer.streaming_content).decode()
    return json.loads(text) if form == "json" else list(csv.DictReader(text.splitlines()))


# Sums.


@pytest.fixture
def some_usage(owner, key):
    tenant = owner.tenants.get()
    service = make_key(tenant, "service").row
    for days, model, of, more in (
        (0, "big:70b", key, {"prompt_tokens": 1000, "completion_tokens": 234, "estimated": True}),
        (0, "small:1b", service, {"cost_nano": None, "prompt_tokens": 1, "completion_tokens": 2}),
        (1, "big:70b", service, {"outcome": "failed", "status": 502, "cost_nano": 1_000_000_001}),
        (35, "big:70b", key, {"prompt_tokens": 600, "completion_tokens": 17}),
    ):
        make_usage(of, at=at_noon(days), model=model, **more)
    rebuild()


def test_the_table_of_a_group_tells_each_with_its_change_and_marks_estimates(client, some_usage):
    lines = table_of(page_of(client, "usage", by="model", measure="tokens"), "Sums")
    assert lines[0][:2] == ["Model", "Requests"]
    assert lines[0][-2:] == ["Tokens before", "Change"]
    big, small, total = lines[1:]
    assert big[:7] == ["big:70b", "2", "1", "50.0 %", "≈ 1,010", "≈ 254", "1"]
    assert big[-2:] == ["617", "+105 %"]
    assert small[0] == "small:1b"
    assert "no price" in small
    assert small[-2:] == ["0", "new"]
    assert total[0] == "All"
    assert "no price + ≈ 1.0000" in total


def test_periods_are_shown_with_the_newest_first_and_lead_to_their_hours_and_requests(client, some_usage):
    html = page_of(client, "usage", range="7d", by="day")
    lines = table_of(html, "Sums")
    today = str(reports.today())
    assert [line[0] for line in lines[1:3]] == [today, str(reports.today() - timedelta(days=1))]
    assert len(lines) == 1 + 7 + 1
    hours = links_of(html)[today]
    assert f"first={today}&last={today}" in hours
    assert "by=hour" in hours
    assert "12:00" in text_of(client.get(hours).content.decode())
    requests = client.get(
        re.search(rf'href="([^"]+)" aria-label="Requests of {today}: ', html)[1].replace("&amp;", "&")
    )
    assert len(table_of(requests.content.decode(), "Requests")) == 1 + 2


@pytest.mark.parametrize("by", ["hour", "day", "month", "model", "key", "user", "backend", "end_user"])
@pytest.mark.parametrize("form", ["csv", "json"])
def test_files_hold_what_the_page_shows(client, some_usage, by, form):
    """The same lines; the page's order by time is the other way round."""
    html = page_of(client, "usage", by=by, range="7d", measure="cost")
    link = links_of(html)[form.upper()]
    answer = client.get(link)
    assert answer["Content-Disposition"].startswith("attachment")
    found = rows_of(answer, form)
    shown = [line for line in table_of(html, "Sums")[1:] if line[0] != "All"]
    if by in ("hour", "day", "month"):
        shown.reverse()
    assert [line[0].split("  ")[0].removesuffix(f" {row.get('prefix', '')}") for line, row in
            zip(shown, found, strict=True)] == [row[by] for row in found]  # fmt: skip
    numbers = [(line[1], line[4].removeprefix("≈ ")) for line in shown]
    assert numbers == [(f"{int(row['requests']):,}", f"{int(row['prompt_tokens']):,}") for row in found]
    if by == "model":
        assert found[0]["cost"] == "1.000005001"
        assert "previous_cost" in found[0]


@pytest.mark.parametrize("by", ["model", "key", "user", "backend"])
def test_a_group_leads_to_itself_alone_and_to_its_requests(client, some_usage, by):
    html = page_of(client, "usage", by=by, range="7d")
    first = table_of(html, "Sums")[1]
    name = first[0].rsplit(" ", 1)[0] if by == "key" else first[0]
    narrowed = client.get(links_of(html)[name]).content.decode()
    assert table_of(narrowed, "Sums")[-1][1] == first[1]
    link = re.search(rf'href="([^"]+)" aria-label="Requests of {re.escape(name)}: ', html)[1]
    requests = client.get(unescape(link)).content.decode()
    assert len(table_of(requests, "Requests")) == 1 + int(first[1])


def test_the_address_holds_the_state_and_every_link_of_the_page_works(client, some_usage):
    html = page_of(client, "usage", by="key", measure="requests", range="90d", model="big:70b", top="1")
    for text, link in links_of(html).items():
        if link.startswith("/usage/?"):
            assert client.get(link).status_code == 200, text
    month = links_of(html)["This month"]
    assert {"by=key", "measure=requests", "model=big%3A70b", "top=1"} <= set(month.split("?")[1].split("&"))
    assert 'value="big:70b"' in html
    assert "model=" not in links_of(html)["Without filters"]


def test_an_empty_page_says_what_to_do(client, key, some_usage):
    nothing = page_of(client, "usage", model="none:1b")
    assert "Take the filters away" in nothing
    UsageRecord.objects.all().delete()
    rebuild()
    assert "make the first call" in page_of(client, "usage")


@pytest.mark.parametrize("measure", reports.MEASURES)
def test_a_chart_is_drawn_of_every_measure(client, some_usage, measure):
    html = page_of(client, "usage", by="model", measure=measure, range="7d")
    chart = re.search(r'<svg class="chart".*?</svg>', html, re.S)[0]
    assert chart.count("<path") == 2
    assert chart.count('class="over"') == 7
    assert "nan" not in chart
    assert "The same as a table" in html


def test_the_zone_is_named_and_a_mistake_is_told_with_what_was_typed(client, some_usage):
    assert f"are those of {reporting_zone().key}" in text_of(page_of(client, "usage"))
    answer = client.get(reverse("usage"), {"first": "2026-02-01", "last": "2025-01-01"})
    assert answer.status_code == 400
    assert "the first before the last" in text_of(answer.content.decode())
    assert 'value="2025-01-01"' in answer.content.decode()


def test_administrators_see_all_tenants_and_may_group_by_them(some_usage):
    make_usage(make_key(make_tenant("umbrella")).row, at=at_noon(), prompt_tokens=5_000)
    rebuild()
    client = Client()
    client.force_login(make_admin("root"))
    lines = table_of(page_of(client, "usage", by="tenant"), "Sums")
    assert [line[0] for line in lines[1:]] == ["umbrella", "acme", "All"]
    assert "umbrella" in page_of(client, "requests")
    assert "All tenants" in page_of(client, "home")


def test_t3_sums_of_all_tenants_do_not_bring_along_single_requests():
    from django.contrib.auth.models import Permission

    record = make_usage()
    clerk = make_user("clerk", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(codename="view_dailyusage"))
    client = Client()
    client.force_login(clerk)
    assert client.get(reverse("usage"), {"of": "all"}).status_code == 200
    for name, query in (("requests", {"of": "all"}), ("requests_csv", {"of": "all"}), ("requests_rows", {})):
        assert client.get(reverse(name), query).status_code == 404
    assert client.get(reverse("request", args=[record.pk])).status_code == 404
    assert "Last errors" not in page_of(client, "home")


# Requests.


def test_a_list_is_walked_to_its_end_and_back(client, key):
    made = [make_usage(key, at=at_noon() + timedelta(seconds=number)) for number in range(120)]
    html, seen, pages = page_of(client, "requests"), [], []
    while True:
        seen += re.findall(r'data-id="([^"]+)"', html)
        pages.append(html)
        if "Older" not in links_of(html):
            break
        html = client.get(links_of(html)["Older"]).content.decode()
    assert seen == [str(record.pk) for record in reversed(made)]
    back = client.get(links_of(pages[2])["Newer"]).content.decode()
    assert re.findall(r'data-id="([^"]+)"', back) == seen[50:100]
    assert "The newest" in links_of(back)


@pytest.mark.parametrize("field", ["id", "client_id"])
def test_a_request_is_found_by_either_id(client, key, field):
    make_usage(key)
    wanted = make_usage(key, client_request_id="my-own-id")
    html = page_of(client, "requests", **{field: str(wanted.pk) if field == "id" else "my-own-id"})
    assert re.findall(r'data-id="([^"]+)"', html) == [str(wanted.pk)]
    empty = text_of(page_of(client, "requests", **{field: "another"})).split("nothing")[0]
    assert "No request fits these filters" in empty
    assert ("refused (401, 403, 429, …) has an id and no record" in empty) is (field == "id")


@pytest.mark.parametrize("form", ["csv", "json"])
def test_the_file_of_a_list_is_all_of_it_and_nothing_else(client, key, form):
    for number in range(70):
        make_usage(key, at=at_noon() + timedelta(seconds=number), model=["a:1b", "b:1b"][number % 2], cost_nano=None)
    html = page_of(client, "requests", model="a:1b")
    found = rows_of(client.get(links_of(html)[form.upper()]), form)
    assert len(found) == 35
    assert {row["model"] for row in found} == {"a:1b"}
    assert {row["cost"] for row in found} == ({""} if form == "csv" else {None})


@pytest.mark.usefixtures("one_window")
def test_files_are_not_taken_without_end(client, key, settings):
    answers = [client.get(reverse("requests_csv")).status_code for _ in range(21)]
    assert answers == [200] * 20 + [429]


def test_the_rows_that_are_followed_are_those_of_the_page(client, key):
    record = make_usage(key, prompt_tokens=4321, estimated=True, cost_nano=None)
    part = client.get(reverse("requests_rows")).content.decode()
    assert part.strip() in re.sub(r"(?s).*<tbody>|</tbody>.*", "", page_of(client, "requests"))
    assert str(record.pk) in part
    assert "≈ 4,321" in part
    assert "no price" in part


def test_an_old_request_that_is_gone_is_said_to_be_summed_up(client, key):
    Retention.objects.create(records_since=at_noon())
    assert "Single requests are kept since" in page_of(client, "requests", model="x")


def test_the_home_page_tells_speed_and_leads_to_the_last_errors(client, key):
    record = make_usage(key, at=at_noon(), outcome="failed", status=502, error="backend_error", first_token_us=420_000,
                        completion_tokens=90, decode_us=2_000_000)  # fmt: skip
    rebuild()
    html = page_of(client, "home")
    assert "45.0" in text_of(html)
    assert "420 ms" in text_of(html)
    assert reverse("request", args=[record.pk]) in html
    assert "backend_error" in html


def test_prices_of_0_are_not_no_price(client, key):
    make_usage(key, at=at_noon(), cost_nano=0)
    rebuild()
    assert "no price" not in table_of(page_of(client, "usage", range="today"), "Sums")[1]
    assert Price.objects.count() == 0


@pytest.mark.parametrize("page", ["usage", "requests"])
@pytest.mark.parametrize("field", ["tenant", "user", "key"])
@pytest.mark.parametrize("of", ["tenant", "mine"])
def test_t1_fields_to_choose_from_tell_no_names_of_others(client, owner, key, page, field, of):
    stranger = make_user("a-stranger", tenant=make_tenant("a-stranger"))
    foreign = make_key(stranger.tenants.get(), "a-stranger", user=stranger).row
    scope = "mine" if of == "mine" else f"tenant-{owner.tenants.get().pk}"
    for value in (str(foreign.tenant_id), str(stranger.pk), foreign.prefix, "x"):
        answer = client.get(reverse(page), {"of": scope, field: value})
        assert answer.status_code == (200 if field == "key" or value.isdigit() else 400)
        assert "a-stranger" not in answer.content.decode()


@pytest.mark.parametrize("page", ["usage", "usage_csv", "requests", "requests_rows", "requests_json"])
@pytest.mark.parametrize("field", ["tenant", "user"])
def test_t2_names_of_people_and_tenants_are_no_filters_and_are_not_said_again(client, page, field):
    answer = client.get(reverse(page), {field: "somebody-else"})
    assert answer.status_code == 400
    assert b"its number" in answer.content
    assert b"somebody-else" not in answer.content
