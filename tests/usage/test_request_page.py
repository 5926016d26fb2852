"""The page of one request: its cost, recomputed by hand; where its time went; how it ended; who may open it."""

import json
import random
import re
from decimal import Decimal
from fractions import Fraction

import pytest
from django.test import Client
from django.urls import reverse

from tests.factories import make_admin, make_key, make_limit, make_price, make_usage, make_user
from tests.usage.test_usage_pages import table_of, text_of
from usage.costs import PriceRow, cost_nano
from usage.models import Outcome, UsageRecord
from usage.waterfall import WIDTH, waterfall

pytestmark = pytest.mark.django_db


def open_as(user, record):
    client = Client()
    client.force_login(user)
    return client.get(reverse("request", args=[record.pk]))


@pytest.fixture
def key(acme, alice):
    return make_key(acme, "app", user=alice).row


def rated(key, price, **fields):
    row = PriceRow(price.pk, price.model, price.valid_from, "", price.input_nano, price.output_nano,
                   price.gpu_second_nano, price.kwh_nano, price.watts)  # fmt: skip
    gpu_us = fields.get("load_us", 0) + fields.get("prefill_us", 0) + fields.get("decode_us", 0)
    cost = cost_nano(row, fields.get("prompt_tokens", 10), fields.get("completion_tokens", 20), gpu_us)
    return make_usage(key, price=price, cost_nano=cost, **fields)


def recomputed(html):
    """As a person with pencil and paper does: from nothing but the text of the page."""
    seconds = None
    if 'id="gpu-time"' in html:
        line = text_of(re.search(r'<p id="gpu-time">(.*?)</p>', html)[1])
        *parts, seconds = [Fraction(number) for number in re.findall(r"([\d.]+) (?:s |GPU)", line)]
        assert sum(parts) == seconds
    nano = Fraction(0)
    for name, formula, *_ in table_of(html, "What it cost")[1:]:
        numbers = [Fraction(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", formula)]
        match name:
            case "Prompt" | "Answer":
                tokens, amount, per = numbers
                nano += tokens * amount / per * 10**9
            case "GPU time":
                assert numbers[0] == seconds
                nano += numbers[0] * numbers[1] * 10**9
            case "Energy":
                assert numbers[0] == seconds
                gpu_seconds, watts, per_kwh, amount = numbers
                nano += gpu_seconds * watts / per_kwh * amount * 10**9
    return round(nano)  # of a Fraction: half to even


@pytest.mark.parametrize("number", range(12))
def test_u8_the_cost_of_a_call_is_recomputed_by_hand_to_the_last_nano_unit(key, alice, number):
    chance = random.Random(number)
    big = chance.choice([1, 10**3, 10**9])
    price = make_price(
        input_nano=chance.randrange(big) if number % 3 else 0,
        output_nano=chance.randrange(big) if number % 4 else 0,
        gpu_second_nano=chance.randrange(big) if number % 2 else 0,
        kwh_nano=chance.randrange(1, 10**9),
        watts=chance.randrange(1, 1500),
    )
    record = rated(
        key, price, prompt_tokens=chance.randrange(10**5), completion_tokens=chance.randrange(10**5),
        load_us=chance.randrange(10**7), prefill_us=chance.randrange(10**7), decode_us=chance.randrange(10**9),
    )  # fmt: skip
    html = open_as(alice, record).content.decode()
    assert recomputed(html) == record.cost_nano
    assert text_of(re.search(r'id="cost-nano">(.*?)</td>', html)[1]).strip() == str(record.cost_nano)
    assert "The record says" not in html


def test_the_worked_example_of_the_docs(key, alice):
    """2.5 s of a 350 W card at 0.30 a kWh: 2.5 × 350 ÷ 3,600,000 × 0.30 = 0.000072916666…"""
    record = rated(key, make_price(kwh_nano=300_000_000, watts=350), load_us=0, prefill_us=500_000, decode_us=2_000_000)
    html = open_as(alice, record).content.decode()
    assert record.cost_nano == 72_917 == recomputed(html)
    energy = {row[0]: row[1:] for row in table_of(html, "What it cost")}["Energy"]
    assert energy == ["2.5 GPU seconds × 350 W ÷ 3600000 watt-seconds per kWh × 0.3 per kWh", "72916.666666…"]
    assert "0 s load + 0.5 s prefill + 2 s decode = 2.5 GPU seconds" in text_of(html)


def test_a_cost_that_its_price_does_not_make_is_told_as_it_stands(key, alice):
    record = rated(key, make_price(input_nano=10**9))
    UsageRecord.objects.filter(pk=record.pk).update(cost_nano=7)
    html = text_of(open_as(alice, record).content.decode())
    assert "The record says 0.000000007 EUR (7 nano-units)" in html


def test_no_price_is_said_and_a_price_that_is_gone_too(key, alice):
    html = text_of(open_as(alice, make_usage(key, cost_nano=None)).content.decode())
    assert "No price , which is not 0" in html.replace("No price,", "No price ,")
    gone = make_usage(key, cost_nano=5, price_id=999_999)
    assert "the cost stands as it was recorded" in text_of(open_as(alice, gone).content.decode())


def test_estimates_are_marked_wherever_they_stand(key, alice):
    price = make_price(input_nano=10**9)
    html = open_as(alice, rated(key, price, estimated=True, prompt_tokens=1111, decode_us=10**6)).content.decode()
    assert "≈ 1,131" in html
    assert "≈ 1,111 prompt" in text_of(html)
    assert "≈ 20.0" in html
    assert "they are estimated" in html
    assert "≈" not in text_of(open_as(alice, rated(key, price)).content.decode())


@pytest.mark.parametrize(
    ("outcome", "error", "told"),
    [
        ("ok", "", "answered to its end"),
        ("cancelled", "client_gone", "timeout of the client"),
        ("timeout", "first_byte_timeout", "no first byte in time"),
        ("failed", "backend_failed", "All backends that have this model failed."),
        ("failed", "a_new_code", "A new code."),
        ("cut", "withdrawn", "Look at the state of the key."),
        ("interrupted", "interrupted", "Make the call again."),
        ("refused_in_line", "line_full", "Too many calls wait already."),
    ],
)
def test_how_it_ended_is_told_in_words_with_the_next_step(key, alice, outcome, error, told):
    html = text_of(open_as(alice, make_usage(key, outcome=outcome, error=error)).content.decode())
    assert told in html
    assert ("What to do next" in html) == (outcome != "ok")


def test_every_outcome_has_its_words():
    from usage.outcome_words import OUTCOMES

    assert set(OUTCOMES) == set(Outcome.values)


def test_the_waterfall_adds_up(key):
    record = make_usage(key, gateway_us=500, queue_us=1_000, load_us=2_000_000, prefill_us=300_000, decode_us=700_000,
                        first_token_us=2_310_000, total_us=3_100_000)  # fmt: skip
    drawn = waterfall(record)
    assert [step.name for step in drawn.steps] == ["Gateway", "Line", "Load", "Prefill", "Decode", "Rest"]
    assert sum(step.us for step in drawn.steps) == record.total_us
    assert drawn.steps[-1].us == 98_500
    assert round(sum(step.share for step in drawn.steps)) == 100
    for before, after in zip(drawn.steps, drawn.steps[1:], strict=False):
        assert after.x >= before.x
    assert drawn.steps[-1].x + drawn.steps[-1].width <= WIDTH
    assert drawn.steps[2].x < drawn.first_token_x < drawn.steps[5].x


def test_a_backend_that_tells_more_time_than_passed_does_not_break_the_picture(key):
    drawn = waterfall(make_usage(key, total_us=10, decode_us=10**9, first_token_us=10**9))
    assert drawn.steps[-1].us == 0
    assert max(step.x + step.width for step in drawn.steps) <= WIDTH
    assert waterfall(make_usage(key, total_us=0, decode_us=0)).first_token_x is None


def test_where_it_was_answered_and_what_limits_hold(key, alice, acme):
    make_limit(77, tenant=acme, window="day")
    record = make_usage(key, attempts=2, load_us=3 * 10**6, queue_us=10, model_asked="gpt-4o", model="qwen3:8b",
                        model_digest="d" * 64)  # fmt: skip
    html = text_of(open_as(alice, record).content.decode())
    for told in ("gpu1 answered it.", "1 other attempt before it failed", "had to be loaded", "gpt-4o", "qwen3:8b",
                 "d" * 64, "requests per day", "77"):  # fmt: skip
        assert told in html


def told(record, **said):
    UsageRecord.objects.filter(pk=record.pk).update(routing=json.dumps(said))
    return record


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"warm": True, "busy": 0, "of": 3}, "of the 3 backends that could serve the call: the model warm, nothing"),
        ({"warm": False, "busy": 2, "of": 1}, "the only backend in rotation that could serve the call (the model cold"),
    ],
)
def test_why_this_backend_is_told(key, alice, said, words):
    assert words in text_of(open_as(alice, told(make_usage(key), **said)).content.decode())


