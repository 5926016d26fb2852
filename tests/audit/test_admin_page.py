"""The audit in the admin: read, filtered, searched and exported by whoever may, written by nobody."""

import csv
import re
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django.asserts import assertContains, assertNotContains

from tenants import rate_limits
from tenants.acting import Via, acting
from tenants.models import AuditEntry, IPRule, Tenant
from tests.factories import make_ip_rule, make_key, make_limit, make_tenant, make_user

pytestmark = pytest.mark.django_db

LIST = "/admin/tenants/auditentry/"
EXPORT = "/admin/tenants/auditentry/export/"
HOSTILE = '<script>alert(1)</script>"><img src=x>{{7*7}}\u202e=1+1'


@pytest.fixture
def signed_in(client, root):
    client.force_login(root)
    return client


def export_of(answer):
    text = b"".join(answer.streaming_content).decode()
    return list(csv.DictReader(StringIO(text, newline="")))


def objects(answer):
    return [row.object_repr for row in answer.context["cl"].result_list]


# Who may.


@pytest.mark.parametrize("page", [LIST, EXPORT])
def test_reading_needs_a_permission_of_its_own(client, acme, page):
    user = make_user("staff", is_staff=True)
    others = Permission.objects.exclude(codename="view_auditentry")
    user.user_permissions.set(others)
    client.force_login(user)
    assert client.get(page).status_code == 403
    assert client.get(f"{LIST}{AuditEntry.objects.first().pk}/change/").status_code == 403
    user.user_permissions.set([Permission.objects.get(codename="view_auditentry")])
    assert client.get(page).status_code == 200
    assert client.get(f"{LIST}{AuditEntry.objects.first().pk}/change/").status_code == 200


def test_a_permission_to_write_entries_does_not_exist():
    assert list(
        Permission.objects.filter(content_type__model="auditentry").values_list("codename", flat=True)
    ) == ["view_auditentry"]  # fmt: skip


@pytest.mark.parametrize("who", ["bob", None])
def test_whoever_is_not_of_the_staff_is_sent_away(client, bob, who):
    if who:
        client.force_login(bob)
    for page in (LIST, EXPORT):
        assert client.get(page).status_code in (302, 403)


def test_not_even_a_superuser_writes_entries(signed_in, acme):
    entry = AuditEntry.objects.first()
    before = list(AuditEntry.objects.values())
    assert signed_in.get(f"{LIST}add/").status_code == 403
    assert signed_in.post(f"{LIST}{entry.pk}/change/", {"actor_name": "x"}).status_code == 403
    assert signed_in.post(f"{LIST}{entry.pk}/delete/", {"post": "yes"}).status_code == 403
    signed_in.post(LIST, {"action": "delete_selected", "_selected_action": [entry.pk], "post": "yes"})
    assert list(AuditEntry.objects.values()) == before


# What it shows.


def test_what_is_done_in_the_admin_is_noted_once_with_who_and_from_where(signed_in, root):
    last = AuditEntry.objects.first().pk
    fields = {
        "cidr": "203.0.113.0/24", "action": "deny", "note": "office", "expires_at_0": "", "expires_at_1": "",
    }  # fmt: skip
    answer = signed_in.post("/admin/tenants/iprule/add/", fields, REMOTE_ADDR="192.0.2.7")
    assert answer.status_code == 302
    (entry,) = AuditEntry.objects.filter(pk__gt=last)
    assert entry.content_type.model_class() is IPRule
    assert (entry.actor, entry.actor_name, entry.via, entry.remote_addr) == (root, "root", Via.ADMIN, "192.0.2.7")
    assert entry.cid == answer["x-request-id"]


def test_an_action_on_several_rows_leaves_an_entry_for_each(signed_in, acme):
    keys = [make_key(acme).row for _ in range(3)]
    last = AuditEntry.objects.first().pk
    fields = {"action": "revoke", "_selected_action": [key.pk for key in keys], "confirmed": "yes"}
    signed_in.post("/admin/tenants/apikey/", fields)
    entries = list(AuditEntry.objects.filter(pk__gt=last))
    assert {entry.object_id for entry in entries} == {key.pk for key in keys}
    assert {entry.actor_name for entry in entries} == {"root"}
    assert len({entry.cid for entry in entries}) == 1
    assert all(set(entry.changes) == {"revoked_at"} for entry in entries)


