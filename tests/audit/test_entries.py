"""Each change of configuration leaves exactly one entry: who, from where, before and after, and never a secret."""

import ast
import getpass
import json
import os
import pwd
from datetime import timedelta
from pathlib import Path

import pytest
from allauth.mfa.models import Authenticator
from django.apps import apps
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gateway_site.start import open_to_loopback, seed_aliases
from proxy import default_backend
from proxy.credentials import seal
from proxy.models import ModelPolicy, Webhook
from proxy.triggers import WATCHED
from tenants import invitations, memberships
from tenants.acting import Via, acting
from tenants.auditing import HIDDEN, LONGEST_VALUE, change, tracked_models
from tenants.keys import rotate_key
from tenants.models import (
    ApiKey,
    AuditEntry,
    Invitation,
    IPRule,
    Limit,
    ManagementToken,
    Membership,
    Role,
    Tenant,
)
from tests.factories import make_backend, make_ip_rule, make_key, make_limit, make_price, make_tenant

pytestmark = pytest.mark.django_db

ACTION = AuditEntry.Action
ROOT = Path(__file__).parent.parent.parent
SHELL = f"shell: {pwd.getpwuid(os.getuid()).pw_name}"


@pytest.fixture
def entries():
    """What was noted since the test began, the oldest first."""
    last = AuditEntry.objects.first()
    return lambda: list(AuditEntry.objects.filter(pk__gt=last.pk if last else 0).order_by("pk"))


@pytest.fixture
def since():
    def mark():
        last = AuditEntry.objects.first()
        return lambda: list(AuditEntry.objects.filter(pk__gt=last.pk if last else 0).order_by("pk"))

    return mark


def written(entries):
    """All that entries hold, as one text."""
    return json.dumps([
        [entry.object_repr, entry.changes, entry.additional_data, entry.actor_name, entry.serialized_data]
        for entry in entries
    ])  # fmt: skip


# Rows one by one.


def test_a_row_that_is_made_changed_and_deleted_leaves_one_entry_each(entries):
    rule = make_ip_rule("10.0.0.0/8", note="office")
    rule.note = "home"
    rule.save()
    rule.delete()
    made, changed, deleted = entries()
    assert (made.action, changed.action, deleted.action) == (ACTION.CREATE, ACTION.UPDATE, ACTION.DELETE)
    assert made.changes == {
        "cidr": [None, "10.0.0.0/8"], "action": [None, "allow"], "by_owners": [None, False], "note": [None, "office"],
    }  # fmt: skip
    assert changed.changes == {"note": ["office", "home"]}
    assert deleted.changes == {
        "cidr": ["10.0.0.0/8", None], "action": ["allow", None], "by_owners": [False, None], "note": ["home", None],
    }  # fmt: skip
    assert {entry.object_repr for entry in entries()} == {"allow 10.0.0.0/8"}
    assert {entry.content_type.model_class() for entry in entries()} == {IPRule}


def test_saving_what_did_not_change_leaves_no_entry(acme, since):
    entries = since()
    acme.save()
    Tenant.objects.update_or_create(name="acme", defaults={"enabled": True})
    assert entries() == []


def test_only_the_columns_that_were_saved_are_noted(acme, since):
    entries = since()
    acme.name, acme.enabled = "renamed", False
    acme.save(update_fields=["enabled"])
    assert [entry.changes for entry in entries()] == [{"enabled": [True, False]}]


def test_what_a_row_points_at_is_written_by_the_name_it_had(acme, since):
    key = make_key(acme, "ci").row
    entries = since()
    limit = make_limit(key=key)
    assert entries()[0].changes["key"] == [None, f"ci (ogw_{key.prefix}_…)"]
    limit.key, limit.scope, limit.tenant = None, "tenant", acme
    limit.save()
    assert entries()[1].changes == {
        "scope": ["key", "tenant"], "tenant": [None, "acme"], "key": [f"ci (ogw_{key.prefix}_…)", None],
    }  # fmt: skip


def test_a_value_that_the_database_works_out_is_noted_as_it_became(since):
    backend = make_backend(slots=2)
    entries = since()
    backend.slots = F("slots") + 3
    backend.save()
    assert entries()[0].changes == {"slots": [2, 5]}


