"""Whatever is sent: an answer in the one shape, and never a 500 (L11, J4, J5, J8)."""

import json
from datetime import timedelta

import pytest
from django.db import DatabaseError
from django.utils import timezone

from gateway_site.management_api import errors
from tenants.models import Tenant
from tests.factories import make_key, make_limit, make_tenant
from tests.management_api.conftest import Program, error
from usage.models import DailyUsage
from usage.rollups import day_of, reporting_zone

BODIES = [
    (b"", 422, ""),
    (b"{", 400, ""),
    (b"[]", 400, ""),
    (b'"x"', 400, ""),
    (b'{"name": "a"} {}', 400, ""),
    (b"\xff\xfe{\x00", 400, ""),
    (b'{"name": "\xff"}', 400, ""),
    (b'{"name": "\\ud800"}', 400, ""),
    (b'{"name": "a\\u0000b"}', 400, "name"),
    (b'{"name\\u0000": "a"}', 400, ""),
    (b'{"name": NaN}', 400, ""),
    (b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, ""),
    (b'{"name": ' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}", 400, ""),
    (b'{"name": 5}', 422, "name"),
    (b'{"name": null}', 422, "name"),
    (b'{"name": ""}', 422, "name"),
    (b'{"name": " a"}', 422, "name"),
    (b'{"name": "a\\nb"}', 422, "name"),
    (b'{"name": "' + b"a" * 101 + b'"}', 422, "name"),
    (b'{"name": "a", "weight": 10001}', 422, "weight"),
    (b'{"name": "a", "weight": 1e400}', 400, ""),
    (b'{"name": "a", "weight": 99999999999999999999}', 422, "weight"),
    (b'{"name": "a", "weight": ' + b"9" * 5000 + b"}", 400, ""),
    (b'{"name": "a", "weight": "100"}', 422, "weight"),
    (b'{"name": "a", "weight": true}', 422, "weight"),
    (b'{"name": "a", "enabled": "true"}', 422, "enabled"),
    (b'{"name": "a", "is_superuser": true}', 422, "is_superuser"),
    (b'{"name": "a", "pad": "' + b"a" * 3_000_000 + b'"}', 413, ""),
]


@pytest.mark.parametrize(("body", "status", "field"), BODIES, ids=range(len(BODIES)))
def test_j4_odd_bodies_are_refused_by_name(body, status, field, root, program):
    answer = program(root).ask("POST", "tenants", body)
    code, about = error(answer, status)
    assert about == field, answer.content
    assert not Tenant.objects.exists()
    assert code in ("invalid_json", "invalid_text", "invalid_value", "body_too_large")


@pytest.mark.parametrize(
    "path",
    [
        "tenants/0", "tenants/-1", "tenants/9223372036854775808", "tenants/" + "9" * 400, "tenants/x",
        "keys/" + "a" * 17, "keys/ä", "tenants?limit=0", "tenants?limit=1001",
        "tenants?after=99999999999999999999", "tenants?limit=%00", "usage?since=0000-00-00", "usage?since=9999-12-31",
        "usage?since=2026-01-01&until=2024-01-01", "usage?tenant=%00", "usage?by=secret",
    ],
)  # fmt: skip
def test_odd_addresses_are_refused(path, root, program):
    error(program(root).get(path), 422)


