"""Records priced anew: the right ones, to the right price, and their sums with them, on both databases."""

import json
from datetime import date, timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models import Sum

from proxy.rules_watch import price_rows
from tenants.models import AuditEntry
from tests.factories import NOON, make_admin, make_key, make_price, make_usage, make_user
from usage import rerating
from usage.models import DailyTotal, DailyUsage, EndUserUsage, Rerating, UsageBucket, UsageRecord
from usage.rerating import preview, rerate
from usage.rollups import rebuild, reconcile

DAY = NOON.date()


def run(*options):
    out, err = StringIO(), StringIO()
    call_command("rerate", "--from", str(DAY), "--to", str(DAY + timedelta(days=1)), *options, stdout=out, stderr=err)
    return out.getvalue()


@pytest.fixture
def key(database):
    return make_key(user=make_user()).row


@pytest.fixture
def records(key):
    """Of a model whose price was wrong, of one that had none, of one that has none, and of the days beside."""
    right = make_price(input_nano=10**9, output_nano=3 * 10**9)
    cheap = make_price("kept:latest", input_nano=10**6 * 7 // 10)
    kept = make_usage(key, at=NOON + timedelta(minutes=1), model="kept:latest", cost_nano=7, price=cheap)
    made = {
        "wrong": make_usage(key, model="llama3.2:latest", cost_nano=1, end_user="label"),
        "unpriced": make_usage(key, at=NOON + timedelta(hours=13), cost_nano=None, model="llama3.2:latest"),
        "right": make_usage(key, cost_nano=70_000, price=right),
        "none": make_usage(key, at=NOON + timedelta(hours=3), model="none:7b", cost_nano=5),
        "no model": make_usage(key, model="", model_asked="", cost_nano=None),
        "before": make_usage(key, at=NOON - timedelta(days=1), cost_nano=1),
        "after": make_usage(key, at=NOON + timedelta(days=2), cost_nano=1),
        "kept": kept,
    }
    rebuild()
    return made


def costs(records):
    fresh = {row.pk: row for row in UsageRecord.objects.all()}
    return {name: fresh[row.pk].cost_nano for name, row in records.items()}


# 10 prompt and 20 completion tokens at 1 and 3 units a million
RIGHT = 10 * 1_000 + 20 * 3_000


def test_u8_records_get_the_price_of_their_moment_and_their_sums_follow(records):
    run()
    assert costs(records) == {
        "wrong": RIGHT, "unpriced": RIGHT, "right": RIGHT, "none": None, "no model": None, "kept": 7,
        "before": 1, "after": 1,
    }  # fmt: skip
    assert reconcile() == []
    fresh = UsageRecord.objects.get(pk=records["none"].pk)
    assert fresh.price_id is None
    assert UsageRecord.objects.get(pk=records["wrong"].pk).price_id == records["right"].price_id
    for table in (UsageBucket, DailyUsage):
        sums = table.objects.aggregate(cost=Sum("cost_nano"), unpriced=Sum("unpriced"))
        assert sums == {"cost": 3 * RIGHT + 7 + 2, "unpriced": 2}
    assert DailyTotal.objects.filter(dimension="").aggregate(sum=Sum("cost_nano"))["sum"] == 3 * RIGHT + 9
    assert EndUserUsage.objects.get().cost_nano == RIGHT


def test_a_dry_run_says_the_same_and_changes_nothing(records):
    before = costs(records)
    dry = json.loads(run("--dry-run", "--json"))
    assert costs(records) == before
    assert not Rerating.objects.exists()
    done = json.loads(run("--json"))
    for said in (dry, done):
        assert (said["records"], said["repriced"]) == (6, 3)
        assert (said["cost_before"], said["cost_after"]) == ("0.000070013", "0.000210007")
        assert (said["unpriced_before"], said["unpriced_after"]) == (2, 2)
        assert said["tenants"] == {records["right"].tenant_name: {name: said[name] for name in (
            "records", "repriced", "cost_before", "cost_after", "unpriced_before", "unpriced_after",
        )}}  # fmt: skip
    assert (dry["changed"], done["changed"]) == (False, True)
    assert json.loads(run("--json"))["changed"] is False


def test_only_the_model_that_was_asked_for(records):
    run("--model", "none:7b")
    assert costs(records)["wrong"] == 1
    assert costs(records)["none"] is None
    assert reconcile() == []


def test_it_is_audited_with_what_came_of_it(records):
    run()
    (row,) = Rerating.objects.all()
    assert (row.records, row.changed, row.before_nano, row.after_nano) == (6, 3, RIGHT + 13, 3 * RIGHT + 7)
    made, ended = AuditEntry.objects.filter(content_type__model="rerating").order_by("pk")
    assert made.changes["first"] == [None, str(DAY)]
    assert ended.changes["changed"] == [0, 3]
    assert ended.changes["after_nano"] == ["0", "0.000210007"]


def test_batches_of_any_size_come_to_the_same(records, monkeypatch):
    monkeypatch.setattr(rerating, "BATCH", 1)
    outcomes = [outcome.total.records for outcome in rerate(Rerating(first=DAY, last=DAY), price_rows())]
    assert outcomes[-1] == 5
    assert preview(Rerating(first=DAY, last=DAY), price_rows()).total.changed == 0
    assert reconcile() == []


def test_what_is_interrupted_leaves_sums_that_are_right_and_is_run_again(records, monkeypatch):
    monkeypatch.setattr(rerating, "BATCH", 2)
    steps = rerate(Rerating(first=DAY, last=DAY), price_rows())
    next(steps)
    steps.close()
    assert reconcile() == []
    assert Rerating.objects.get().finished_at is None
    run()
    assert costs(records)["wrong"] == RIGHT
    assert reconcile() == []


def test_u8_a_price_of_a_backend_and_of_another_time_is_chosen_as_the_gateway_does(key):
    make_price(output_nano=10**9)
    make_price(output_nano=2 * 10**9, valid_from=NOON)
    make_price(output_nano=3 * 10**9, backend="gpu2", kwh_nano=3_600_000, watts=1000)
    # As people write it: the gateway reads names of models without a tag as :latest.
    make_price("Mistral", output_nano=4 * 10**9)
    found = [
        make_usage(key, at=NOON - timedelta(minutes=1), cost_nano=None),
        make_usage(key, at=NOON, cost_nano=None),
        make_usage(key, at=NOON, backend="gpu2", load_us=500_000, prefill_us=500_000, cost_nano=None),
        make_usage(key, at=NOON, model="mistral:latest", cost_nano=None),
    ]
    rebuild()
    run()
    stored = [UsageRecord.objects.get(pk=row.pk).cost_nano for row in found]
    # Two seconds of 1,000 W are 2,000 of the 3,600,000 watt-seconds of a kWh.
    assert stored == [20_000, 40_000, 60_000 + 2_000, 80_000]
    assert reconcile() == []


@pytest.mark.django_db
def test_answers_from_the_cache_that_cost_nothing_go_on_costing_nothing(key):
    make_price(input_nano=10**9, output_nano=3 * 10**9)
    made = {
        "free": make_usage(key, outcome="cached", cost_nano=0),
        "free, unpriced": make_usage(key, outcome="coalesced", cost_nano=None),
        "charged": make_usage(key, outcome="cached", cost_nano=1),
    }
    rebuild()
    run()
    assert costs(made) == {"free": 0, "free, unpriced": 0, "charged": RIGHT}


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--from", "2026-03-11", "--to", "2026-03-10"], 2),
        (["--from", "0001-01-01", "--to", "2026-03-10"], 1),
        (["--from", "yesterday", "--to", "2026-03-10"], 1),
    ],
)
def test_what_cannot_be_done_is_refused(options, status):
    with pytest.raises(CommandError) as refused:
        call_command("rerate", *options)
    assert refused.value.returncode == status


