import csv
import gc
import json
import re
import tracemalloc
from datetime import timedelta
from io import StringIO
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models import Q
from django.test import RequestFactory

from tenants.spreadsheets import cell
from tests.factories import NOON, make_key, make_usage
from usage import export, retention
from usage.models import UsageRecord
from usage.reports import Question, Scope, report
from usage.request_lists import RequestFilters
from usage.rollups import rebuild

pytestmark = pytest.mark.django_db

GOLDEN = Path(__file__).parent / "golden"
EVERYTHING = Scope("all", "All tenants", Q())
GET = RequestFactory().get("/")


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


HOSTILE = (
    '=HYPERLINK("http://evil.example","click")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "+1\t-1",
    "-2+3",
    "\t=1",
    "\r\n=1",
    " \u00a0=1",
    "\x1b[2J\x1b]0;owned\x07 escape",
    "nul \x00 bell \x07 c1 \x9b",
    "\u202egnp.exe",
    '"quoted", and; separated',
    "line one\nline two",
    "\ufeff=bom",
    "＝１＋１ full width",
    "ünï ✓ 漢字",
)


def test_t10_hostile_texts_as_in_the_golden_file():
    """Whatever clients put into what is recorded: a spreadsheet runs none of it, a terminal obeys none."""
    key = make_key().row
    for number, text in enumerate(HOSTILE):
        make_usage(
            key,
            id=UUID(int=number),
            at=NOON + timedelta(seconds=number),
            tenant_name=text,
            user_name=text,
            end_user=text,
            key_name=text,
            client_request_id=text,
            model_asked=text,
            model=text,
            backend=text,
            user_agent=text,
            error=text,
            price_id=None,
        )
    written = "".join(export.as_csv(export.request_rows(EVERYTHING, RequestFilters())))
    golden = GOLDEN / "hostile.csv"
    assert written.encode() == golden.read_bytes()
    in_json = json.loads("".join(export.as_json(export.request_rows(EVERYTHING, RequestFilters()))))
    assert [row["end_user"] for row in in_json] == list(reversed(HOSTILE))


def test_t10_a_report_is_as_harmless(settings):
    key = make_key(name="=cmd()").row
    for number, text in enumerate(HOSTILE):
        make_usage(key, model=f"{text[:20]} {number}")
    rebuild()
    for by in ("model", "key"):
        asked = Question.read({"by": by, "first": "2026-03-10", "last": "2026-03-10", "top": "50"}, NOON.date())
        text = b"".join(export.report_download(GET, report(EVERYTHING, asked), "csv")).decode()
        rows = as_rows(text)
        assert sum(int(row["requests"]) for row in rows) == len(HOSTILE)
        for row in rows:
            assert not row[by].lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
            assert not set(row[by]) & set("\x00\x07\x1b\x9b\u202e")


def test_a_download_says_what_it_is():
    make_usage()
    rebuild()
    asked = Question.read({"by": "model", "first": "2026-03-01", "last": "2026-03-31"}, NOON.date())
    answers = {
        'attachment; filename="usage-by-model-2026-03-01-2026-03-31.csv"':
            export.report_download(GET, report(EVERYTHING, asked), "csv"),
        'attachment; filename="usage-by-model-2026-03-01-2026-03-31.json"':
            export.report_download(GET, report(EVERYTHING, asked), "json"),
    }  # fmt: skip
    for name, answer in answers.items():
        assert answer["content-disposition"] == name
        assert answer["cache-control"] == "no-store"
        assert answer.streaming
    requests = export.requests_download(GET, EVERYTHING, RequestFilters(), "csv")
    assert re.fullmatch(r'attachment; filename="requests-[0-9-]{17}\.csv"', requests["content-disposition"])
    assert requests["content-type"] == "text/csv; charset=utf-8"
    assert len(as_rows(b"".join(requests).decode())) == 1


# Bytes. Two thousand records would take several times as much.
ROOM = 500_000


def peak(work):
    """Bytes of Python objects at the most while all is taken from an iterator, a little at a time."""
    tracemalloc.start()
    try:
        for number, _ in enumerate(work):
            if number % 500 == 499:
                # django_prometheus leaves a class behind for each cursor, which only the collector finds.
                gc.collect()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def make_many(key, count):
    """Of one day in the past."""
    one = make_usage(key)
    values = {field.attname: getattr(one, field.attname) for field in UsageRecord._meta.concrete_fields}
    UsageRecord.objects.bulk_create(
        (UsageRecord(**{**values, "id": uuid4(), "started_at": NOON + timedelta(milliseconds=number)})
         for number in range(count)),
        batch_size=500,
    )  # fmt: skip


def test_u12_memory_does_not_grow_with_what_is_exported(monkeypatch):
    monkeypatch.setattr(export, "PAGE", 100)
    key = make_key().row
    make_many(key, 600)
    rare = RequestFilters.read({"status": "404"})
    downloads = (
        lambda: export.requests_download(GET, EVERYTHING, RequestFilters(), "csv"),
        lambda: export.requests_download(GET, EVERYTHING, RequestFilters(), "json"),
        lambda: export.requests_download(GET, EVERYTHING, rare, "csv"),
        lambda: export.as_csv(export.rows(UsageRecord.objects.all())),
    )
    for download in downloads:
        peak(download())  # what is made once and kept
    few = [peak(download()) for download in downloads]
    make_many(key, 2000)
    for less, more in zip(few, [peak(download()) for download in downloads], strict=True):
        assert more < less + ROOM


def test_u12_memory_does_not_grow_with_what_is_pruned(monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 100)
    key = make_key().row
    make_many(key, 300)
    less = peak(retention.prune(NOON + timedelta(days=1)))
    make_many(key, 3000)
    assert peak(retention.prune(NOON + timedelta(days=1))) < less + ROOM
    assert not UsageRecord.objects.exists()
