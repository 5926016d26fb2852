"""“Explain”: the command and the pages, as far as the tables tell; what running gateways say is in tests/live."""

import json

import pytest
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone
from pytest_django.asserts import assertContains, assertNotContains

from proxy.models import BackendReport, RefusalCount
from tenants.models import ApiKey, Tenant
from tests.factories import make_admin, make_backend, make_ip_rule, make_key, make_limit, make_tenant, make_user

pytestmark = pytest.mark.django_db

OWN, ADMIN = "/explain/", "/admin/explain/"


@pytest.fixture(autouse=True)
def no_limits_on_tests(settings):
    settings.RATELIMIT_ENABLE = False


@pytest.fixture
def backend():
    made = make_backend("gpu")
    item = {
        "name": "llama3.2:latest",
        "digest": "d",
        "context": 8192,
        "family": "llama",
        "capabilities": ["completion"],
    }
    BackendReport.objects.create(
        backend=made,
        state="up",
        updated_at=timezone.now(),
        models=[item],
        warm=[{"name": "llama3.2:latest", "vram": 1}],
    )
    return made


def member(role="owner", tenant="acme", name="bob"):
    return make_user(name, tenant=Tenant.objects.get(name=tenant), role=role)


def ask(client, url, **fields):
    return client.post(url, {"key": "", "model": "llama3.2", "address": "10.0.0.5", "endpoint": "/api/chat", **fields})


def told(prefix, *options):
    from io import StringIO

    out = StringIO()
    call_command("explain", "--key", prefix, "--model", "llama3.2", *options, stdout=out)
    return out.getvalue()


def test_the_command_says_every_step_and_what_it_cannot_know(backend):
    key = make_key().row
    said = json.loads(told(key.prefix, "--address", "10.0.0.5", "--json"))
    assert (said["status"], said["code"], said["backend"]) == (None, "", "gpu")
    verdicts = {step["step"]: step["verdict"] for step in said["steps"]}
    assert verdicts == {
        "path": "passes", "gateway": "not known here", "ip_all": "passes", "key": "passes", "tenant": "passes",
        "user": "passes", "ip_tenant": "passes", "ip_key": "passes", "endpoint": "passes", "model": "passes",
        "policy": "passes", "limits": "passes", "backend": "not known here",
    }  # fmt: skip
    text = told(key.prefix)
    assert "As far as is known here, nothing refuses the call." in text
    assert "not of a running gateway" in text


def test_the_command_says_what_is_the_matter(backend):
    key = make_key().row
    key.revoke()
    said = json.loads(told(key.prefix, "--json"))
    assert (said["status"], said["code"], said["cause"]) == (401, "invalid_key", "key_revoked")
    assert "The client gets 401 invalid_key" in told(key.prefix)


@pytest.mark.parametrize("url", [OWN, ADMIN])
def test_unless_told_otherwise_a_call_that_names_its_model_is_meant(client, backend, url):
    key = make_key(tenant=make_tenant("acme")).row
    client.force_login(make_admin() if url == ADMIN else member())
    page = client.get(url, {"key": key.prefix, "model": "nope"})
    assert page.context["form"].initial["endpoint"] == "/api/chat"
    assertContains(page, '<option value="/api/chat" selected>')
    assertContains(ask(client, url, key=key.prefix, model="nope"), "The client gets 404")


def test_who_names_a_model_for_a_listing_is_told_that_it_plays_no_part(client, backend):
    key = make_key().row
    client.force_login(make_admin())
    fields = {"key": key.prefix, "endpoint": "/api/version"}
    assertContains(ask(client, ADMIN, model="nope", **fields), "A call of /api/version names no model")
    assertNotContains(ask(client, ADMIN, model="", **fields), "names no model")


@pytest.mark.parametrize(("model", "code"), [("llama3.2", ""), ("nope", "model_not_found")])
def test_the_model_in_a_path_is_judged(backend, model, code):
    key = make_key().row
    said = json.loads(told(key.prefix, "--model", "", "--endpoint", f"/v1/models/{model}", "--json"))
    assert (said["status"], said["code"]) == (404 if code else None, code)


def test_backends_that_could_not_serve_it_are_not_counted_among_those_that_could(backend):
    gone = make_backend("gpu2")
    BackendReport.objects.create(backend=gone, state="down", updated_at=timezone.now(), models=[], warm=[])
    text = told(make_key().row.prefix)
    assert "Backend: 1 of 2 could serve it; slots are not known." in text
    assert "gpu2: does not answer." in text


