"""What our admin has and Django's has not: a dashboard, pages that ask first or show once (T3, T7, T8, B14, B15)."""

import re
import socket
from datetime import timedelta

import pytest
from allauth.account.models import EmailAddress
from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django.asserts import assertContains, assertNotContains, assertRedirects

from proxy.credentials import seal, unseal
from proxy.models import Backend, BackendReport, ModelJob, RefusalCount, WorkerReport
from tenants.keys import PATTERN
from tenants.models import ApiKey, Invitation, Tenant
from tests.control_plane.test_admin import act, backend_form, make_staff, url_of
from tests.factories import NOON, make_backend, make_key, make_tenant, make_usage, make_user
from usage.rollups import rebuild

pytestmark = pytest.mark.django_db

NOW = "/admin/now/"


@pytest.fixture
def signed_in(client, root):
    client.force_login(root)
    return client


def report(backend, *, state="up", warm=(), models=(), age=timedelta()):
    return BackendReport.objects.create(
        backend=backend,
        state=state,
        version="0.33.0",
        models=[{"name": name, "digest": "", "size": 1, "modified_at": "", "family": "", "parameters": "",
                 "quantization": "", "context": 0} for name in models],
        warm=[{"name": name, "context": 4096, "size": 1, "vram": 3 << 30, "expires_at": ""} for name in warm],
        updated_at=timezone.now() - age,
    )  # fmt: skip


def refuse(count=1, code="key_revoked", prefix="", minutes_ago=0):
    minute = (timezone.now() - timedelta(minutes=minutes_ago)).replace(second=0, microsecond=0)
    return RefusalCount.objects.create(minute=minute, code=code, key_prefix=prefix, count=count)


def worker(pid=1, revision=10**15, age=timedelta(), **fields):
    moment = timezone.now() - age
    fields.setdefault("host", "here")
    return WorkerReport.objects.create(pid=pid, revision=revision, started_at=NOON, seen_at=moment, **fields)


# The dashboard.


def test_an_empty_installation_is_told_what_to_do_next(signed_in):
    answer = signed_in.get("/admin/")
    for step in ("Add the first backend", "Add the first tenant", "Create the first API key", "No backend yet"):
        assertContains(answer, step)
    assertContains(answer, "No worker has reported")
    make_key()
    make_backend()
    assertNotContains(signed_in.get("/admin/"), "What to do next")


def test_the_dashboard_shows_what_is_going_on(signed_in):
    key = make_key(name="leaked").row
    for outcome in ("ok", "ok", "failed"):
        make_usage(key, at=timezone.now(), outcome=outcome, cost_nano=1_250_000_000)
    make_usage(key, at=timezone.now() - timedelta(days=2))
    rebuild()
    report(make_backend("gpu1"), warm=["qwen3:8b"], models=["qwen3:8b"])
    report(make_backend("gpu2"), state="down")
    report(make_backend("gpu3"), age=timedelta(minutes=5))
    make_backend("gpu4", enabled=False)
    refuse(7, prefix=key.prefix)
    refuse(2, code="unknown_key", minutes_ago=30)
    refuse(99, code="line_full", minutes_ago=90)
    worker(1, calls=3, waiting=2)
    worker(2, revision=5)
    worker(3, age=timedelta(minutes=1))
    answer = signed_in.get(NOW)
    now = answer.context["now"]
    assert (now.today.calls, now.today.failures, now.today.cost_nano) == (3, 1, 3_750_000_000)
    assertContains(answer, "3.75 EUR")
    assert [(view.backend.name, view.state) for view in now.backends] == [
        ("gpu1", "up"), ("gpu2", "down"), ("gpu3", "unknown"), ("gpu4", "drained"),
    ]  # fmt: skip
    assertContains(answer, "qwen3:8b")
    assertContains(answer, "3.0")
    assert [(row.code, row.count) for row in now.refusals] == [("key_revoked", 7), ("unknown_key", 2)]
    assertContains(answer, "The key was revoked.")
    assertContains(answer, f'href="{url_of(ApiKey, "change", key.pk)}"')
    assertContains(answer, "1 of 2")
    assert (now.workers.calls, now.workers.waiting) == (3, 2)
    assert "no-store" in answer["Cache-Control"]


