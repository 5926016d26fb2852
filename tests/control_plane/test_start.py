"""What `serve` settles before it serves: the backend of the environment, the first aliases, loopback without a key."""

import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone
from pytest_django.asserts import assertContains, assertNotContains

from gateway_site import start
from proxy import default_backend
from proxy.models import Backend, DefaultModels, ModelAlias
from tenants.models import ApiKey, IPRule, Tenant
from tests.control_plane.test_commands import refusal, run
from tests.factories import make_backend

pytestmark = pytest.mark.django_db


@pytest.fixture
def environment(settings):
    settings.UPSTREAM = settings.OLLAMA_HOST = ""
    settings.OLLAMA_PORT = 0
    return settings


def begun(flag="", port=8080):
    start.take_over_environment(flag, "127.0.0.1", port)
    return {row.name: (row.url, row.set_by_environment) for row in Backend.objects.filter(archived_at=None)}


@pytest.mark.parametrize(
    ("flag", "upstream", "host", "port", "url"),
    [
        ("http://a:1", "http://b:1", "c:1", 5, "http://a:1"),
        ("", "http://b:1", "c:1", 5, "http://b:1"),
        ("", "b", "", 5, "http://b:11434"),
        ("", "", "c:1", 5, "http://c:1"),
        ("", "", "c", 5, "http://c:5"),
        ("", "", "", 5, "http://127.0.0.1:5"),
    ],
)
def test_the_flag_goes_before_the_variables_in_a_known_order(environment, flag, upstream, host, port, url):
    environment.UPSTREAM, environment.OLLAMA_HOST, environment.OLLAMA_PORT = upstream, host, port
    assert begun(flag) == {"default": (url, True)}


def test_with_nothing_set_only_an_empty_installation_gets_a_backend(environment):
    assert begun() == {"default": ("http://127.0.0.1:11434", False)}
    Backend.objects.update(archived_at=timezone.now())
    assert begun() == {}
    Backend.objects.all().delete()
    make_backend("gpu1")
    assert list(begun()) == ["gpu1"]


def test_a_gateway_in_ollamas_place_begins_with_ollama_one_port_further(environment):
    assert begun(port=11434) == {"default": ("http://127.0.0.1:11435", False)}


def test_the_environment_takes_an_existing_default_and_leaves_its_other_fields_and_rows(environment):
    row = make_backend("default", "http://old:1", slots=3, enabled=False)
    make_backend("gpu1", "http://new:11434")
    begun("new")
    row.refresh_from_db()
    assert (row.url, row.set_by_environment, row.slots, row.enabled) == ("http://new:11434", True, 3, False)
    Backend.objects.filter(name="default").update(archived_at=timezone.now())
    assert begun("new")["default"] == ("http://new:11434", True)


def test_one_server_under_two_names_is_warned_of(environment, caplog):
    make_backend("gpu1", "http://new:11434")
    begun("new")
    assert "The backends default and gpu1 are one server" in caplog.text


def test_when_the_variable_goes_the_row_is_an_ordinary_one(environment):
    begun("http://a:1")
    assert begun() == {"default": ("http://a:1", False)}


def test_n11_b14_ourselves_and_metadata_addresses_are_refused_and_change_nothing(environment):
    for flag in ("127.0.0.1:8080", "localhost:8080", "http://169.254.169.254", "ftp://x"):
        with pytest.raises(ImproperlyConfigured, match="--upstream"):
            begun(flag)
    assert not Backend.objects.exists()
    with pytest.raises(ValidationError):
        default_backend.own("http://metadata.invalid:1/x")


def test_the_admin_shows_whose_row_it_is_and_leaves_its_address_to_the_environment(environment, client, root):
    begun("http://a:1")
    client.force_login(root)
    row = Backend.objects.get()
    page = client.get(reverse("admin:proxy_backend_change", args=[row.pk]))
    assertContains(page, "OLLAMA_HOST")
    assertNotContains(page, 'name="url"')
    Backend.objects.update(set_by_environment=False)
    assertContains(client.get(reverse("admin:proxy_backend_change", args=[row.pk])), 'name="url"')


# The first aliases


def patterns():
    return set(ModelAlias.objects.values_list("pattern", "model"))


SEEDED = {("gpt-*", "@chat"), ("claude-*", "@chat"), ("text-embedding-*", "@embedding")}


def test_the_first_start_seeds_aliases_and_no_later_one_does():
    start.seed_aliases()
    assert patterns() == SEEDED
    ModelAlias.objects.all().delete()
    start.seed_aliases()
    assert patterns() == set()


def test_aliases_of_others_are_not_added_to():
    ModelAlias.objects.create(pattern="a", model="b")
    start.seed_aliases()
    ModelAlias.objects.all().delete()
    start.seed_aliases()
    assert patterns() == set()


