"""The plain admin: who may what, what is shown once or never, what is not deleted (threats A1, T3, T6, T8, B14)."""

import re

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django.asserts import assertContains, assertNotContains

from proxy.credentials import seal, unseal
from proxy.models import (
    Backend,
    BackendReport,
    CachePurge,
    ConfigRevision,
    DefaultModels,
    Delivery,
    LimitAlert,
    ModelAlias,
    ModelJob,
    ModelPolicy,
    RefusalCount,
    Webhook,
    WorkerReport,
)
from tenants.invitations import invite
from tenants.keys import PATTERN, digest
from tenants.models import ApiKey, ApiKeyLastUsed, AuditEntry, IPRule, Limit, Membership, Tenant, User
from tests.factories import (
    NOON,
    PASSWORD,
    make_backend,
    make_ip_rule,
    make_key,
    make_limit,
    make_price,
    make_tenant,
    make_usage,
    make_user,
)
from usage.models import DailyUsage, Price, Rerating, UsageBucket, UsageRecord
from usage.rollups import rebuild

pytestmark = pytest.mark.django_db

OURS = list(admin.site._registry)
READ_ONLY = [
    UsageRecord, UsageBucket, DailyUsage, ConfigRevision, WorkerReport, RefusalCount, ModelJob, LogEntry, AuditEntry,
    LimitAlert, Delivery,
]  # fmt: skip
# What machines write too, but may be taken away.
NOT_WRITTEN = [Authenticator, SocialAccount]
# Invitations are made by a form, and then only withdrawn.


def url_of(model, page="changelist", *args):
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def act(client, model, action, rows, **more):
    """Chooses an action in the list of a model."""
    data = {"action": action, "_selected_action": [row.pk for row in rows], **more}
    return client.post(url_of(model), data)


def make_staff(*permissions, name="staff"):
    user = make_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


@pytest.fixture
def signed_in(client, root):
    client.force_login(root)
    return client


@pytest.fixture
def one_of_each(acme, bob, root):
    """A row of every model, with hostile text wherever text goes."""
    hostile = '<script>alert(1)</script>"><img src=x>{{7*7}}\u202e'
    key = make_key(acme, hostile, user=bob).row
    ApiKeyLastUsed.objects.create(key=key, at=NOON)
    make_ip_rule(note=hostile, tenant=acme)
    make_limit(tenant=acme, model=hostile)
    make_limit(25_500_000_000, key=key, metric="cost", window="month")
    backend = make_backend(hostile)
    BackendReport.objects.create(
        backend=backend,
        state="down",
        version=hostile[:40],
        problem=hostile,
        models=[{"name": hostile, "digest": hostile, "size": 1, "modified_at": hostile, "family": hostile,
                 "parameters": hostile, "quantization": hostile, "context": 0}],
        warm=[{"name": hostile, "context": 0, "size": 1, "vram": 1, "expires_at": hostile}],
        updated_at=timezone.now(),
    )  # fmt: skip
    for state in ModelJob.State:
        ModelJob.objects.create(backend=backend, model=hostile, action="pull", state=state, status=hostile,
                                problem=hostile, started_by=root)  # fmt: skip
    RefusalCount.objects.create(minute=timezone.now(), code=hostile[:64], key_prefix=hostile[:16], count=1)
    WorkerReport.objects.create(
        host=hostile, pid=1, revision=0, listens=[hostile], started_at=NOON, seen_at=timezone.now()
    )
    Authenticator.objects.create(user=bob, type="totp", data={"secret": "TOP-SECRET-SEED"})
    SocialAccount.objects.create(user=bob, provider=hostile, uid=hostile, extra_data={"token": "TOP-SECRET-SEED"})
    EmailAddress.objects.create(user=bob, email="bob@example.org", verified=True)
    Group.objects.create(name=hostile)
    invite(acme, "<img@example.org", "member", root)
    LogEntry.objects.create(user=root, action_flag=2, object_repr=hostile, change_message=hostile)
    DefaultModels.the_row()
    webhook = Webhook.objects.create(url=hostile, secret_encrypted=seal("TOP-SECRET"))
    alert = LimitAlert.objects.create(
        tenant=acme, counted_for="x", window_start=NOON, window_end=NOON, amount=1, threshold=80,
        body={"limit": {"text": hostile}},
    )  # fmt: skip
    for state in Delivery.State:
        Delivery.objects.create(alert=alert, webhook=webhook, state=state, outcome=hostile)
    make_price(hostile)
    ModelAlias.objects.create(pattern=hostile, model=hostile)
    ModelPolicy.objects.create(pattern=hostile)
    make_usage(key, model=hostile, user_agent=hostile, end_user=hostile, error=hostile[:64], client_request_id=hostile)
    rebuild()
    return hostile


