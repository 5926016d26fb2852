"""What owners see of the changes of their tenant, and nobody else's."""

import csv
import re
from datetime import timedelta
from io import StringIO

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django.asserts import assertContains, assertNotContains

from proxy.models import Webhook
from tenants import rate_limits
from tenants.acting import Via, acting
from tenants.models import AuditEntry, ManagementToken, Membership, Role, Tenant
from tenants.views import changes as views
from tests.factories import make_backend, make_ip_rule, make_key, make_limit, make_tenant, make_user

pytestmark = pytest.mark.django_db

PAGE, EXPORT = "/changes/", "/changes/export/"
HOSTILE = '<script>alert(1)</script>"><img src=x>{{7*7}}\u202e'


@pytest.fixture
def signed_in(client, alice):
    client.force_login(alice)
    return client


def export_of(answer):
    return list(csv.DictReader(StringIO(b"".join(answer.streaming_content).decode(), newline="")))


def names(answer):
    return [change.name for change in answer.context["changes"]]


@pytest.mark.parametrize("page", [PAGE, EXPORT])
def test_only_owners_see_changes(client, page, acme, bob, root):
    assert client.get(page).status_code == 302
    viewer = make_user("vera", tenant=acme, role=Role.VIEWER)
    for user in (bob, viewer, root):
        client.force_login(user)
        assert client.get(page).status_code == 403


def test_t1_an_owner_sees_the_changes_of_their_tenant_and_no_other(client, signed_in, acme, other, charlie):
    def changed(tenant, mark):
        key = make_key(tenant, f"key-{mark}").row
        make_ip_rule(tenant=tenant, note=f"rule-{mark}")
        make_ip_rule("11.0.0.0/8", key=key, note=f"keyrule-{mark}")
        make_limit(tenant=tenant, model=f"limit-{mark}")
        make_limit(key=key, model=f"keylimit-{mark}")
        Webhook.objects.create(tenant=tenant, url=f"https://{mark}.example.com/x", secret_encrypted=b"x")
        tenant.name += f"-{mark}"
        tenant.save()

    changed(acme, "ours")
    changed(other, "theirs")
    make_ip_rule(note="everybodys")
    make_backend("backend-of-all")
    own, theirs = signed_in.get(PAGE), export_of(signed_in.get(EXPORT))
    for mark in ("key-", "rule-", "keyrule-", "limit-", "keylimit-", "acme-"):
        assertContains(own, f"{mark}ours")
    for text in ("theirs", "other", "charlie", "everybodys", "backend-of-all"):
        assertNotContains(own, text)
        assert not any(text in cell for row in theirs for cell in row.values())
    client.force_login(charlie)
    assertNotContains(client.get(PAGE), "ours")


def test_t2_no_filter_reaches_beyond_the_own_tenant(signed_in, acme, other, charlie, root):
    with acting(charlie):
        make_key(other, "theirs")
    with acting(root):
        make_key(acme, "made by an administrator")
    for query in (f"tenant={other.pk}", f"who={charlie.pk}", "kind=proxy.Backend", "action=x", "since=x", "before=x"):
        answer = signed_in.get(f"{PAGE}?{query}")
        assert answer.status_code == 200
        assert names(answer) == [] or "theirs" not in str(names(answer))
    # Nor does it tell who the administrators are.
    answer = signed_in.get(f"{PAGE}?who={root.pk}")
    assert names(answer) == []
    assertNotContains(answer, "root")
    assert not signed_in.get(f"{PAGE}?kind=proxy.Backend").context["form"].is_valid()


def test_who_runs_the_gateway_is_an_administrator_here_without_name_and_address(signed_in, acme, alice, bob, root):
    AuditEntry.objects.all().delete()
    for number, (actor, via) in enumerate([
        (alice, Via.PAGES), (bob, Via.API), (root, Via.ADMIN), (root, Via.PAGES), ("token: everything", Via.API),
        ("shell: operator", Via.SHELL), ("invited: eve@example.org", Via.PAGES),
    ]):  # fmt: skip
        with acting(actor, f"192.0.2.{number}", via):
            make_key(acme, str(number), created_by=root)
    left = make_user("dora", tenant=acme)
    with acting(left, "192.0.2.7", Via.PAGES):
        make_key(acme, "7")
    left.memberships.all().delete()
    answer = signed_in.get(PAGE)
    keys = [change for change in answer.context["changes"] if change.kind == "API key"][::-1]
    assert [(change.actor, change.address) for change in keys] == [
        ("alice", "192.0.2.0"), ("bob", "192.0.2.1"), ("an administrator", ""), ("an administrator", ""),
        ("an administrator", ""), ("an administrator", ""), ("invited: eve@example.org", "192.0.2.6"),
        ("dora", "192.0.2.7"),
    ]  # fmt: skip
    for text in ("root", "operator", "everything", "192.0.2.2", "192.0.2.5"):
        assertNotContains(answer, text)