@pytest.mark.parametrize(("options", "text"), [
    (["--key", "nobody"], "no key with the prefix"),
    (["--address", "here"], "no IP address"),
])  # fmt: skip
def test_the_command_refuses_what_makes_no_sense(options, text):
    with pytest.raises(CommandError, match=text):
        call_command("explain", *options)


def test_a_whole_key_is_judged_and_shown_nowhere(client, backend):
    made = make_key()
    client.force_login(make_admin())
    for typed, text in {
        made.clear_text: "It and its secret may be used.",
        made.clear_text[:-1] + ("a" if made.clear_text[-1] != "a" else "b"): "none of your keys",
    }.items():
        page = ask(client, ADMIN, key=typed).content.decode()
        assert text in page
        assert typed[13:40] not in page
    # In an address it would be logged: only what may be known is taken from there.
    page = client.get(f"{ADMIN}?key={made.clear_text}").content.decode()
    assert made.clear_text[13:40] not in page


def test_people_ask_about_their_own_keys_only(client, backend):
    ours, theirs = make_key(tenant=make_tenant("acme")), make_key(tenant=make_tenant("other"))
    client.force_login(member())
    assert "It may be used." in ask(client, OWN, key=ours.row.prefix).content.decode()
    for typed in (theirs.row.prefix, theirs.clear_text, "nobody00"):
        page = ask(client, OWN, key=typed).content.decode()
        assert "none of your keys" in page
        assert "It may be used." not in page


def test_people_are_not_told_about_backends(client, backend):
    key = make_key(tenant=make_tenant("acme")).row
    client.force_login(member())
    assert "gpu" not in ask(client, OWN, key=key.prefix).content.decode()


def test_the_admins_page_needs_its_rights(client, backend):
    staff = make_user("staff", is_staff=True)
    client.force_login(staff)
    assert client.get(ADMIN).status_code == 403
    staff.user_permissions.set(
        Permission.objects.filter(codename__in=["view_apikey", "view_iprule", "view_limit", "view_backend"])
    )
    assert client.get(ADMIN).status_code == 200
    key = make_key().row
    assert "gpu" in ask(client, ADMIN, key=key.prefix).content.decode()


def test_who_has_no_keys_has_nothing_to_ask(client):
    client.force_login(make_user("nobody"))
    assert client.get(OWN).status_code == 403
    client.logout()
    assert client.get(OWN).status_code == 302


@pytest.mark.parametrize("fields", [
    {"address": "x"}, {"address": ""}, {"endpoint": "/etc/passwd"}, {"key": "x" * 300}, {"model": "x" * 600},
    {"address": "10.0.0.5:80"},
])  # fmt: skip
def test_odd_input_gets_an_answer(client, backend, fields):
    client.force_login(make_admin())
    page = ask(client, ADMIN, **fields)
    assert page.status_code == 200
    assert "told" not in page.context or page.context["told"] is None


def test_refusals_lead_to_their_explanation(client, backend):
    key = make_key(tenant=make_tenant("acme")).row
    RefusalCount.objects.create(minute=timezone.now(), code="limit_requests", key_prefix=key.prefix, count=1)
    link = f"?key={key.prefix}"
    client.force_login(make_admin())
    for address in ("/admin/", reverse("admin:proxy_refusalcount_changelist")):
        assert f"{ADMIN}{link}" in client.get(address).content.decode()
    client.force_login(member())
    assert f"{OWN}{link}" in client.get(reverse("key", args=[key.prefix])).content.decode()
    assert f'value="{key.prefix}"' in client.get(f"{OWN}{link}").content.decode()
    assert ApiKey.objects.count() == 1


def test_t1_a_call_without_a_key_tells_nothing_of_a_foreign_key_that_it_is_made_as(client, backend):
    theirs = make_key(make_tenant("other"), "the operator's", models_allowed=["llama3.2"]).row
    make_ip_rule("10.0.0.0/24", "allow", acts_as=theirs)
    make_limit(777, key=theirs)
    mine = make_key(make_tenant("acme")).row
    make_ip_rule("10.1.0.0/24", "allow", acts_as=mine)
    client.force_login(member())
    page = ask(client, OWN).content.decode()
    assert "a key that is not yours" in page
    for told_of in (theirs.prefix, theirs.name, "777", "other"):
        assert told_of not in page, told_of
    assert mine.prefix in ask(client, OWN, address="10.1.0.5").content.decode()
    client.force_login(make_admin())
    assert theirs.prefix in ask(client, ADMIN).content.decode()