def test_every_model_is_registered():
    assert set(OURS) >= {
        Tenant, User, ApiKey, IPRule, Limit, Backend, ModelAlias, ModelPolicy, Price, *READ_ONLY,
    }  # fmt: skip


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_lists_ask_no_question_per_row(signed_in, one_of_each, model):
    def questions():
        with CaptureQueriesContext(
            connection,
        ) as captured:
            assert signed_in.get(url_of(model)).status_code == 200
        return len(captured)

    questions()
    few = questions()
    for number in range(5):
        tenant = make_tenant()
        key = make_key(tenant, user=make_user(tenant=tenant)).row
        make_usage(key)
        make_limit(key=key)
        make_ip_rule(f"10.{number}.0.0/16", key=key)
        make_backend()
        Delivery.objects.create(webhook=Webhook.objects.create(url="https://x.example", secret_encrypted=b""))
        make_price(f"m{number}")
        ModelAlias.objects.create(pattern=f"a{number}", model="b")
        ModelPolicy.objects.create(pattern=f"a{number}")
    rebuild()
    assert questions() <= few + 1


@pytest.mark.parametrize("model", READ_ONLY, ids=lambda model: model.__name__)
def test_t3_what_machines_write_nobody_edits(signed_in, one_of_each, model):
    row = model._default_manager.first()
    before = list(model._default_manager.values())
    assert signed_in.get(url_of(model, "add")).status_code == 403
    assert signed_in.post(url_of(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    assert signed_in.post(url_of(model, "change", row.pk), {"requests": "0"}).status_code == 403
    act(signed_in, model, "delete_selected", [row], post="yes")
    assert list(model._default_manager.values()) == before


def test_records_are_listed_without_counting_or_sorting_them_all(signed_in, monkeypatch):
    # What fits on one page Django reads without a limit.
    monkeypatch.setattr(admin.site._registry[UsageRecord], "list_per_page", 2)
    key = make_key().row
    for _ in range(3):
        make_usage(key)
    with CaptureQueriesContext(connection) as captured:
        answer = signed_in.get(url_of(UsageRecord) + "?o=3&_facets=True")
    assertContains(answer, "llama3.2:latest")
    about_records = [query["sql"] for query in captured if "usage_usagerecord" in query["sql"]]
    assert about_records
    assert not any("COUNT(" in sql.upper() for sql in about_records)
    assert all("LIMIT" in sql for sql in about_records)
    assert all('ORDER BY "usage_usagerecord"."started_at" DESC' in sql for sql in about_records)


@pytest.mark.parametrize("whole_id", ["client", "ours"])
def test_a_record_is_found_by_either_id(signed_in, whole_id):
    record = make_usage(client_request_id="req-42", model="wanted:latest")
    make_usage(model="unwanted:latest")
    term = record.client_request_id if whole_id == "client" else str(record.pk)
    answer = signed_in.get(url_of(UsageRecord), {"q": term})
    assertContains(answer, "wanted:latest")
    assertNotContains(answer, "unwanted:latest")
    assertNotContains(signed_in.get(url_of(UsageRecord), {"q": "req-4"}), "wanted:latest")


# Keys.


def key_form(tenant, **more):
    return {
        "name": "ci", "tenant": tenant.pk, "enabled": "on", "models_allowed": "[]", "may_infer": "on", **more,
    }  # fmt: skip


def test_a1_a_new_key_is_shown_exactly_once(signed_in, acme, root):
    answer = signed_in.post(url_of(ApiKey, "add"), key_form(acme), follow=True)
    (clear_text,) = set(re.findall(PATTERN, answer.content.decode()))
    row = ApiKey.objects.get()
    from django.conf import settings

    assert bytes(row.digest) == digest(clear_text.encode(), settings.KEY_PEPPER)
    assert row.created_by == root
    assert "no-store" in answer["Cache-Control"]
    secret = clear_text.split("_")[2]
    assert secret not in str(answer.cookies)
    for page in (url_of(ApiKey), url_of(ApiKey, "change", row.pk), url_of(ApiKey, "history", row.pk), "/admin/"):
        later = signed_in.get(page).content.decode()
        assert secret not in later
        assert row.digest.hex() not in later


def test_a_key_cannot_expire_before_it_is_made(signed_in, acme):
    past = {"expires_at_0": "2020-01-01", "expires_at_1": "00:00:00"}
    refused = "That moment has passed: the key would never work."
    assertContains(signed_in.post(url_of(ApiKey, "add"), key_form(acme, **past)), refused)
    row = make_key(acme).row
    assertContains(signed_in.post(url_of(ApiKey, "change", row.pk), key_form(acme, **past)), refused)
    assert ApiKey.objects.get().expires_at is None


def test_a_key_that_has_expired_can_be_renamed(signed_in, acme):
    row = make_key(acme).row
    ApiKey.objects.update(created_at=NOON.replace(year=2019), expires_at=NOON.replace(year=2020))
    form = key_form(acme, name="old", expires_at_0=f"{NOON.replace(year=2020):%Y-%m-%d}", expires_at_1="12:00:00")
    assert signed_in.post(url_of(ApiKey, "change", row.pk), form).status_code == 302
    assert ApiKey.objects.get().name == "old"


def test_a_key_needs_a_user_of_its_tenant(signed_in, acme, bob, charlie):
    answer = signed_in.post(url_of(ApiKey, "add"), key_form(acme, user=charlie.pk))
    assertContains(answer, "charlie is not in acme")
    signed_in.post(url_of(ApiKey, "add"), key_form(acme, user=bob.pk))
    assert ApiKey.objects.get().user == bob


def test_a_key_of_an_archived_tenant_is_refused(signed_in, acme):
    acme.archive()
    assertContains(signed_in.post(url_of(ApiKey, "add"), key_form(acme)), "This tenant was deleted")


@pytest.mark.parametrize("models", ['"llama3.2"', '{"a": 1}', "[1]", "nonsense"])
def test_allowed_models_are_a_list(signed_in, acme, models):
    answer = signed_in.post(url_of(ApiKey, "add"), key_form(acme, models_allowed=models))
    assert answer.status_code == 200
    assert not ApiKey.objects.exists()


@pytest.mark.parametrize("models", ["", "null", "[]", "{}"])
def test_an_empty_field_allows_all_models(signed_in, acme, models):
    signed_in.post(url_of(ApiKey, "add"), key_form(acme, models_allowed=models))
    assert ApiKey.objects.get().models_allowed == []


@pytest.mark.parametrize("options", ["", "null", "{}"])
def test_an_empty_field_sets_no_load_options(signed_in, options):
    signed_in.post(url_of(ModelPolicy, "add"), {"pattern": "*", "load_options": options})
    assert ModelPolicy.objects.get().load_options == {}


def test_t6_the_owner_the_digest_and_the_prefix_of_a_key_cannot_be_forged(signed_in, acme, other):
    row = make_key(acme).row
    forged = key_form(other, name="new", prefix="forged", digest="00", user="1", revoked_at="2026-01-01", imported="on")
    signed_in.post(url_of(ApiKey, "change", row.pk), forged)
    after = ApiKey.objects.get()
    assert after.name == "new"
    assert (after.tenant, after.prefix, bytes(after.digest)) == (acme, row.prefix, row.digest)
    assert (after.user, after.revoked_at, after.imported) == (None, None, False)


def test_t3_rights_that_cost_the_operator_are_given_by_superusers(client, acme):
    client.force_login(make_staff("add_apikey", "view_apikey", "change_apikey", "view_tenant"))
    client.post(url_of(ApiKey, "add"), key_form(acme, may_manage="on", may_use_cloud="on"))
    row = ApiKey.objects.get()
    client.post(url_of(ApiKey, "change", row.pk), key_form(acme, name="new", may_manage="on", may_use_cloud="on"))
    row.refresh_from_db()
    assert (row.name, row.may_manage, row.may_use_cloud) == ("new", False, False)


def test_t3_what_bounds_the_rights_of_superusers_is_theirs_too(client, acme):
    row = make_key(acme, may_manage=True, models_allowed=["team/*"]).row
    client.force_login(make_staff("view_apikey", "change_apikey", "view_tenant"))
    client.post(url_of(ApiKey, "change", row.pk), key_form(acme, name="new", models_allowed='["*"]'))
    row.refresh_from_db()
    assert (row.name, row.models_allowed) == ("new", ["team/*"])


def test_keys_are_disabled_and_enabled_in_the_list(signed_in):
    row = make_key().row
    assertContains(act(signed_in, ApiKey, "disable", [row]), f"ogw_{row.prefix}_")
    assert ApiKey.objects.get().state == "active"
    act(signed_in, ApiKey, "disable", [row], confirmed="yes")
    assert ApiKey.objects.get().state == "disabled"
    act(signed_in, ApiKey, "enable", [row])
    assert ApiKey.objects.get().state == "active"


def no_memberships(**more):
    return {f"memberships-{name}_FORMS": "0" for name in ("TOTAL", "INITIAL")} | more


@pytest.mark.parametrize(
    ("model", "field", "form", "says"),
    [
        (ApiKey, "enabled", lambda row: key_form(row.tenant) | {"enabled": ""}, "those that run are cut"),
        (Tenant, "enabled", lambda row: no_memberships(
            name="new", latency_class="batch", weight="100", cache_scope="tenant"
        ), "1 usable key"),
        (User, "is_active", lambda row: no_memberships(
            username="new", date_joined_0="2026-01-01", date_joined_1="00:00:00"
        ), "1 usable key"),
    ],
)  # fmt: skip
def test_unticking_what_calls_are_made_with_asks_first(signed_in, acme, bob, model, field, form, says):
    key = make_key(acme, user=bob).row
    row = {ApiKey: key, Tenant: acme, User: bob}[model]
    page = url_of(model, "change", row.pk)
    assertContains(signed_in.get(page), '<input type="hidden" name="confirmed"')
    answer = signed_in.post(page, form(key))
    assertContains(answer, says)
    assertContains(answer, '<input type="checkbox" name="confirmed"')
    row.refresh_from_db()
    assert getattr(row, field)
    assert signed_in.post(page, form(key) | {"confirmed": "on"}).status_code == 302
    row.refresh_from_db()
    assert not getattr(row, field)
    # What is off already is saved without a question.
    assert signed_in.post(page, form(key)).status_code == 302


def test_who_may_only_look_is_not_asked(client, acme):
    client.force_login(make_staff("view_tenant", "view_cachepurge"))
    assertNotContains(client.get(url_of(Tenant, "change", acme.pk)), "confirmed")
    assertNotContains(client.get(url_of(CachePurge, "change", CachePurge.objects.create().pk)), "confirmed")


def test_revoking_asks_first(signed_in):
    row, bystander = make_key().row, make_key().row
    assertContains(act(signed_in, ApiKey, "revoke", [row]), f"ogw_{row.prefix}_")
    assert ApiKey.objects.get(pk=row.pk).state == "active"
    act(signed_in, ApiKey, "revoke", [row], confirmed="yes")
    assert ApiKey.objects.get(pk=row.pk).state == "revoked"
    assert ApiKey.objects.get(pk=bystander.pk).state == "active"
    assertContains(signed_in.get(url_of(ApiKey, "history", row.pk)), "Revoked")
    assertContains(act(signed_in, ApiKey, "revoke", [row]), "revoked already")


def test_keys_and_users_are_not_deleted(signed_in, bob):
    row = make_key().row
    for model, pk in ((ApiKey, row.pk), (User, bob.pk)):
        assert signed_in.post(url_of(model, "delete", pk), {"post": "yes"}).status_code == 403
        act(signed_in, model, "delete_selected", [row], post="yes")
        assert model.objects.filter(pk=pk).exists()


@pytest.mark.parametrize("action", ["disable", "revoke"])
def test_t3_who_may_only_look_acts_on_nothing(client, action):
    row = make_key().row
    client.force_login(make_staff("view_apikey"))
    act(client, ApiKey, action, [row], confirmed="yes")
    assert ApiKey.objects.get().state == "active"


# Archiving.


@pytest.mark.parametrize(("model", "make"), [(Tenant, make_tenant), (Backend, make_backend)])
def test_deleting_archives(signed_in, model, make):
    first, second = make("first"), make("second")
    if model is Tenant:
        make_key(first)  # which protects it from being deleted, and not from being archived
    assertContains(signed_in.get(url_of(model, "delete", first.pk)), "usage records stay")
    signed_in.post(url_of(model, "delete", first.pk), {"post": "yes"})
    assertContains(act(signed_in, model, "delete_selected", [second]), "usage records stay")
    act(signed_in, model, "delete_selected", [second], post="yes")
    assert model.objects.exclude(archived_at=None).count() == 2
    assertNotContains(signed_in.get(url_of(model)), "second</a>")
    assertContains(signed_in.get(url_of(model) + "?archived=yes"), "second</a>")
    assertContains(signed_in.get(url_of(model) + "?archived=all"), "second</a>")
    signed_in.post(url_of(model) + "?archived=yes", {"action": "restore", "_selected_action": [first.pk]})
    assert model.objects.get(archived_at=None) == first


def test_an_archived_tenant_is_not_offered(signed_in, acme, other):
    acme.archive()
    query = {"app_label": "tenants", "model_name": "apikey", "field_name": "tenant", "term": ""}
    answer = signed_in.get(reverse("admin:autocomplete"), query).json()
    assert [choice["text"] for choice in answer["results"]] == ["other"]


# People.


def test_t3_staff_raise_nobodys_rights(client, root):
    staff = make_staff("change_user", "view_user")
    client.force_login(staff)
    form = {
        "username": "staff", "is_active": "on", "is_staff": "on", "is_superuser": "on",
        "user_permissions": [str(pk) for pk in Permission.objects.values_list("pk", flat=True)[:5]],
        "memberships-TOTAL_FORMS": "0", "memberships-INITIAL_FORMS": "0",
    }  # fmt: skip
    client.post(url_of(User, "change", staff.pk), form)
    staff.refresh_from_db()
    assert not staff.is_superuser
    assert staff.user_permissions.count() == 2


def test_t3_staff_do_not_touch_superusers(client, root):
    client.force_login(make_staff("change_user", "view_user"))
    assert client.post(url_of(User, "change", root.pk), {"username": "mine"}).status_code == 403
    password = reverse("admin:auth_user_password_change", args=[root.pk])
    answer = client.post(password, {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"})
    assert answer.status_code == 403
    act(client, User, "switch_off", [root], confirmed="yes")
    root.refresh_from_db()
    assert (root.username, root.is_active, root.has_usable_password()) == ("root", True, False)


def test_users_are_switched_off_and_on_but_never_oneself(signed_in, root, bob):
    assertContains(act(signed_in, User, "switch_off", [bob, root]), "Switch these users off?")
    assert User.objects.filter(is_active=True).count() == 2
    act(signed_in, User, "switch_off", [bob, root], confirmed="yes")
    assert set(User.objects.filter(is_active=True)) == {root}
    act(signed_in, User, "switch_on", [bob])
    assert User.objects.filter(is_active=True).count() == 2


def test_t3_inlines_need_their_own_permission(client, acme, charlie):
    client.force_login(make_staff("change_tenant", "view_tenant"))
    form = {
        "name": "acme", "enabled": "on", "memberships-TOTAL_FORMS": "1", "memberships-INITIAL_FORMS": "0",
        "memberships-0-user": charlie.pk, "memberships-0-role": "owner", "memberships-0-tenant": acme.pk,
    }  # fmt: skip
    client.post(url_of(Tenant, "change", acme.pk), form)
    assert not Membership.objects.filter(tenant=acme, user=charlie).exists()


# Backends.


def backend_form(**more):
    return {"name": "gpu", "url": "http://10.0.0.5:11434", "slots": "1", "transport": "wire", "enabled": "on", **more}


def test_a_credential_is_written_and_never_read(signed_in):
    form = backend_form(credential_header="Authorization", credential="Bearer hunter2")
    signed_in.post(url_of(Backend, "add"), form)
    backend = Backend.objects.get()
    assert unseal(backend.credential_encrypted) == "Bearer hunter2"
    assert b"hunter2" not in bytes(backend.credential_encrypted)
    for page in (url_of(Backend), url_of(Backend, "change", backend.pk), url_of(Backend, "history", backend.pk)):
        assertNotContains(signed_in.get(page), "hunter2")

    change = url_of(Backend, "change", backend.pk)
    signed_in.post(change, backend_form(credential_header="Authorization", slots="4"))
    backend.refresh_from_db()
    assert (backend.slots, unseal(backend.credential_encrypted)) == (4, "Bearer hunter2")
    assertContains(signed_in.post(change, backend_form()), "Name the header")
    signed_in.post(change, backend_form(forget_credential="on"))
    backend.refresh_from_db()
    assert backend.credential_encrypted is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "file:///etc/passwd"),
        ("url", "http://user:pw@10.0.0.5"),
        ("url", "http://169.254.169.254/"),
        ("url", "http://2130706433"),
        ("url", "http://10.0.0.5:11434/api"),
        ("credential", "a\r\nHost: b"),
        ("credential_header", "Bad Header"),
        ("credential_header", "Content-Length"),
        ("ca_certificates", "not a certificate"),
        ("slots", "0"),
        ("slots", "-1"),
    ],
)
def test_b14_what_cannot_be_a_backend_is_refused(signed_in, field, value):
    form = {**backend_form(credential_header="Authorization"), field: value}
    assert signed_in.post(url_of(Backend, "add"), form).status_code == 200
    assert not Backend.objects.exists()


def test_b14_only_superusers_name_backends(client):
    backend = make_backend("gpu")
    Backend.objects.update(credential_header="Authorization", credential_encrypted=b"x")
    every = [f"{verb}_backend" for verb in ("add", "change", "delete", "view")]
    client.force_login(make_staff(*every))
    assert client.get(url_of(Backend)).status_code == 200
    page = client.get(url_of(Backend, "change", backend.pk))
    assertContains(page, "gpu")
    assertNotContains(page, 'name="credential"')
    assert client.post(url_of(Backend, "add"), backend_form(name="mine")).status_code == 403
    assert client.post(url_of(Backend, "change", backend.pk), backend_form(url="http://10.9.9.9")).status_code == 403
    assert client.post(url_of(Backend, "delete", backend.pk), {"post": "yes"}).status_code == 403
    act(client, Backend, "delete_selected", [backend], post="yes")
    act(client, Backend, "restore", [backend])
    (after,) = Backend.objects.all()
    assert (after.url, after.archived_at) == (backend.url, None)


def test_what_the_environment_owns_is_not_edited(signed_in):
    backend = make_backend("default", set_by_environment=True)
    form = backend_form(name="mine", url="http://10.9.9.9", slots="3")
    signed_in.post(url_of(Backend, "change", backend.pk), form)
    after = Backend.objects.get()
    assert (after.name, after.url, after.slots) == ("default", backend.url, 3)


# Rules and prices.


def test_i4_a_network_with_host_bits_is_refused(signed_in):
    form = {"cidr": "10.1.2.3/8", "action": "allow"}
    assertContains(signed_in.post(url_of(IPRule, "add"), form), "host bits")
    signed_in.post(url_of(IPRule, "add"), {**form, "cidr": "2001:DB8::/32", "confirmed": "on"})
    assert IPRule.objects.get().cidr == "2001:db8::/32"


def limit_form(**more):
    return {
        "scope": "default", "metric": "requests", "window": "minute", "amount": "10", "mode": "enforce", **more,
    }  # fmt: skip


def test_a_cost_is_written_in_units_of_the_currency(signed_in):
    signed_in.post(url_of(Limit, "add"), limit_form(metric="cost", window="month", amount="25.50"))
    limit = Limit.objects.get()
    assert limit.amount == 25_500_000_000
    assertContains(signed_in.get(url_of(Limit, "change", limit.pk)), 'value="25.5"')
    signed_in.post(url_of(Limit, "change", limit.pk), limit_form(amount="7"))
    limit.refresh_from_db()
    assert (limit.metric, limit.amount) == ("requests", 7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount": "1.5"},
        {"amount": "-1"},
        {"amount": "many"},
        {"amount": "99999999999999999999"},
        {"metric": "concurrent"},
        {"window": "seconds"},
        {"scope": "tenant"},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(signed_in, wrong):
    answer = signed_in.post(url_of(Limit, "add"), limit_form(**wrong))
    assert len(answer.context["errors"]) == 1
    assert not Limit.objects.exists()


def test_a_limit_of_owners_stays_for_somebody(signed_in, acme):
    limit = make_limit(tenant=acme, managed_by=acme)
    answer = signed_in.post(url_of(Limit, "change", limit.pk), limit_form())
    assertContains(answer, "Owners of acme made it")
    assert Limit.objects.get().scope == "tenant"


# Django checks no constraint over a column that the form leaves out: these are checked by hand, or cannot be broken.
CHECKED_BY_HAND = {
    "key_expires_after_creation": "ApiKeyForm.clean_expires_at",
    "token_expires_after_creation": "ManagementTokenForm.clean_expires_at",
    "limit_managed_has_subject": "Limit.clean",
    "default_models_one_row": "OneRowAdmin.save_model sets the number",
    "cache_settings_one_row": "OneRowAdmin.save_model sets the number",
    "key_overlap_has_an_end": "both columns are written by rotation alone",
    "key_authorities_known": "save_model writes choices",
}


def test_no_form_breaks_a_constraint_that_nobody_checked(signed_in, rf, root):
    request = rf.get("/")
    request.user = root
    left_out = set()
    for model, page in admin.site._registry.items():
        new, old = page.has_add_permission(request), page.has_change_permission(request, model())
        if model is Rerating:  # its page has a form of its own, over both columns
            continue
        for row in [None] * new + [model()] * old:
            fields = {*page.get_form(request, row, change=row is not None).base_fields}
            for rule in model._meta.constraints:
                columns = {*getattr(rule, "fields", ())}
                if rule.condition is not None:
                    columns |= rule.condition.referenced_base_fields
                if not columns <= fields:
                    left_out.add(rule.name)
    assert left_out == {*CHECKED_BY_HAND}


def price_form(**more):
    return {
        "model": "qwen3:*", "input_nano": "0.15", "output_nano": "0.6", "gpu_second_nano": "0", "kwh_nano": "0",
        "watts": "0", "valid_from_0": "2020-01-01", "valid_from_1": "00:00:00", **more,
    }  # fmt: skip


def test_a_price_in_force_stays_as_it_is(signed_in):
    signed_in.post(url_of(Price, "add"), price_form())
    price = Price.objects.get()
    assert (price.input_nano, price.output_nano) == (150_000_000, 600_000_000)
    assert signed_in.post(url_of(Price, "change", price.pk), price_form(input_nano="9")).status_code == 403
    assert signed_in.post(url_of(Price, "delete", price.pk), {"post": "yes"}).status_code == 403
    assert Price.objects.get().input_nano == 150_000_000


def test_a_price_of_the_future_can_be_changed(signed_in):
    price = make_price(valid_from=NOON.replace(year=2999))
    page = url_of(Price, "change", price.pk)
    assertContains(signed_in.get(page), "<input")
    signed_in.post(page, price_form(valid_from_0="2999-01-01", input_nano="0.000000001"))
    price.refresh_from_db()
    assert price.input_nano == 1
    signed_in.post(url_of(Price, "delete", price.pk), {"post": "yes"})
    assert not Price.objects.exists()


@pytest.mark.parametrize("amount", ["-1", "0.0000000001", "NaN", "1e30"])
def test_a_price_that_cannot_be_kept_exactly_is_refused(signed_in, amount):
    assert signed_in.post(url_of(Price, "add"), price_form(input_nano=amount)).status_code == 200
    assert not Price.objects.exists()


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_nobody_without_permission_sees_a_page(client, model, bob):
    for user in (bob, make_staff(name="nobody")):
        client.force_login(user)
        assert client.get(url_of(model)).status_code in (302, 403)