def test_set_alias_takes_the_default_models():
    assert run("set_alias o3-* @chat") == "Set o3-* → the default chat model."
    assert run("set_alias o3-* @chat") == "Already set: o3-* → the default chat model."
    assert run("set_alias ada @embedding") == "Set ada → the default embedding model."
    assert "@chat or @embedding" in refusal("set_alias x @other")


def test_the_default_models_are_chosen_in_the_admin(client, root):
    client.force_login(root)
    start.seed_aliases()
    assertContains(client.get(reverse("admin:proxy_modelalias_changelist")), "the default embedding model")
    url = reverse("admin:proxy_defaultmodels_change", args=[1])
    assert client.post(url, {"chat_model": "qwen3:8b", "embedding_model": ""}).status_code == 302
    row = DefaultModels.objects.get()
    assert (row.chat_model, row.embedding_model) == ("qwen3:8b", "")
    assert row.aliases_seeded_at is not None
    assertContains(client.post(url, {"chat_model": "../x", "embedding_model": ""}), "cannot be the name of a model")
    assert client.get(reverse("admin:proxy_defaultmodels_add")).status_code == 403  # there is one row
    assert client.get(reverse("admin:proxy_defaultmodels_delete", args=[1])).status_code == 403
    page = client.post(reverse("admin:proxy_modelalias_add"), {"pattern": "x", "model": "@other", "enabled": "on"})
    assertContains(page, "cannot be the name of a model")


# Without a key


def rules():
    return [(rule.cidr, rule.action, str(rule.acts_as.tenant), rule.acts_as.name) for rule in IPRule.objects.all()]


OPEN = [("127.0.0.0/8", "allow", "default", "open"), ("::1/128", "allow", "default", "open")]


def test_open_makes_two_rules_and_a_key_once():
    start.open_to_loopback()
    start.open_to_loopback()
    assert rules() == OPEN
    assert ApiKey.objects.count() == 1


def test_open_mends_what_no_longer_works_and_leaves_what_does(acme):
    start.open_to_loopback()
    ApiKey.objects.get().revoke()
    start.open_to_loopback()
    assert rules() == OPEN
    assert {rule.acts_as.state for rule in IPRule.objects.all()} == {"active"}
    other = ApiKey.objects.exclude(revoked_at=None).get()
    ApiKey.objects.filter(pk=other.pk).update(revoked_at=None)
    IPRule.objects.filter(cidr="::1/128").update(acts_as=other)
    start.open_to_loopback()
    assert IPRule.objects.get(cidr="::1/128").acts_as == other


def test_open_does_not_bring_back_a_tenant_that_was_switched_off():
    start.open_to_loopback()
    Tenant.objects.update(enabled=False)
    with pytest.raises(ImproperlyConfigured, match="Restore it in the admin"):
        start.open_to_loopback()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9000", ("0.0.0.0", 9000)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("gw.example.com:80", ("gw.example.com", 80)),
        ("[::1]:9000", ("::1", 9000)),
        ("[::]:9000", ("::", 9000)),
    ],
)
def test_listen_takes_what_gos_listeners_take(text, address):
    assert start.listening_address(text) == address


@pytest.mark.parametrize("text", ["9000", ":", ":x", ":70000", "::1:9000", "http://a:1", "", "a:1:2"])
def test_listen_refuses_the_rest(text):
    with pytest.raises(ValueError, match="for all addresses"):
        start.listening_address(text)


FORKED_FROM = """
import sys, threading
import gateway_site.preloaded
from django.db import connections

assert threading.active_count() == 1
assert all(connection.connection is None for connection in connections.all(initialized_only=True))
assert "gateway_site.asgi" not in sys.modules
before = set(sys.modules)
import gateway_site.asgi
print(len(set(sys.modules) - before), "of", len(sys.modules))
"""


def test_what_workers_share_is_nearly_all_that_they_load_and_nothing_that_is_one_processs_own(tmp_path):
    environment = {**os.environ, "DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-c", FORKED_FROM]
    done = subprocess.run(command, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    own, _, loaded = done.stdout.split()
    assert int(own) < 20 < 1000 < int(loaded)


def test_several_workers_without_redis_are_refused_unless_that_is_accepted(settings):
    settings.REDIS_URL, settings.LIMITS_PER_WORKER = "", False
    with pytest.raises(CommandError) as refused:
        call_command("serve", workers=2, port=1)
    assert "set REDIS_URL" in str(refused.value)
    assert "LIMITS_PER_WORKER=True" in str(refused.value)


@pytest.mark.parametrize("path", ["/livez", "/metrics"])
def test_machines_may_ask_by_address(client, path):
    assert client.get(path, headers={"host": "10.0.0.7:8080"}).status_code == 200
    assert client.get("/accounts/login/", headers={"host": "10.0.0.7:8080"}).status_code == 400