def test_a_superuser_who_is_in_the_tenant_has_a_name_there_only(client, acme, other, alice, root):
    Membership.objects.create(tenant=other, user=alice, role=Role.OWNER)
    Membership.objects.create(tenant=acme, user=root)
    with acting(root):
        make_key(acme, "here")
        make_key(other, "there")
    client.force_login(alice)
    actors = {
        change.name.split(" ")[0]: change.actor
        for change in client.get(f"{PAGE}?kind=tenants.ApiKey").context["changes"]
    }
    assert actors == {"here": "root", "there": "an administrator"}
    found = client.get(f"{PAGE}?kind=tenants.ApiKey&who={root.pk}")
    assert [name.split(" ")[0] for name in names(found)] == ["here"]


@pytest.mark.parametrize("target", ["other", "all"])
def test_a_rule_that_goes_from_tenant_to_tenant_shows_neither_the_others_values(
    client, acme, other, alice, charlie, target
):
    rule = make_ip_rule("10.1.0.0/16", tenant=acme, note="vpn of acme")
    rule.tenant = other if target == "other" else None
    rule.note = "secret of others"
    rule.save()
    for user, hidden in ((alice, "secret of others"), (charlie, "vpn of acme")):
        client.force_login(user)
        answer = client.get(PAGE)
        assertNotContains(answer, hidden)
        assert not any(hidden in cell for row in export_of(client.get(EXPORT)) for cell in row.values())


def test_tokens_and_users_are_the_administrators_business(signed_in, acme, alice):
    ManagementToken.objects.create(
        user=alice, tenant=acme, name="deploy", prefix="p", digest=b"d" * 32, scopes=["read"]
    )
    alice.first_name = "Alice"
    alice.save()
    assertNotContains(signed_in.get(PAGE), "deploy")
    assertNotContains(signed_in.get(PAGE), "first name")


def test_what_people_do_on_the_pages_is_listed_with_before_and_after(signed_in, acme, alice, bob):
    key = make_key(acme, "ci", user=bob).row
    signed_in.post(f"/keys/{key.prefix}/switch/", {"to": "off"}, REMOTE_ADDR="192.0.2.7")
    membership = Membership.objects.get(user=bob)
    signed_in.post(f"/people/{membership.pk}/role/", {"role": "viewer", "confirmed": "yes"}, REMOTE_ADDR="192.0.2.7")
    signed_in.post("/people/invite/", {"tenant": acme.pk, "email": "eve@example.org", "role": "member"})
    answer = signed_in.get(PAGE)
    invited, role, off = answer.context["changes"][:3]
    assert (off.actor, off.address, off.name) == ("alice", "192.0.2.7", f"ci (ogw_{key.prefix}_…)")
    assert ("enabled", "yes", "no") in {(line.column, line.before, line.after) for line in off.lines}
    assert [(line.before, line.after) for line in role.lines] == [("member", "viewer")]
    assert (invited.action, invited.name) == ("made", "eve@example.org to acme")
    assertContains(answer, "member → viewer")


def test_accepting_an_invitation_bears_the_address_it_was_sent_to(client, acme, alice):
    from tenants.invitations import invite

    link = invite(acme, "eve@example.org", Role.MEMBER, alice).link
    last = AuditEntry.objects.first().pk
    fields = {"username": "eve", "password1": "correct horse battery", "password2": "correct horse battery"}
    answer = client.post(link.removeprefix("http://localhost:8080"), fields)
    assert answer.status_code == 302
    entries = AuditEntry.objects.filter(pk__gt=last)
    assert {entry.actor_name for entry in entries} == {"invited: eve@example.org"}
    assert {"user", "membership", "invitation"} <= {entry.content_type.model for entry in entries}


