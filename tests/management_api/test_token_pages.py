"""Tokens on the pages: people make their own, superusers anybody's."""

import re

import pytest
from django.urls import reverse

from tenants.models import AuditEntry, ManagementToken, Role
from tests.factories import make_user
from tests.management_api.conftest import Program, error

SHOWN = re.compile(r'<code id="clear-text">(ogm_\w+)</code>')


def make(client, **data):
    return client.post("/tokens/new/", {"name": "CI", "scopes": ["read"], **data}, follow=True)


def test_a_token_is_shown_once_and_works(client, alice, acme):
    client.force_login(alice)
    page = make(client, scopes=["read", "keys:write"], tenant=acme.pk)
    token = SHOWN.search(page.content.decode())[1]
    assert Program(token).get("tenants").status_code == 200
    row = ManagementToken.objects.get()
    assert (row.user, row.created_by, row.tenant, row.scopes) == (alice, alice, acme, ["read", "keys:write"])
    again = client.get(f"/tokens/{row.prefix}/secret/", follow=True)
    assert token not in again.content.decode()
    assert f"ogm_{row.prefix}_…" in client.get("/tokens/").content.decode()
    assert token not in str(list(AuditEntry.objects.values()))


@pytest.mark.parametrize(
    ("role", "offered"),
    [
        (Role.VIEWER, {"read"}),
        (Role.MEMBER, {"read", "keys:write"}),
        (Role.OWNER, {"read", "keys:write", "people:write", "rules:write"}),
    ],
)
def test_scopes_are_offered_as_far_as_they_are_of_use(client, acme, role, offered):
    client.force_login(make_user("somebody", tenant=acme, role=role))
    page = client.get("/tokens/new/").content.decode()
    assert set(re.findall(r'name="scopes" value="([a-z:]+)"', page)) == offered
    make(client, scopes=["config:write"])
    assert not ManagementToken.objects.exists()


def test_a_foreign_tenant_cannot_be_chosen(client, alice, other):
    client.force_login(alice)
    assert "other" not in client.get("/tokens/new/").content.decode()
    make(client, tenant=other.pk)
    assert not ManagementToken.objects.exists()


def test_revoking_ends_it_and_foreign_tokens_are_not_there(client, alice, bob, acme):
    client.force_login(alice)
    token = SHOWN.search(make(client).content.decode())[1]
    page = f"/tokens/{token[4:12]}/revoke/"
    client.force_login(bob)
    assert client.post(page).status_code == 404
    assert client.get(f"/tokens/{token[4:12]}/secret/").status_code == 404
    assert token[4:12] not in client.get("/tokens/").content.decode()
    assert Program(token).get("tenants").status_code == 200
    client.force_login(alice)
    assert client.get(page).status_code == 200
    client.post(page)
    assert error(Program(token).get("tenants"), 401)[0] == "invalid_token"


def test_t3_the_admin_page_is_for_superusers(client, root, bob, acme):
    add = reverse("admin:tenants_managementtoken_add")
    client.force_login(make_user("sam", is_staff=True))
    assert client.get(add).status_code == 403
    client.force_login(root)
    assert client.get(add).status_code == 200
    page = client.post(add, {"name": "theirs", "user": bob.pk, "scopes": ["read"]}, follow=True)
    token = SHOWN.search(page.content.decode())[1]
    assert [row["username"] for row in Program(token).get("users").json()["items"]] == ["bob"]
    row = ManagementToken.objects.get()
    assert (row.user, row.created_by) == (bob, root)
    listed = reverse("admin:tenants_managementtoken_changelist")
    assert "theirs" in client.get(listed).content.decode()
    assert client.get(reverse("admin:tenants_managementtoken_change", args=[row.pk])).status_code == 200
    action = {"action": "revoke", "_selected_action": [row.pk], "confirmed": "yes"}
    client.post(listed, action)
    assert error(Program(token).get("users"), 401)[0] == "invalid_token"


def test_a_superuser_is_offered_everything(client, root):
    client.force_login(root)
    assert "config:write" in client.get("/tokens/new/").content.decode()
