"""The people's side on SQLite and on PostgreSQL: a day of a tenant, from the first link to the last key."""

import threading

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from proxy import demo
from tenants import first_run, invitations
from tenants.models import ApiKey, SetupLink, User
from tests.factories import PASSWORD, make_limit, make_tenant, make_user
from usage import reports
from usage.rollups import reconcile

ACCOUNT = {
    "username": "ada",
    "email": "ada@example.com",
    "tenant": "acme",
    "password1": PASSWORD,
    "password2": PASSWORD,
}


def path_of(link):
    return link.removeprefix("http://localhost:8080")


def test_a_tenant_is_set_up_invites_and_makes_keys(database):
    ada, nina = Client(), Client()
    assert ada.post(path_of(first_run.new_link()), ACCOUNT).status_code == 302
    tenant = User.objects.get().tenants.get()
    invited = ada.post(reverse("invite"), {"email": "nina@example.com", "tenant": tenant.pk, "role": "member"})
    nina.post(path_of(invited.context["link"]), {**ACCOUNT, "username": "nina"})
    made = nina.post(reverse("key_new"), {"name": "laptop"})
    shown = nina.get(made["location"])
    assert shown.context["clear_text"] in shown.content.decode()
    assert nina.get(made["location"]).status_code == 302
    key = ApiKey.objects.get()
    for client in (ada, nina):
        for path in (reverse("home"), reverse("usage"), reverse("keys"), reverse("key", args=[key.prefix])):
            assert client.get(path).status_code == 200
    assert nina.post(reverse("key_rotate", args=[key.prefix]), {"overlap": "1d"}).status_code == 302
    person = User.objects.get(username="nina").memberships.get()
    assert ada.post(reverse("remove_person", args=[person.pk])).status_code == 302
    assert ApiKey.objects.get().state == "revoked"


def test_the_numbers_of_the_demo_are_on_its_pages(database):
    demo.make(["http://127.0.0.1:1"])
    assert reconcile() == []
    client = Client()
    client.force_login(User.objects.get(username="olivia"))
    for by in ("day", "key", "model"):
        report = client.get(reverse("usage"), {"by": by}).context["report"]
        rows = reports.rows(report)
        assert sum(row.totals.requests for row in rows) == report.totals.requests > 500
        assert sum(row.totals.cost_nano for row in rows) == report.totals.cost_nano > 0


def test_a_limit_that_is_changed_is_locked_so_that_nobody_deletes_it_meanwhile(database):
    """Else the change would make it anew."""
    tenant = make_tenant("acme")
    ada = make_user("ada", tenant=tenant, role="owner")
    limit = make_limit(10, tenant=tenant, window="day", managed_by=tenant)
    client = Client()
    client.force_login(ada)
    fields = {"amount": "20", "mode": "enforce"}
    with CaptureQueriesContext(connection) as queries:
        assert client.post(reverse("limit_edit", args=[limit.pk]), fields).status_code == 302
    looked = [
        query["sql"] for query in queries if query["sql"].startswith("SELECT") and "tenants_limit" in query["sql"]
    ]
    if connection.vendor == "postgresql":  # SQLite has one writer at a time
        assert 'FOR UPDATE OF "tenants_limit"' in looked[0]
    limit.refresh_from_db()
    assert limit.amount == 20


def test_an_invitation_is_accepted_once_by_two_who_click_at_the_same_time(postgres_url, transactional_db):
    from tests.conftest import default_connection

    with default_connection(postgres_url):
        first_run.make_first_account(path_of(first_run.new_link()).split("/")[-2], User(username="ada"), "acme")
        ada = User.objects.get()
        new = invitations.invite(ada.tenants.get(), "nina@example.com", "member", ada)
    outcomes = []

    def accept(name):
        with default_connection(postgres_url):
            user = User.objects.create(username=name)
            started.wait(timeout=30)
            try:
                invitations.accept(new.row, user)
            except invitations.NotOpen:
                outcomes.append("refused")
            else:
                outcomes.append("in")
            connection.close()

    started = threading.Barrier(2)
    threads = [threading.Thread(target=accept, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(outcomes) == ["in", "refused"]


def test_the_first_account_is_made_once(database):
    token = path_of(first_run.new_link()).split("/")[-2]
    first_run.make_first_account(token, User(username="ada"), "acme")
    assert not SetupLink.objects.exists()
    for again in (token, "another"):
        try:
            first_run.make_first_account(again, User(username="eve"), "acme")
        except first_run.AlreadySetUp:
            continue
        raise AssertionError(again)
    assert User.objects.count() == 1
