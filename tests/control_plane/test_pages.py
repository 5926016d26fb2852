"""What all pages are sent with, and what they look like when something goes wrong."""

import logging
import os
import re
import subprocess
import sys
from ipaddress import ip_network

import pytest
from django.db import OperationalError
from django.test import Client
from django.urls import path

from gateway_site.logs import OneLineFormatter
from gateway_site.urls import *  # noqa: F403 - this module is a URL configuration with two more pages
from gateway_site.urls import urlpatterns as real
from tests.conftest import STATIC_FILES
from tests.factories import make_user

pytestmark = pytest.mark.django_db


def broken(request):
    raise RuntimeError("a canary that nobody may see")


def without_database(request):
    raise OperationalError("the canary of the database")


urlpatterns = [path("broken/", broken), path("without-database/", without_database), *real]


@pytest.fixture
def client():
    return Client(raise_request_exception=False)


@pytest.mark.parametrize("address", ["/account/login/", "/admin/login/", "/livez", "/nothing/here", "/static/none.css"])
def test_t12_every_answer_has_the_policies(client, address):
    answer = client.get(address)
    policy = answer["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["X-Frame-Options"] == "DENY"


def test_pages_are_not_kept_by_browsers_but_their_style_is(client, bob, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:3], STATIC_FILES, *settings.MIDDLEWARE[3:]]
    client.force_login(bob)
    for address in ("/", "/keys/", "/usage/", "/account/"):
        assert client.get(address)["Cache-Control"] == "no-store"
    style = client.get("/static/gateway/gateway.css")
    assert style.status_code == 200
    assert "no-store" not in style.get("Cache-Control", "")


def test_each_page_has_an_id_of_ours_that_is_in_its_log_lines(client, caplog):
    ids = set()
    for _ in range(2):
        answer = client.get("/nothing/here", headers={"x-request-id": "forged"})
        ids.add(answer["x-request-id"])
        assert f"<code>{answer['x-request-id']}</code>" in answer.content.decode()
    assert len(ids) == 2
    assert "forged" not in ids
    line = OneLineFormatter().format(logging.LogRecord("x", logging.INFO, "", 0, "said", (), None))
    assert line.endswith(f"said [request {answer['x-request-id']}]")


@pytest.mark.parametrize("address", ["/broken/", "/without-database/"])
@pytest.mark.urls(__name__)
def test_a_fault_of_ours_says_what_to_do_and_nothing_of_itself(client, address):
    answer = client.get(address)
    page = answer.content.decode()
    assert answer.status_code == 500
    assert "not yours" in page
    assert answer["x-request-id"] in page
    assert "canary" not in page
    assert "Traceback" not in page


def test_the_page_for_what_is_not_there_needs_no_database(client, monkeypatch):
    client.force_login(make_user("someone"))

    def away(*args, **kwargs):
        raise OperationalError("no such database")

    monkeypatch.setattr("django.contrib.sessions.backends.db.SessionStore.load", away)
    answer = client.get("/nothing/here")
    assert answer.status_code == 404
    assert "no such page" in answer.content.decode()


@pytest.mark.parametrize(
    ("peer", "scheme", "is_there"),
    [("10.0.0.2", "https", True), ("10.0.0.2", "http", False), ("9.9.9.9", "https", False), ("10.0.0.2", "", False)],
)
def test_behind_a_trusted_proxy_that_ends_tls_pages_are_not_redirected_for_ever(settings, peer, scheme, is_there):
    settings.SECURE_SSL_REDIRECT, settings.TRUSTED_PROXIES = True, [ip_network("10.0.0.0/8")]
    headers = {"x-forwarded-proto": scheme} if scheme else {}
    answer = Client().get("/account/login/", headers=headers, REMOTE_ADDR=peer)
    assert answer.status_code == (200 if is_there else 301)


@pytest.mark.parametrize("proxies", ["", "10.0.0.0/8"])
def test_the_site_is_usable_with_nothing_set_but_its_https_address(proxies, tmp_path):
    """A redirect needs a proxy that is believed; a form's origin is that of SITE_URL."""
    names = {"SITE_URL": "https://llm.example/", "TRUSTED_PROXIES": proxies, "DATA_DIR": str(tmp_path)}
    code = (
        "from django.conf import settings as s; "
        "print(s.SECURE_SSL_REDIRECT, s.CSRF_TRUSTED_ORIGINS, s.SESSION_COOKIE_SECURE, s.ALLOWED_HOSTS[-1])"
    )
    environment = {**os.environ, **names, "DJANGO_SETTINGS_MODULE": "gateway_site.settings"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"{bool(proxies)} ['https://llm.example'] True llm.example", done.stderr


def test_a_foreign_host_is_refused(client):
    answer = client.get("/account/login/", headers={"host": "evil.example"})
    assert answer.status_code == 400
    assert "ALLOWED_HOSTS" in answer.content.decode()
    assert "evil.example" not in answer.content.decode()


def test_a_form_without_its_token_says_what_to_do(client):
    strict = Client(enforce_csrf_checks=True)
    answer = strict.post("/account/login/", {"login": "x", "password": "y"})
    assert answer.status_code == 403
    assert "reload the page" in answer.content.decode()


def test_what_is_not_allowed_says_why(client, bob):
    client.force_login(bob)
    answer = client.get("/people/")
    assert answer.status_code == 403
    assert "Only owners" in answer.content.decode()
    assert bob.username in answer.content.decode()  # with the navigation of who is signed in


def test_t8_templates_have_neither_inline_script_nor_style():
    from django.conf import settings

    for file in (settings.BASE_DIR / "templates").rglob("*.html"):
        text = re.sub(r"{%.*?%}|{{.*?}}", "", file.read_text())
        assert not re.search(r"<script(?![^>]*(src=|application/json))", text), file
        assert not re.search(r"\son\w+=|\sstyle=|<style", text), file
        for address in re.findall(r'(?:src|href)="(https?:[^"]*)"', text):
            raise AssertionError(f"{file} loads {address}")
