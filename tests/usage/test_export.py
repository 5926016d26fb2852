import csv
import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from tenants.spreadsheets import cell
from tests.factories import NOON, make_key, make_usage
from usage import export

pytestmark = pytest.mark.django_db


def exported(*options):
    out = StringIO(newline="")
    call_command("export_usage", *options, stdout=out)
    return out.getvalue()


def as_rows(text):
    return list(csv.DictReader(StringIO(text, newline="")))


def test_records_come_by_time_whatever_the_page(monkeypatch):
    monkeypatch.setattr(export, "PAGE", 3)
    key = make_key().row
    for number in range(10):
        # Several at one moment: the id decides, and none is left out or doubled at the border of a page.
        make_usage(key, at=NOON + timedelta(hours=number // 4), prompt_tokens=number)
    for found in (as_rows(exported()), json.loads(exported("--format", "json"))):
        assert sorted(int(row["prompt_tokens"]) for row in found) == list(range(10))
        assert [row["started_at"] for row in found] == sorted(row["started_at"] for row in found)


def test_csv_and_json_agree():
    make_usage(model_asked='say "hi",\nthen', cost_nano=1, user_agent="ünï")
    make_usage(cost_nano=None)
    for in_csv, in_json in zip(as_rows(exported()), json.loads(exported("--format", "json")), strict=True):
        assert in_csv == {name: "" if value is None else str(value) for name, value in in_json.items()}


def test_u8_money_keeps_its_digits_and_no_price_is_not_zero():
    make_usage(cost_nano=12_345_678_901_234_567)
    make_usage(cost_nano=None, at=NOON + timedelta(hours=1))
    make_usage(cost_nano=0, at=NOON + timedelta(hours=2))
    assert [row["cost"] for row in json.loads(exported("--format", "json"))] == ["12345678.901234567", None, "0"]


def test_only_what_was_asked_for():
    mine, theirs = make_key().row, make_key().row
    for key in (mine, theirs):
        for day in range(3):
            make_usage(key, at=NOON + timedelta(days=day))
    found = as_rows(exported("--tenant", mine.tenant.name, "--from", "2026-03-11", "--to", "2026-03-12T12:00:00+00:00"))
    assert [(row["tenant"], row["started_at"]) for row in found] == [(mine.tenant.name, "2026-03-11T12:00:00+00:00")]


def test_nothing_is_an_empty_export():
    assert as_rows(exported()) == []
    assert json.loads(exported("--format", "json")) == []


def test_an_archived_tenant_can_still_be_exported():
    key = make_key().row
    make_usage(key)
    key.tenant.archive()
    assert len(as_rows(exported("--tenant", key.tenant.name))) == 1


def test_an_unknown_tenant_is_refused():
    with pytest.raises(CommandError, match="no tenant"):
        exported("--tenant", "nobody")


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1"])
def test_t10_cells_are_no_formulas(formula):
    assert cell(formula) == f"'{formula}"
    make_usage(end_user=formula)
    assert as_rows(exported())[0]["end_user"] == f"'{formula}"


def test_t10_numbers_and_harmless_text_stay():
    assert [cell(value) for value in (-1, 1.5, None, "a=b", "")] == [-1, 1.5, None, "a=b", ""]