def test_u5_attempts_are_listed_each_with_what_ended_it(key, alice):
    record = told(make_usage(key, attempts=2), warm=False, busy=0, of=2, failed=[["gpu7", "busy"]])
    rows = table_of(open_as(alice, record).content.decode(), "Attempts")
    assert rows[1:] == [["1", "gpu7", "Was busy"], ["2", "gpu1", "It was answered to its end."]]


def test_limits_that_a_call_was_counted_against_are_told_as_they_stood(key, alice, acme):
    tokens = make_limit(5_000, tenant=acme, metric="tokens", window="day")
    cost = make_limit(10**9, key=key, metric="cost", window="month")
    record = told(make_usage(key), limits=[[tokens.pk, 750, 1000], [cost.pk, 5 * 10**8, 10**9], [987_654, 1, 2]])
    rows = table_of(open_as(alice, record).content.decode(), "Limits it was counted against")
    assert rows[1:] == [
        ["the tenant acme", "tokens per day", "1,000", "750", "75 %"],
        [f"key {cost.subject}", "cost per month", "1.00 EUR", "0.50 EUR", "50 %"],
    ]


def test_t1_a_limit_of_another_tenant_is_not_told_whatever_a_record_says(key, alice, other):
    theirs = make_limit(77, tenant=other)
    html = open_as(alice, told(make_usage(key), limits=[[theirs.pk, 1, 77]])).content.decode()
    assert "counted against" not in html
    assert "other" not in text_of(html)


def test_t1_foreign_and_missing_requests_alike_are_not_there(key, alice, bob, charlie):
    record = make_usage(key)
    missing = UsageRecord(pk="00000000-0000-7000-8000-000000000000")
    assert open_as(alice, record).status_code == 200
    assert open_as(make_admin("root"), record).status_code == 200
    for who in (bob, charlie, make_user("loner")):
        foreign, none = open_as(who, record), open_as(who, missing)
        assert (foreign.status_code, none.status_code) == (404, 404)
        without_id = [re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|value=\"\w{60,}\"", "", page.content.decode()) for page in
                      (foreign, none)]  # fmt: skip
        assert without_id[0] == without_id[1]


def test_amounts_are_printed_without_a_float(key, alice):
    record = rated(key, make_price(input_nano=123_456_789_123_456_789), prompt_tokens=3)
    html = open_as(alice, record).content.decode()
    assert str(Decimal("123456789.123456789")) in html
    assert recomputed(html) == record.cost_nano