def test_the_dashboard_reads_no_records_and_asks_no_question_per_row(signed_in):
    def questions():
        with CaptureQueriesContext(connection) as captured:
            assert signed_in.get(NOW).status_code == 200
        return [query["sql"] for query in captured]

    questions()
    few = questions()
    for number in range(5):
        key = make_key().row
        make_usage(key, at=timezone.now())
        report(make_backend(), warm=["a", "b"])
        refuse(prefix=key.prefix)
        worker(number)
    rebuild()
    many = questions()
    assert not any("usage_usagerecord" in sql for sql in many)
    assert len(many) <= len(few) + 1


PARTS = {
    "view_dailyusage": "calls today",
    "view_backend": "now-backends",
    "view_refusalcount": "now-refusals",
    "view_workerreport": "now-workers",
}


@pytest.mark.parametrize("permission", PARTS)
def test_t3_each_part_of_the_dashboard_needs_its_permission(client, permission):
    make_backend("gpu1")
    client.force_login(make_staff(permission))
    answer = client.get(NOW)
    for needed, text in PARTS.items():
        (assertContains if needed == permission else assertNotContains)(answer, text)


def test_t3_who_may_not_see_keys_does_not_learn_their_names(client):
    key = make_key(name="secret project").row
    refuse(prefix=key.prefix)
    client.force_login(make_staff("view_refusalcount"))
    assertNotContains(client.get(NOW), "secret project")


def test_strangers_see_no_dashboard(client, bob):
    assert client.get(NOW).status_code == 302
    client.force_login(bob)
    assert client.get(NOW).status_code in (302, 403)


def test_the_groups_stand_in_the_order_of_the_work_and_hold_all_tables(signed_in):
    groups = signed_in.get("/admin/").context["app_list"]
    assert [group["name"] for group in groups] == [
        "People", "Access", "Fleet", "Money", "Usage", "Sign-in", "Operation",
    ]  # fmt: skip
    shown = {model["model"] for group in groups for model in group["models"]}
    assert shown == set(admin.site._registry)
    assert all(group["purpose"] for group in groups)
    assert all(model["purpose"] for group in groups for model in group["models"])


# What asks first.


@pytest.mark.parametrize("across", ["0", "1"])
def test_an_action_names_what_it_is_about_to_change_and_then_changes_that(signed_in, across):
    tenant = make_tenant("many keys")
    for _ in range(3):
        make_key(tenant)
    bystander = make_tenant("bystander")
    data = {"select_across": across}
    page = signed_in.post(url_of(Tenant) + "?q=many", {"action": "disable", "_selected_action": [tenant.pk], **data})
    assertContains(page, "many keys")
    assertContains(page, "3 usable keys")
    assertNotContains(page, "bystander")
    assert Tenant.objects.filter(enabled=True).count() == 2
    signed_in.post(
        url_of(Tenant) + "?q=many",
        {"action": "disable", "_selected_action": [tenant.pk], "confirmed": "yes", **data},
    )
    assert list(Tenant.objects.filter(enabled=True)) == [bystander]
    assertContains(signed_in.get(url_of(Tenant, "history", tenant.pk)), "Switched off")


def test_deleting_a_tenant_says_what_stops(signed_in):
    tenant = make_tenant("acme")
    make_key(tenant)
    make_user(tenant=tenant)
    page = signed_in.get(url_of(Tenant, "delete", tenant.pk))
    assertContains(page, "1 key that work now")
    assertContains(page, "1 person")
    assertContains(page, "usage records stay")


def test_draining_a_backend_says_what_only_it_has(signed_in):
    alone, other = make_backend("alone"), make_backend("other")
    report(alone, models=["qwen3:8b", "llama3.2:latest"])
    report(other, models=["llama3.2:latest"])
    page = act(signed_in, Backend, "drain", [alone])
    assertContains(page, "only it has qwen3:8b")
    act(signed_in, Backend, "drain", [alone], confirmed="yes")
    assert not Backend.objects.get(name="alone").enabled
    act(signed_in, Backend, "take_back", [alone])
    assert Backend.objects.get(name="alone").enabled


# Secrets, shown once.


def test_a1_a_rotated_key_shows_its_new_secret_once(signed_in):
    made = make_key()
    page = url_of(ApiKey, "rotate", made.row.pk)
    assertContains(signed_in.get(page), "A new secret for this key?")
    assert ApiKey.objects.get().digest == made.row.digest  # asking changed nothing
    answer = signed_in.post(page, {"overlap": "24"}, follow=True)
    (secret,) = set(re.findall(PATTERN, answer.content.decode()))
    assert secret != made.clear_text
    assert secret.split("_")[1] == made.row.prefix
    again = signed_in.get(answer.redirect_chain[-1][0])
    assertNotContains(again, secret)
    assertContains(again, "was shown already")
    after = ApiKey.objects.get()
    assert after.previous_expires_at - timezone.now() > timedelta(hours=23)