def test_filters_and_dates(signed_in, acme, alice, bob):
    AuditEntry.objects.all().delete()
    with acting(alice, via=Via.PAGES):
        make_limit(1, tenant=acme)
    with acting(bob, via=Via.PAGES):
        make_key(acme, "bobs").row.revoke()
    make_limit(9, tenant=acme)
    old = AuditEntry.objects.filter(object_repr__startswith="9 requests")
    old.update(timestamp=timezone.now() - timedelta(days=3))
    today, three_days_ago = timezone.localdate(), timezone.localdate() - timedelta(days=3)
    for query, count in (
        ("", 4),
        ("kind=tenants.Limit", 2),
        ("action=changed", 1),
        (f"who={bob.pk}", 2),
        (f"since={today}", 3),
        (f"until={three_days_ago}", 1),
        (f"since={three_days_ago}&until={today}&kind=tenants.Limit&action=made&who={alice.pk}", 1),
        ("since=9999-12-31", 0),
    ):
        assert len(names(signed_in.get(f"{PAGE}?{query}"))) == count, query


@pytest.mark.parametrize(
    "query", ["until=9999-12-31", "since=0001-01-01", "before=99999999999999999999", "who=%00", "kind=%00"]
)
@pytest.mark.parametrize("page", [PAGE, EXPORT])
def test_bad_queries_get_no_500(signed_in, page, query):
    answer = signed_in.get(f"{page}?{query}")
    assert answer.status_code in (200, 302)


def test_pages_go_on_from_the_last_entry_and_keep_the_filters(signed_in, acme, monkeypatch):
    monkeypatch.setattr(views, "ON_A_PAGE", 3)
    for number in range(7):
        make_limit(number + 1, tenant=acme)
    seen, query = [], "kind=tenants.Limit"
    while query:
        answer = signed_in.get(f"{PAGE}?{query}")
        seen += [name.split(" ")[0] for name in names(answer)]
        query = answer.context["older"]
    assert seen == ["7", "6", "5", "4", "3", "2", "1"]


def test_the_page_asks_few_questions_and_none_per_row(signed_in, acme, bob):
    def questions():
        with CaptureQueriesContext(connection) as captured:
            assert signed_in.get(PAGE).status_code == 200
        return len(captured)

    make_key(acme)
    questions()
    few = questions()
    for _ in range(20):
        with acting(bob, via=Via.PAGES):
            make_limit(key=make_key(acme, user=bob).row)
    assert questions() == few
    assert few <= 14


def test_what_is_no_filter_is_not_passed_on(signed_in):
    page = signed_in.get(PAGE, {"user": "somebody", "action": "changed", "before": 9})
    assert page.context["query"] == "action=changed"
    assertNotContains(page, "somebody")


@pytest.mark.usefixtures("one_window")
def test_the_export_follows_the_filters_and_is_limited(signed_in, acme):
    make_limit(3, tenant=acme)
    make_key(acme, "=1+1")
    rows = export_of(signed_in.get(f"{EXPORT}?kind=tenants.ApiKey"))
    assert {row["kind"] for row in rows} == {"API key"}
    assert {row["object"][:5] for row in rows} == {"'=1+1"}
    assert signed_in.get(f"{EXPORT}?since=nonsense").status_code == 302
    assert signed_in.post(EXPORT).status_code == 405
    for _ in range(rate_limits.EXPORT.attempts):
        answer = signed_in.get(EXPORT)
    assert answer.status_code == 429


def test_t8_hostile_names_are_shown_harmless(signed_in, acme):
    make_key(acme, HOSTILE)
    rule = make_ip_rule(tenant=acme, note=HOSTILE)
    rule.note = f"{HOSTILE} and more"
    rule.save()
    acme.name = HOSTILE
    acme.save()
    answer = signed_in.get(PAGE)
    assertNotContains(answer, "<script>alert")
    assertNotContains(answer, "<img src=x")
    assertContains(answer, "\\u202e and more")
    assert "\u202e" not in re.sub(r"<[^>]*>", "", answer.content.decode())


def test_an_archived_tenants_entries_stay_for_administrators(client, acme, alice, root):
    make_key(acme, "kept")
    Tenant.objects.filter(pk=acme.pk).archive()
    client.force_login(alice)
    assert client.get(PAGE).status_code == 403
    client.force_login(root)
    assertContains(client.get("/admin/tenants/auditentry/"), "kept (ogw_")


def test_empty_pages_say_what_comes(client):
    tenant = make_tenant("fresh")
    owner = make_user("olga", tenant=tenant, role=Role.OWNER)
    AuditEntry.objects.all().delete()
    client.force_login(owner)
    assertContains(client.get(PAGE), "Nothing was changed yet")
    assertContains(client.get(f"{PAGE}?kind=tenants.Limit"), "Nothing like that")
    assertContains(client.get("/"), 'href="/changes/"')