def test_money_is_written_in_units_of_the_currency(acme, since):
    entries = since()
    until = {"override_amount": 30_000_000_000, "override_until": timezone.now() + timedelta(days=1)}
    make_limit(25_500_000_000, tenant=acme, metric="cost", window="month", **until)
    make_limit(1000, tenant=acme, metric="tokens", window="day")
    make_price(input_nano=150_000_000)
    assert [entry.changes.get("amount") for entry in entries()[:2]] == [[None, "25.5"], [None, 1000]]
    assert entries()[0].changes["override_amount"] == [None, "30"]
    assert entries()[2].changes["input_nano"] == [None, "0.15"]


def test_a_long_value_is_cut():
    make_backend("long", ca_certificates="x" * 100_000)
    certificates = AuditEntry.objects.first().changes["ca_certificates"][1]
    assert len(certificates) == LONGEST_VALUE + 1
    ModelPolicy.objects.create(pattern="m", load_options={f"option-{number}": number for number in range(1000)})
    assert len(AuditEntry.objects.first().changes["load_options"][1]) == LONGEST_VALUE + 1


def test_a_change_that_the_database_refuses_leaves_no_entry(acme, other, since):
    entries = since()
    other.name = "acme"
    with pytest.raises(IntegrityError), transaction.atomic():
        other.save()
    with pytest.raises(IntegrityError), transaction.atomic():
        change(Tenant.objects.filter(pk=other.pk), name="acme")
    assert entries() == []


@pytest.mark.django_db(transaction=True)
def test_a_row_and_its_entry_are_saved_together_or_not_at_all(monkeypatch):
    tenant = make_tenant("acme")

    def fail(*args, **kwargs):
        raise RuntimeError("no room for entries")

    monkeypatch.setattr(AuditEntry, "save", fail)
    tenant.name = "renamed"
    with pytest.raises(RuntimeError):
        tenant.save()
    with pytest.raises(RuntimeError):
        Tenant.objects.create(name="other")
    assert list(Tenant.objects.values_list("name", flat=True)) == ["acme"]


def test_groups_and_permissions_of_people_are_noted(bob, since):
    group = Group.objects.create(name="support")
    permission = Permission.objects.get(codename="view_apikey")
    entries = since()
    bob.groups.add(group)
    group.permissions.add(permission)
    bob.groups.remove(group)
    given, allowed, taken = entries()
    assert given.changes["groups"] == {"type": "m2m", "operation": "add", "objects": ["support"]}
    assert allowed.changes["permissions"]["objects"] == [str(permission)]
    assert taken.changes["groups"]["operation"] == "delete"
    assert {entry.actor_name for entry in entries()} == {SHELL}


# Many rows at once.


def test_a_bulk_change_leaves_an_entry_for_each_row_that_changed(acme, since):
    on, off = make_key(acme, "on").row, make_key(acme, "off", enabled=False).row
    entries = since()
    assert change(ApiKey.objects.all(), enabled=False) == 2
    assert [(entry.object_id, entry.changes) for entry in entries()] == [(on.pk, {"enabled": [True, False]})]
    assert not ApiKey.objects.filter(enabled=True).exists()
    assert off.pk


def test_a_bulk_change_of_what_rows_are_found_by_changes_them_once(acme, since):
    make_key(acme)
    make_key(acme)
    entries = since()
    assert ApiKey.objects.revoke() == 2
    assert ApiKey.objects.revoke() == 0
    assert [entry.changes["revoked_at"][0] for entry in entries()] == [None, None]


def test_a_bulk_change_costs_a_few_questions_whatever_the_number_of_rows(acme):
    def questions(number):
        for _ in range(number):
            make_limit(key=make_key(acme).row)
        with CaptureQueriesContext(connection) as captured:
            change(Limit.objects.filter(mode="enforce"), mode="shadow")
        return len(captured)

    questions(1)
    few = questions(2)
    assert questions(40) == few
    assert few <= 10


