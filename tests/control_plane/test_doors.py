"""What strangers find at the doors besides the form: planted sessions, logs to write into, pages of machines."""

import logging
import os
import subprocess
import sys
from contextvars import Context

import pytest
from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.test import Client

from gateway_site.logs import OneLineFormatter
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.django_db

FORGED = "x\r\n2026-01-01 00:00:00,000 WARNING proxy.admission forged\n\x1b[31mred\x9b2J\x00\u2028\u202e\x7f"


def log_line(message="", *args, exc=None):
    exc_info = (type(exc), exc, exc.__traceback__) if exc else None
    record = logging.LogRecord("x", logging.WARNING, "", 0, message, args, exc_info)
    # Where no page is being made: the test client leaves the id of its last one behind.
    return Context().run(OneLineFormatter().format, record)


def test_t11_a_value_is_no_line_of_its_own_and_steers_no_terminal():
    for line in (log_line("said %s", FORGED), log_line(FORGED), log_line("%r", FORGED)):
        assert "forged" in line
        assert line.isprintable()


def test_t11_what_an_exception_says_is_told_apart_from_the_log():
    try:
        raise ValueError(FORGED)
    except ValueError as exc:
        text = log_line("It failed", exc=exc)
    first, *others = text.split("\n")
    assert first.endswith("It failed")
    assert all(line.startswith("    ") and line.isprintable() for line in others)
    assert any("forged" in line for line in others)


@pytest.mark.parametrize("path", ["/nothing/%0d%0aforged", "/nothing/%1b%5b31m", "/nothing/%e2%80%a8forged"])
def test_t11_an_address_is_logged_as_one_line(path, caplog):
    with caplog.at_level(logging.WARNING):
        assert Client().get(path).status_code == 404
    assert all(OneLineFormatter().format(record).isprintable() for record in caplog.records)
    assert caplog.records


@pytest.mark.parametrize("planted", ["one that is there", "one that is not"])
def test_t12_a_session_that_somebody_has_planted_is_not_signed_in(planted):
    make_user("nina", password=PASSWORD)
    store = SessionStore()
    store["mine"] = "planted"
    store.create()
    key = store.session_key if planted == "one that is there" else "a" * 32
    victim, thief = Client(), Client()
    for browser in (victim, thief):
        browser.cookies["sessionid"] = key
    assert victim.post("/account/login/", {"login": "nina", "password": PASSWORD}).status_code == 302
    assert victim.cookies["sessionid"].value != key
    assert victim.get("/keys/").status_code == 403  # nina has no tenant, and is signed in
    assert thief.get("/keys/").status_code == 302
    thief.cookies["sessionid"] = key
    assert thief.get("/keys/").status_code == 302


@pytest.mark.parametrize("name", ["sessionid", "csrftoken", "shown_once"])
def test_t12_cookies_are_for_this_site_alone(name, alice, acme):
    client = Client()
    client.post("/account/login/", {"login": "x", "password": "y"})
    alice.set_password(PASSWORD)
    alice.save()
    client.get("/account/login/")
    client.post("/account/login/", {"login": "alice", "password": PASSWORD})
    client.post("/keys/new/", {"name": "k", "whose": "mine"})
    cookie = client.cookies[name]
    assert cookie["samesite"] in ("Lax", "Strict")
    assert cookie["domain"] == ""
    if name != "csrftoken":
        assert cookie["httponly"]


def test_t12_the_set_up_of_the_documentation_passes_djangos_check(tmp_path):
    """As docs/deployment.md says for a proxy in front."""
    names = {"SITE_URL": "https://llm.example", "ALLOWED_HOSTS": "llm.example", "TRUSTED_PROXIES": "127.0.0.1/32"}
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    environment = {**os.environ, **names, "DATA_DIR": str(tmp_path)}
    environment.pop("DJANGO_ALLOW_ASYNC_UNSAFE", None)  # which live tests set for themselves
    done = subprocess.run(command, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "WARNINGS" not in done.stderr


@pytest.mark.parametrize(
    ("address", "forwarded", "is_let_in"),
    [
        ("127.0.0.1", "", True), ("::1", "", True), ("::ffff:127.0.0.1", "", True),
        ("203.0.113.9", "", False), ("203.0.113.9", "127.0.0.1", False), ("", "", False), ("127.0.0.1.evil", "", False),
    ],
)  # fmt: skip
def test_t14_readiness_and_metrics_are_for_some_networks_and_liveness_says_nothing(address, forwarded, is_let_in):
    client = Client(REMOTE_ADDR=address, headers={"x-forwarded-for": forwarded} if forwarded else {})
    assert (client.get("/metrics").status_code == 200) is is_let_in
    assert client.get("/readyz").status_code == (503 if is_let_in else 404)  # no gateway runs here
    alive = client.get("/livez")
    assert (alive.status_code, alive.content) == (200, b"ok")
    assert {name.lower() for name in alive.headers} & {"server", "x-powered-by", "via"} == set()


def test_t14_behind_a_trusted_proxy_whoever_is_behind_it_counts(settings):
    from ipaddress import ip_network

    settings.TRUSTED_PROXIES = [ip_network("127.0.0.1/32")]
    client = Client(REMOTE_ADDR="127.0.0.1", headers={"x-forwarded-for": "203.0.113.9"})
    assert client.get("/metrics").status_code == 404
    assert client.get("/readyz").status_code == 404