def test_t3_the_secret_of_a_key_with_more_rights_is_a_superusers_to_renew(client):
    row = make_key(may_manage=True).row
    client.force_login(make_staff("view_apikey", "change_apikey"))
    page = url_of(ApiKey, "rotate", row.pk)
    assert client.get(page).status_code == 403
    assert client.post(page, {"overlap": "0"}).status_code == 403
    assert ApiKey.objects.get().digest == row.digest
    assertNotContains(client.get(url_of(ApiKey, "change", row.pk)), "Rotate")


def test_t3_a_secret_is_shown_to_whom_it_was_made_for(client, signed_in, root, acme):
    form = {"name": "ci", "tenant": acme.pk, "enabled": "on", "models_allowed": "[]", "may_infer": "on"}
    answer = signed_in.post(url_of(ApiKey, "add"), form)
    other = Client()
    other.force_login(make_staff("view_apikey"))
    other.cookies["shown_once"] = signed_in.cookies["shown_once"].value
    assertContains(other.get(answer["Location"]), "was shown already")
    assertContains(signed_in.get(answer["Location"]), "ogw_")


def test_an_invitation_shows_its_link_once_and_is_withdrawn(signed_in, acme, settings):
    settings.EMAIL_IS_SENT = False
    form = {"tenant": acme.pk, "email": "new@example.org", "role": "member"}
    answer = signed_in.post(url_of(Invitation, "add"), form, follow=True)
    assertContains(answer, f">{settings.SITE_URL}/")
    assertNotContains(signed_in.get(answer.redirect_chain[-1][0]), f">{settings.SITE_URL}/")
    row = Invitation.objects.get()
    assertContains(act(signed_in, Invitation, "withdraw", [row]), "new@example.org")
    act(signed_in, Invitation, "withdraw", [row], confirmed="yes")
    assert not Invitation.objects.open().exists()


def test_an_invitation_is_sent_where_mail_is(signed_in, acme, settings, mailoutbox):
    settings.EMAIL_IS_SENT = True
    form = {"tenant": acme.pk, "email": "new@example.org", "role": "member"}
    assertRedirects(signed_in.post(url_of(Invitation, "add"), form), url_of(Invitation))
    (mail,) = mailoutbox
    assert mail.to == ["new@example.org"]


# Rights.


@pytest.mark.parametrize("model", [EmailAddress, Group], ids=lambda model: model.__name__)
def test_t3_what_one_could_take_over_an_account_by_is_for_superusers(client, root, model):
    name = model._meta.model_name
    staff = make_staff(*(f"{verb}_{name}" for verb in ("add", "change", "delete", "view")))
    client.force_login(staff)
    assert client.get(url_of(model)).status_code == 403
    form = {"user": root.pk, "email": "mine@example.org", "verified": "on", "name": "all",
            "permissions": [Permission.objects.first().pk]}  # fmt: skip
    assert client.post(url_of(model, "add"), form).status_code == 403
    assert not model.objects.exists()


def test_t3_staff_do_not_touch_other_staff(client):
    colleague = make_staff("change_limit", name="colleague")
    client.force_login(make_staff("change_user", "view_user"))
    password = reverse("admin:auth_user_password_change", args=[colleague.pk])
    form = {"password1": "a new long one!", "password2": "a new long one!", "usable_password": "true"}
    assert client.post(password, form).status_code == 403
    act(client, type(colleague), "switch_off", [colleague], confirmed="yes")
    colleague.refresh_from_db()
    assert (colleague.is_active, colleague.has_usable_password()) == (True, False)


BACKEND_PAGES = ("test", "models", "installed", "jobs")


def test_b14_b15_only_superusers_make_the_gateway_connect(client):
    backend = make_backend("gpu", url="http://127.0.0.1:9")
    every = [f"{verb}_{model}" for verb in ("add", "change", "delete", "view") for model in ("backend", "modeljob")]
    client.force_login(make_staff(*every))
    for page in BACKEND_PAGES:
        address = reverse(f"admin:proxy_backend_{page}", args=[backend.pk])
        assert client.get(address).status_code == 403
        assert client.post(address, {"pull": "qwen3"}).status_code == 403
    assert not ModelJob.objects.exists()
    assertNotContains(client.get(url_of(Backend, "change", backend.pk)), "/test/")