def test_everything_that_changes_many_rows_at_once_is_noted(acme, alice, bob, since):
    key = make_key(acme, "bobs", user=bob).row
    rule_for_all = make_ip_rule("127.0.0.0/8", acts_as=make_key(acme, "old", expires_at=None, enabled=False).row)
    backend = make_backend(set_by_environment=True)
    token = ManagementToken.objects.create(user=alice, name="ci", prefix="p", digest=b"d" * 32, scopes=["read"])
    membership = Membership.objects.get(user=bob)
    first = invitations.invite(acme, "eve@example.org", Role.MEMBER, alice)

    def noted(act):
        entries = since()
        act()
        return {(entry.content_type.model, entry.object_id, *sorted(entry.changes)) for entry in entries()}

    assert ("apikey", key.pk, "enabled", "switched_off_by") in noted(
        lambda: memberships.change_role(membership, Role.VIEWER)
    )
    assert ("apikey", key.pk, "revoked_at") in noted(lambda: memberships.remove(membership))
    again = noted(lambda: invitations.invite(acme, "eve@example.org", Role.MEMBER, alice))
    assert ("invitation", first.row.pk, "withdrawn_at") in again
    newest = Invitation.objects.latest("pk")
    accepted = noted(lambda: invitations.accept(newest, bob))
    assert ("invitation", newest.pk, "accepted_at", "accepted_by") in accepted
    assert ("tenant", acme.pk, "archived_at") in noted(lambda: Tenant.objects.filter(pk=acme.pk).archive())
    assert ("backend", backend.pk, "set_by_environment") in noted(default_backend.let_go)
    assert ("managementtoken", token.pk, "revoked_at") in noted(ManagementToken.objects.revoke)
    assert len([entry for entry in noted(seed_aliases) if entry[0] == "modelalias"]) == 3
    change(Tenant.objects.all(), archived_at=None)
    assert ("iprule", rule_for_all.pk, "acts_as") in noted(open_to_loopback)


# update() and bulk_create() that need no entry, by file and what they change.
UNAUDITED = {
    "usage/rerating.py": "sums of records; the run itself is a row that is audited",
    "proxy/admin/backends.py": "a job that is to be cancelled",
    "proxy/alerts/crossings.py": "messages on their way",
    "proxy/alerts/deliveries.py": "messages on their way",
    "proxy/duties.py": "leases",
    "proxy/fleet/reports.py": "what backends report",
    "proxy/model_jobs.py": "how far jobs are",
    "proxy/models/jobs.py": "jobs that were lost",
    "tenants/auditing.py": "here they are noted",
    "tenants/management_tokens.py": "when a token was used last",
    "gateway_site/start.py": "that aliases were seeded",
    "gateway_site/management_api/config_paths.py": "the revision",
    "gateway_site/management_api/kept_answers.py": "answers kept for a while",
    "usage/rollups.py": "sums",
    "usage/texts.py": "texts that calls leave, and the entries of who read them",
}


def test_no_bulk_change_goes_past_the_audit():
    found = {}
    for app in ("tenants", "usage", "proxy", "gateway_site"):
        for path in (ROOT / app).rglob("*.py"):
            if "migrations" not in path.parts and "fake_ollama" not in path.parts:
                for call in _bulk_calls(path):
                    found.setdefault(str(path.relative_to(ROOT)), []).append(call)
    assert "tenants/auditing.py" in found
    unknown = {path: calls for path, calls in found.items() if path not in UNAUDITED}
    assert unknown == {}, "go through tenants.auditing.change()"