def test_deleting_in_the_admin_is_noted_as_what_it_is(signed_in, acme):
    rule = make_ip_rule()
    last = AuditEntry.objects.first().pk
    signed_in.post(f"/admin/tenants/tenant/{acme.pk}/delete/", {"post": "yes"})
    signed_in.post(
        "/admin/tenants/iprule/", {"action": "delete_selected", "_selected_action": [rule.pk], "post": "yes"}
    )
    deleted, archived = AuditEntry.objects.filter(pk__gt=last)
    assert (archived.get_action_display(), list(archived.changes)) == ("update", ["archived_at"])
    assert (deleted.get_action_display(), deleted.object_repr) == ("delete", "allow 10.0.0.0/8")


@pytest.mark.parametrize(
    ("trusted", "forwarded", "noted"),
    [
        ([], "203.0.113.9", "127.0.0.1"),  # nobody is believed
        (["127.0.0.0/8"], "203.0.113.9", "203.0.113.9"),
        (["127.0.0.0/8"], "198.51.100.66, 203.0.113.9", "203.0.113.9"),  # the left end is what the client wrote
        (["127.0.0.0/8"], "203.0.113.9, nonsense", "127.0.0.1"),
        (["127.0.0.0/8"], "::ffff:203.0.113.9", "203.0.113.9"),
    ],
)
def test_the_address_is_told_as_for_calls(signed_in, acme, settings, trusted, forwarded, noted):
    from ipaddress import ip_network

    settings.TRUSTED_PROXIES = tuple(map(ip_network, trusted))
    fields = {"action": "disable", "_selected_action": [acme.pk], "confirmed": "yes"}
    signed_in.post("/admin/tenants/tenant/", fields, headers={"X-Forwarded-For": forwarded})
    assert AuditEntry.objects.first().remote_addr == noted


def test_behind_a_proxy_on_a_unix_socket_it_is_what_the_proxy_says(signed_in, acme, settings):
    fields = {"action": "disable", "_selected_action": [acme.pk], "confirmed": "yes"}
    for trusts, noted in ((True, "203.0.113.9"), (False, None)):
        settings.TRUSTS_UNIX = trusts
        Tenant.objects.update(enabled=True)
        signed_in.post("/admin/tenants/tenant/", fields, headers={"X-Forwarded-For": "203.0.113.9"}, REMOTE_ADDR="")
        assert AuditEntry.objects.first().remote_addr == noted


def test_an_entry_is_shown_before_and_after(signed_in, acme):
    limit = make_limit(25_500_000_000, tenant=acme, metric="cost", window="month")
    limit.amount, limit.mode = 30_000_000_000, "shadow"
    limit.save()
    page = signed_in.get(f"{LIST}{AuditEntry.objects.first().pk}/change/")
    for part in ("<td>25.5</td><td>30</td>", "<td>enforce</td><td>shadow</td>", "All changes of this limit"):
        assertContains(page, part)
    whole_life = page.context["of_this_row"]
    assert [entry.action for entry in signed_in.get(whole_life).context["cl"].result_list] == [1, 0]


def test_filters_find_by_actor_kind_action_way_tenant_and_time(signed_in, alice, acme, other):
    AuditEntry.objects.all().delete()
    with acting(alice, "192.0.2.1", Via.PAGES):
        make_ip_rule("10.0.0.0/8", tenant=acme)
    with acting("token: ci", "192.0.2.2", Via.API):
        rule = make_ip_rule("11.0.0.0/8", tenant=other)
        rule.delete()
    make_limit(7)
    AuditEntry.objects.filter(object_repr__contains="7 requests").update(timestamp=timezone.now() - timedelta(days=40))
    ten, eleven, limit = "allow 10.0.0.0/8", "allow 11.0.0.0/8", "7 requests per minute for default"
    for query, found in (
        ("", [limit, eleven, eleven, ten]),
        ("actor=alice", [ten]),
        ("actor=token: ci", [eleven, eleven]),
        ("kind=tenants.limit", [limit]),
        ("kind=nonsense", []),
        ("action=deleted", [eleven]),
        ("via__exact=api", [eleven, eleven]),
        (f"tenant={acme.pk}", [ten]),
        ("tenant=none", [limit]),
        ("tenant=999999", []),
        ("tenant=nonsense", []),
        (f"tenant={'9' * 40}", []),
        (f"timestamp__gte={(timezone.now() - timedelta(days=7)).date()}T00:00Z", [eleven, eleven, ten]),
        ("q=11.0.0", [eleven, eleven]),
        ("q=ALICE", [ten]),
        ("q=192.0.2.1", [ten]),
        ("q=%00", []),
    ):
        answer = signed_in.get(f"{LIST}?{query}")
        if query == "q=%00":
            assert answer.status_code < 500
            continue
        assert objects(answer) == found, query