@pytest.mark.usefixtures("one_window")
def test_b15_tests_are_limited(signed_in):
    backend = make_backend("gpu", url="http://127.0.0.1:9")
    page = reverse("admin:proxy_backend_test", args=[backend.pk])
    answers = [signed_in.post(page) for _ in range(21)]
    assert {answer.status_code for answer in answers[:20]} == {200}
    assertContains(answers[0], "cannot be connected to")
    assert answers[20].status_code == 429
    assert int(answers[20]["Retry-After"]) > 0


def test_b14_a_kept_credential_is_not_sent_to_another_address(signed_in):
    row = make_backend("gpu", url="http://10.0.0.5:11434", credential_header="Authorization")
    Backend.objects.update(credential_encrypted=seal("Bearer hunter2"))
    change = url_of(Backend, "change", row.pk)
    moved = backend_form(url="http://10.9.9.9:11434", credential_header="Authorization")
    assertContains(signed_in.post(change, moved), "The address changes")
    assert Backend.objects.get().url == "http://10.0.0.5:11434"
    signed_in.post(change, {**moved, "credential": "Bearer other"})
    after = Backend.objects.get()
    assert (after.url, unseal(after.credential_encrypted)) == ("http://10.9.9.9:11434", "Bearer other")


@pytest.mark.parametrize(
    ("listens", "host", "url", "refused"),
    [
        ("127.0.0.1:8080", "here", "http://127.0.0.1:8080", True),
        ("127.0.0.1:8080", "here", "http://127.0.0.1:8081", False),
        ("0.0.0.0:8080", "here", "http://127.0.0.1:8080", True),
        ("[::]:8080", "here", "http://127.0.0.1:8080", True),
        ("0.0.0.0:8080", "here", "http://203.0.113.7:8080", False),
        ("127.0.0.1:8080", "elsewhere", "http://127.0.0.1:8080", False),
        ("203.0.113.7:8080", "elsewhere", "http://203.0.113.7:8080", True),
        ("0.0.0.0:8080", "elsewhere", "http://127.0.0.1:8080", False),
    ],
)
def test_b14_the_gateways_own_listeners_are_no_backends(signed_in, listens, host, url, refused):
    worker(host=socket.gethostname() if host == "here" else host, listens=[listens])
    answer = signed_in.post(url_of(Backend, "add"), backend_form(url=url))
    assert Backend.objects.exists() is not refused
    if refused:
        assertContains(answer, "This is the gateway itself")


# Every page.


def test_t12_there_is_one_page_to_change_a_password(signed_in):
    assert signed_in.get(reverse("admin:password_change"))["Location"] == reverse("account_change_password")


def test_a3_the_page_of_a_key_says_what_it_is_refused_for(signed_in):
    key = make_key().row
    refuse(3, prefix=key.prefix)
    refuse(2, prefix=key.prefix, minutes_ago=60 * 24)
    refuse(9, code="line_full", prefix="another")
    answer = signed_in.get(url_of(ApiKey, "change", key.pk))
    assertContains(answer, "The key was revoked.")
    assertContains(answer, '<td class="number">5</td>')
    assertNotContains(answer, "line_full")


@pytest.mark.parametrize("state", ["active", "disabled", "expired", "revoked"])
def test_keys_are_found_by_their_state(signed_in, state):
    long_ago = timezone.now() - timedelta(days=2)
    for name in ("active", "disabled", "expired", "revoked"):
        make_key(name=f"{name} one")
    ApiKey.objects.filter(name="disabled one").update(enabled=False)
    ApiKey.objects.filter(name="expired one").update(created_at=long_ago, expires_at=long_ago + timedelta(hours=1))
    ApiKey.objects.filter(name="revoked one").update(revoked_at=long_ago)
    found = signed_in.get(url_of(ApiKey), {"state": state}).context["cl"].queryset
    assert [(key.name, key.state) for key in found] == [(f"{state} one", state)]


def test_pages_and_the_database_are_measured(signed_in):
    before = signed_in.get("/metrics", REMOTE_ADDR="127.0.0.1").content.decode()
    signed_in.get("/admin/")
    after = signed_in.get("/metrics", REMOTE_ADDR="127.0.0.1").content.decode()

    def total(text, name):
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + "{"))

    for name in ("django_http_requests_total_by_view_transport_method_total", "django_db_execute_total"):
        assert total(after, name) > total(before, name)
    assert 'view="admin:index"' in after