def _bulk_calls(path):
    """Lines of .update(column=…), .bulk_create(…) and .bulk_update(…) of querysets."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            many = node.func.attr in ("bulk_create", "bulk_update", "abulk_create", "aupdate")
            # Dictionaries and hashes take what they are updated with by place. os.environ is the one that does not.
            by_name = node.func.attr == "update" and node.keywords and not node.args
            if many or (
                by_name and "environ" not in ast.unparse(node.func) and "options" not in ast.unparse(node.func)
            ):
                yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


# Which tables.

# Of our own apps, and why their changes are nobody's decision.
MACHINES = {
    "tenants.ApiKeyLastUsed", "tenants.AuditEntry", "tenants.KeptAnswer", "tenants.ManagementTokenLastUsed",
    "tenants.SetupLink", "tenants.ShownOnce",
    "proxy.BackendReport", "proxy.CacheUse", "proxy.CallCancellation", "proxy.ConfigRevision", "proxy.Delivery",
    "proxy.Duty", "proxy.IPRuleUse", "proxy.LimitAlert", "proxy.RefusalCount", "proxy.WorkerReport",
    "proxy.ConfigImport",
    "usage.DailyTotal", "usage.DailyUsage", "usage.EndUserUsage", "usage.Retention", "usage.StoredText",
    "usage.UsageBucket", "usage.UsageRecord",
}  # fmt: skip


def test_every_table_is_audited_or_written_by_machines():
    ours = {
        model
        for app in ("tenants", "proxy", "usage")
        for model in apps.get_app_config(app).get_models()
        if not model._meta.auto_created
    }
    audited = {model for model in tracked_models() if model in ours}
    unaudited = {model._meta.label for model in ours - audited}
    assert unaudited == MACHINES, "have them tracked in audited.py, or name them above"


def test_every_table_that_rules_are_made_from_is_audited():
    tables = {model._meta.db_table for model in tracked_models()}
    assert set(WATCHED) - tables == {"proxy_callcancellation"}


# Secrets.


def test_no_secret_is_ever_in_an_entry(acme, alice, since):
    entries = since()
    made = make_key(acme, "ci")
    rotated = rotate_key(made.row, timedelta(hours=1))
    alice.set_password("a new password of hers")
    alice.save()
    backend = make_backend(credential_header="Authorization", credential_encrypted=seal("Bearer backend-secret"))
    backend.client_key_encrypted, backend.credential_encrypted = seal("client-key"), None
    backend.proxy_credential_encrypted = seal("user:pass")
    backend.save()
    invited = invitations.invite(acme, "eve@example.org", Role.MEMBER, alice)
    factor = Authenticator.objects.create(user=alice, type="totp", data={"secret": "TOP-SECRET-SEED"})
    factor.data = {"secret": "OTHER-SECRET-SEED"}
    factor.save()
    factor.record_usage()
    token = ManagementToken.objects.create(user=alice, name="t", prefix="p", digest=b"\xff" * 32, scopes=["read"])
    hook = Webhook.objects.create(url="https://hooks.example.com/services/T0/secret-path", secret_encrypted=b"\xfe\xff")
    hook.url = "https://hooks.example.com/services/T0/other-path"
    hook.save()
    rows = [made.row, rotated.row, backend, invited.row, token, hook]
    text = written(entries())
    secrets = [
        made.clear_text, rotated.clear_text, made.clear_text[13:], rotated.clear_text[13:], "a new password", "md5",
        alice.password, "backend-secret", "SECRET-SEED", invited.link.rsplit("/", 2)[-2], "secret-path", "other-path",
    ]  # fmt: skip
    for row in rows:
        for column in row._meta.concrete_fields:
            value = getattr(row, column.attname)
            if isinstance(value, bytes | memoryview):
                secrets += [bytes(value).hex(), repr(bytes(value))[2:-1], bytes(value).decode("latin-1")]
    for secret in secrets:
        assert secret not in text
        assert json.dumps(secret)[1:-1] not in text
    by_row = {entry.object_repr: entry.changes for entry in entries() if entry.action == ACTION.UPDATE}
    assert by_row["alice"] == {"password": [HIDDEN, "changed"]}
    assert by_row[str(rotated.row)]["digest"] == [HIDDEN, "changed"]
    assert by_row[str(rotated.row)]["previous_digest"] == [None, "set"]
    assert by_row[str(backend)] == {
        "client_key_encrypted": [None, "set"], "credential_encrypted": [HIDDEN, None],
        "proxy_credential_encrypted": [None, "set"],
    }  # fmt: skip
    assert by_row["https://hooks.example.com/…"] == {
        "url": ["https://hooks.example.com/…", "https://hooks.example.com/…"]
    }
    # The use of a second factor, and what it counts, is no change.
    assert [entry.action for entry in entries() if entry.content_type.model == "authenticator"] == [ACTION.CREATE]


def test_a_column_of_bytes_or_with_the_name_of_a_secret_is_hidden_though_nobody_said_so():
    for model in tracked_models():
        from tenants.auditing import _tracked

        tracked = _tracked[model]
        for column in tracked.columns:
            if column.get_internal_type() == "BinaryField" or column.name in ("password", "secret", "token", "digest"):
                assert column.name in tracked.hidden


def test_signing_in_leaves_no_entry(client, alice, since):
    alice.set_password("correct horse")
    alice.save()
    entries = since()
    assert client.post("/account/login/", {"login": "alice", "password": "correct horse"}).status_code == 302
    assert "_auth_user_id" in client.session
    assert entries() == []


# Who.


def test_what_is_done_at_the_shell_bears_the_name_of_its_user(entries):
    call_command("create_tenant", "acme", verbosity=0)
    (entry,) = entries()
    assert (entry.actor_name, entry.actor, entry.via, entry.remote_addr, entry.cid) == (
        SHELL,
        None,
        "shell",
        None,
        None,
    )


def test_the_environment_does_not_say_who_is_at_the_shell(entries, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody-else")
    monkeypatch.setenv("USER", "somebody-else")
    assert getpass.getuser() == "somebody-else"
    make_tenant()
    assert entries()[0].actor_name == SHELL


def test_commands_that_change_things_leave_entries(acme, bob, since):
    key = make_key(acme, user=bob).row
    for command, table in (
        (("create_user", "dora", "--tenant", "acme", "--role", "member"), "user membership"),
        (("create_key", "--tenant", "acme", "--name", "n"), "apikey"),
        (("revoke_key", key.prefix), "apikey"),
        (("add_backend", "gpu1", "http://127.0.0.1:11999"), "backend"),
        (("disable_backend", "gpu1"), "backend"),
        (("add_ip_rule", "10.0.0.0/8", "allow", "--tenant", "acme"), "iprule"),
        (("set_limit", "--tenant", "acme", "--metric", "requests", "--window", "hour", "--amount", "3"), "limit"),
        (("set_price", "llama3.2", "--input", "1", "--output", "2"), "price"),
        (("set_alias", "gpt-9", "llama3.2"), "modelalias"),
        (("set_model_policy", "llama3.2", "--num-ctx", "4096"), "modelpolicy"),
    ):
        entries = since()
        call_command(*command, verbosity=0)
        assert {entry.content_type.model for entry in entries()} == set(table.split()), command
        assert {entry.actor_name for entry in entries()} == {SHELL}


def test_acting_says_who_from_where_and_by_which_way(alice, entries):
    with acting(alice, "2001:db8::7", Via.API, "request-1", name="token: deploy"):
        make_tenant()
        with acting("set-up link"):
            make_tenant()
        make_tenant()
    make_tenant()
    said = [(entry.actor_name, entry.remote_addr, entry.via, entry.cid) for entry in entries()]
    assert entries()[0].actor == alice
    assert said[1:2] + said[2:3] + said[3:] == [
        ("set-up link", "2001:db8::7", "api", "request-1"),
        ("token: deploy", "2001:db8::7", "api", "request-1"),
        (SHELL, None, "shell", None),
    ]


def test_a_name_is_kept_when_the_user_is_called_otherwise_later(alice, entries):
    with acting(alice):
        make_tenant()
    alice.username = "alicia"
    alice.save()
    assert entries()[-2].actor_name == "alice"


def test_entries_stay_when_what_they_are_about_is_archived_or_deleted_for_good(acme, since):
    entries = since()
    make_ip_rule(tenant=acme)
    acme.archive()
    assert len(entries()) == 2
    acme.refresh_from_db()
    IPRule.objects.all().delete()
    acme.delete()
    assert [entry.action for entry in entries()] == [ACTION.CREATE, ACTION.UPDATE, ACTION.DELETE, ACTION.DELETE]


def test_whom_a_row_concerns(acme, other, since):
    key = make_key(acme).row
    entries = since()
    make_ip_rule("10.0.0.0/8", key=key)
    make_ip_rule("11.0.0.0/8")
    rule = make_ip_rule("12.0.0.0/8", tenant=other)
    rule.tenant = acme
    rule.save()
    rule.tenant = None
    rule.save()
    assert [entry.tenant for entry in entries()] == [acme, None, other, acme, acme]
    assert [bool(entry.additional_data) for entry in entries()] == [False, False, False, True, True]


# Forgetting.


def test_old_entries_go_and_young_ones_stay(settings, monkeypatch, capsys):
    monkeypatch.setattr("tenants.audit_retention.BATCH", 2)
    settings.AUDIT_RETENTION_DAYS = 30
    for _ in range(7):
        make_tenant()
    old = AuditEntry.objects.values("pk")[:5]
    AuditEntry.objects.filter(pk__in=list(old.values_list("pk", flat=True))).update(
        timestamp=timezone.now() - timedelta(days=31)
    )
    call_command("prune_audit")
    assert "Deleted 5 entries" in capsys.readouterr().out
    assert AuditEntry.objects.count() == 2
    call_command("prune_audit", "--json")
    assert json.loads(capsys.readouterr().out)["changed"] is False


def test_no_entry_goes_where_all_are_kept(settings):
    settings.AUDIT_RETENTION_DAYS = 0
    make_tenant()
    AuditEntry.objects.update(timestamp=timezone.now() - timedelta(days=10_000))
    call_command("prune_audit", verbosity=0)
    assert AuditEntry.objects.count() == 1
    call_command("prune_audit", "--days", "400", verbosity=0)
    assert AuditEntry.objects.count() == 0