@pytest.mark.parametrize(
    "path",
    [
        "", "nothing", "tenants/", "tenants/1/", "Tenants", "../admin/", "%2e%2e/admin/", "docs", "tenants//1",
        "tenants/%00", "keys/%00", "keys/a%00b",
    ],
)  # fmt: skip
def test_what_is_not_there_is_404_in_the_same_shape(path, root, program):
    assert error(program(root).get(path), 404)[0] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "tenants", "GET, POST"),
        ("DELETE", "tenants", "GET, POST"),
        ("POST", "tenants/1", "DELETE, GET, PATCH"),
        ("DELETE", "users/1", "GET, PATCH"),
        ("OPTIONS", "keys", "GET, POST"),
        ("TRACE", "keys", "GET, POST"),
        ("BREW", "usage", "GET"),
        ("PUT", "/config/reload", "GET, POST"),
    ],
)
def test_other_methods_are_405(method, path, allowed, root, program):
    answer = program(root).ask(method, path)
    assert error(answer, 405)[0] == "method_not_allowed"
    assert answer["allow"] == allowed


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("limits", {"scope": "tenant", "metric": "requests", "window": "day", "amount": 1}, "tenant"),
        ("limits", {"scope": "default", "metric": "requests", "amount": 1}, "window"),
        ("limits", {"scope": "default", "metric": "requests", "window": "seconds", "amount": 1}, "window_seconds"),
        ("limits", {"scope": "default", "metric": "requests", "window": "day", "amount": "1.5"}, "amount"),
        ("limits", {"scope": "default", "metric": "cost", "window": "day", "amount": "99999999999"}, "amount"),
        ("limits", {"scope": "default", "metric": "cost", "window": "day", "amount": -1}, "amount"),
        ("ip-rules", {"cidr": "10.0.0.1/8", "action": "deny"}, "cidr"),
        ("ip-rules", {"cidr": "10.0.0.0/8", "action": "deny", "tenant": "acme", "key": "{key}"}, "key"),
        ("ip-rules", {"cidr": "10.0.0.0/8", "action": "deny", "acts_as": "{key}"}, "acts_as"),
        ("aliases", {"pattern": "llama3.2", "model": "llama3.2:latest"}, "model"),
        ("aliases", {"pattern": "gpt-4", "model": "a b c"}, "model"),
        ("policies", {"pattern": "*", "keep_alive": "soon"}, "keep_alive"),
        ("policies", {"pattern": "*", "load_options": {"num_gpu": "all"}}, "load_options"),
        ("prices", {"model": "a", "input": "0.0000000001"}, "input"),
        ("prices", {"model": "a", "input": 0.15}, "input"),
        ("prices", {"model": "a", "backend": "nowhere"}, "backend"),
        ("backends", {"name": "a", "url": "http://169.254.169.254"}, "url"),
        ("backends", {"name": "a", "url": "http://127.0.0.1:1", "ca_certificates": "ä"}, "ca_certificates"),
        ("backends", {"name": "a", "url": "http://127.0.0.1:1", "http2": True}, ""),
        ("backends", {"name": "a", "url": "http://127.0.0.1:1", "credential": "x"}, "credential_header"),
        ("users", {"username": "a", "email": "nobody"}, "email"),
        ("invitations", {"tenant": "acme", "email": "nobody"}, "email"),
        ("keys", {"tenant": "acme", "name": "a", "expires_at": "2026-12-31"}, "expires_at"),
        ("keys", {"tenant": "acme", "name": "a", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ("keys", {"tenant": "acme", "name": "a", "expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
        ("keys", {"tenant": "acme", "name": "a", "user": "nobody"}, "user"),
    ],
)
def test_what_cannot_be_is_422_and_names_the_field(path, body, field, root, acme, program):
    key = make_key(acme).row.prefix
    body = {name: key if value == "{key}" else value for name, value in body.items()}
    assert error(program(root).post(path, body), 422)[1] == field


def test_lists_come_in_pages_that_neither_repeat_nor_hide(root, program):
    for number in range(5):
        make_tenant(f"t{number}")
    mine, found, after = program(root), [], 0
    while after is not None:
        page = mine.get(f"tenants?limit=2&after={after}").json()
        found += [row["name"] for row in page["items"]]
        after = page["next"]
        Tenant.objects.filter(name="t1").delete()
    assert found == ["t0", "t1", "t2", "t3", "t4"]


def test_money_is_text_in_units_of_the_currency(root, acme, program):
    mine = program(root)
    price = mine.post("prices", {"model": "a", "input": "0.150000001", "kwh": "0.30"}).json()
    assert (price["input"], price["output"], price["kwh"]) == ("0.150000001", "0", "0.3")
    limit = make_limit(2_500_000_000, metric="cost", tenant=acme)
    assert mine.get(f"limits/{limit.pk}").json()["amount"] == "2.5"
    assert mine.patch(f"limits/{limit.pk}", {"amount": "3.25"}).json()["amount"] == "3.25"
    limit.refresh_from_db()
    assert limit.amount == 3_250_000_000


def test_usage_is_that_of_the_pages(alice, charlie, acme, other, program):
    day = day_of(timezone.now(), reporting_zone())
    for tenant, requests in ((acme, 3), (other, 5)):
        key = make_key(tenant).row
        DailyUsage.objects.create(
            day=day, tenant=tenant, api_key=key, model="m", requests=requests, cost_nano=1_500_000_000, unpriced=1
        )
    for by in ("day", "model", "key"):
        said = program(alice).get(f"usage?by={by}").json()
        assert (said["total"]["requests"], said["total"]["cost"], said["total"]["unpriced"]) == (3, "1.5", 1)
        assert sum(line["requests"] for line in said["lines"]) == 3
    unpriced = DailyUsage.objects.filter(tenant=acme)
    unpriced.update(cost_nano=0, unpriced=3)
    assert program(alice).get("usage").json()["total"]["cost"] is None  # which is not 0
    assert (said["until"], len(program(alice).get("usage").json()["lines"])) == (str(day), 30)
    assert program(charlie).get("usage").json()["total"]["requests"] == 5
    assert error(program(charlie).get("usage?tenant=acme"), 422) == ("unknown_tenant", "tenant")
    yesterday = day - timedelta(days=1)
    assert program(alice).get(f"usage?since={yesterday}&until={yesterday}").json()["total"]["requests"] == 0


def test_default_models_are_one_row(root, program):
    mine = program(root)
    assert mine.get("default-models").json() == {"chat_model": "", "embedding_model": ""}
    assert mine.patch("default-models", {"chat_model": "llama3.2"}).json()["chat_model"] == "llama3.2"
    assert error(mine.patch("default-models", {"chat_model": "a b"}), 422)[1] == "chat_model"
    assert mine.get("default-models").json()["chat_model"] == "llama3.2"


def test_a_foreign_host_name_is_refused_in_the_same_shape(root, program):
    assert error(program(root).get("tenants", host="elsewhere.example"), 400)[0] == "invalid_request"


def test_a_form_is_read_as_json_whatever_it_says_it_is(root, program):
    mine = program(root)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = mine.client.post(
            "/manage/api/tenants", json.dumps({"name": kind.replace("/", "-")}), kind, headers=mine.headers
        )
        assert answer.status_code == 201, answer.content


def test_s1_a_database_that_does_not_answer_is_503():
    problem = errors.problem_of(DatabaseError("gone"))
    assert (problem.status, problem.code) == (503, "state_unavailable")
    assert problem.headers == {"Retry-After": "2"}


def test_nothing_of_ours_is_told_when_we_fail(caplog):
    problem = errors.problem_of(RuntimeError("the secret is 42"))
    assert (problem.status, "42" in problem.message) == (500, False)
    assert "the secret is 42" in caplog.text


def test_no_answer_lets_another_origin_in(root, program):
    answer = program(root).get("tenants", origin="https://elsewhere.example")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert Program().ask("OPTIONS", "tenants", origin="https://elsewhere.example").status_code in (401, 405)