def test_the_list_asks_few_questions_and_none_per_row(signed_in, acme):
    def questions():
        with CaptureQueriesContext(connection) as captured:
            assert signed_in.get(LIST).status_code == 200
        return len(captured)

    questions()
    few = questions()
    for _ in range(20):
        make_limit(key=make_key(make_tenant()).row)
    assert questions() <= few
    assert few <= 12
    assert not any("COUNT(" in query["sql"] for query in connection.queries if "auditentry" in query["sql"])


def test_a_page_that_changes_nothing_pays_nothing_for_the_audit(client, alice):
    """And one that changes a row: what was before, and the entry."""
    client.force_login(alice)
    with CaptureQueriesContext(connection) as captured:
        assert client.get(reverse("keys")).status_code == 200
    assert not any("auditentry" in query["sql"] for query in captured)
    key = make_key(alice.tenants_owned().get(), user=alice).row
    with CaptureQueriesContext(connection) as captured:
        assert client.post(reverse("key_switch", args=[key.prefix]), {"to": "off"}).status_code == 302
    about = [query["sql"] for query in captured if "auditentry" in query["sql"]]
    assert len(about) == 1
    assert about[0].startswith("INSERT")
    # Found for the page; read again for what was before; written.
    assert sum('FROM "tenants_apikey"' in query["sql"] for query in captured) == 2


def test_t8_hostile_names_are_shown_harmless(signed_in, acme):
    with acting(HOSTILE):
        tenant = make_tenant(HOSTILE)
        make_ip_rule(note=HOSTILE, tenant=tenant)
        tenant.name += "!"
        tenant.save()
    pages = [LIST, f"{LIST}?actor={HOSTILE}"]
    pages += [f"{LIST}{entry.pk}/change/" for entry in AuditEntry.objects.all()[:3]]
    for page in pages:
        answer = signed_in.get(page)
        assert answer.status_code == 200
        assertNotContains(answer, "<script>alert")
        assertNotContains(answer, "<img src=x")
        # Of the address of the page it stays in attributes, which are not shown.
        assert "\u202e" not in re.sub(r"<[^>]*>", "", answer.content.decode())
        assertContains(answer, "&lt;script&gt;alert")
        assertContains(answer, "\\u202e")


# CSV.


def test_the_export_has_what_the_list_shows_a_row_for_each_column(signed_in, acme, monkeypatch):
    monkeypatch.setattr("tenants.changes.PAGE", 2)
    with acting("token: ci", "192.0.2.2", Via.API, "request-9"):
        rules = [make_ip_rule(f"10.{number}.0.0/16", tenant=acme) for number in range(5)]
        rules[0].note = "office"
        rules[0].save()
    make_ip_rule("11.0.0.0/8")
    found = export_of(signed_in.get(f"{EXPORT}?actor=token: ci"))
    assert len(found) == 1 + 5 * 4
    first = found[0]
    assert first.pop("entry") == str(AuditEntry.objects.get(changes__has_key="note").pk)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "actor": "token: ci", "via": "management API", "address": "192.0.2.2", "action": "changed", "kind": "IP rule",
        "object": "allow 10.0.0.0/16", "tenant": "acme", "column": "note", "before": "", "after": "office",
        "request": "request-9",
    }  # fmt: skip
    assert {row["object"] for row in found} == {f"allow 10.{number}.0.0/16" for number in range(5)}


@pytest.mark.parametrize("beginning", ["=", "+", "-", "@", "\t", "\r"])
def test_t10_no_cell_of_the_export_is_a_formula(signed_in, beginning):
    Tenant.objects.create(name=f"{beginning}cmd|' /C calc'!A0")
    for row in export_of(signed_in.get(EXPORT)):
        for cell in row.values():
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.usefixtures("one_window")
def test_exports_are_limited(signed_in, settings):
    for _ in range(rate_limits.EXPORT.attempts):
        assert signed_in.get(EXPORT).status_code == 200
    assert signed_in.get(EXPORT).status_code == 429
    assert signed_in.get(LIST).status_code == 200


def test_an_export_changes_nothing_and_is_not_posted(signed_in, acme):
    assert signed_in.post(EXPORT).status_code == 405


@pytest.mark.parametrize("query", ["timestamp__gte=nonsense", "p=nonsense", "nonsense=1", "via__exact=%00"])
def test_bad_queries_get_no_500(signed_in, acme, query):
    assert signed_in.get(f"{LIST}?{query}").status_code in (200, 302, 400)
    assert signed_in.get(f"{EXPORT}?{query}").status_code in (200, 302, 400)