# The page in the admin.

PAGE = "/admin/usage/rerating/add/"
ASKED = {"first": str(DAY), "last": str(DAY), "model": ""}


@pytest.mark.django_db
def test_the_page_shows_first_and_does_it_after_a_yes(client):
    key = make_key().row
    make_price(output_nano=10**9)
    make_usage(key, cost_nano=None)
    rebuild()
    client.force_login(make_admin())
    shown = client.post(PAGE, ASKED).content.decode()
    assert key.tenant.name in shown
    assert "Price 1 records anew" in shown
    assert "1 → 0" in shown
    assert UsageRecord.objects.get().cost_nano is None
    assert client.post(PAGE, {**ASKED, "confirmed": "yes"}).status_code == 302
    assert UsageRecord.objects.get().cost_nano == 20_000
    assert AuditEntry.objects.filter(content_type__model="rerating").latest("pk").via == "admin"
    assert "there is nothing to do" in client.post(PAGE, ASKED).content.decode()
    assert "There are no records" in client.post(PAGE, {**ASKED, "model": "other"}).content.decode()


@pytest.mark.django_db
def test_the_page_leaves_what_takes_long_to_the_command(client, monkeypatch):
    monkeypatch.setattr("proxy.admin.reratings.MOST_RECORDS", 1)
    key = make_key().row
    make_usage(key, cost_nano=5)
    make_usage(key, cost_nano=5)
    rebuild()
    client.force_login(make_admin())
    answer = client.post(PAGE, {**ASKED, "confirmed": "yes"}).content.decode()
    assert f"manage.py rerate --from {DAY} --to {DAY} --dry-run" in answer
    assert not Rerating.objects.exists()


@pytest.mark.django_db
def test_days_without_records_cost_no_questions(client, django_assert_max_num_queries):
    make_usage(make_key().row, cost_nano=5)
    rebuild()
    client.force_login(make_admin())
    with django_assert_max_num_queries(40):
        page = client.post(PAGE, {**ASKED, "first": "1900-01-01", "last": "9999-12-31"}).content.decode()
    assert "Price 1 records anew" in page
    assert "errorlist" in client.post(PAGE, {**ASKED, "first": "0001-01-01"}).content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("fields", [{"first": ""}, {"first": str(date(2027, 1, 1))}, {"last": "soon"}])
def test_the_page_says_what_is_wrong(client, fields):
    client.force_login(make_admin())
    answer = client.post(PAGE, {**ASKED, **fields, "confirmed": "yes"})
    assert "errorlist" in answer.content.decode()
    assert not Rerating.objects.exists()


@pytest.mark.django_db
def test_t3_the_page_is_for_whom_may_add_reratings(client):
    client.force_login(make_user("staff", is_staff=True))
    assert client.get(PAGE).status_code == 403
    assert client.post(PAGE, {**ASKED, "confirmed": "yes"}).status_code == 403
