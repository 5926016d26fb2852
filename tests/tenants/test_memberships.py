"""What a person's keys come to when somebody changes their role or puts them out, on whichever page."""

import pytest
from django.urls import reverse

from tenants import memberships
from tenants.models import ApiKey, AuditEntry, Membership, Role
from tests.factories import make_key, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def key(acme, bob):
    make_key(acme, "a service key")
    return make_key(acme, "bobs", user=bob).row


def inline(acme, bob, **last):
    """The form of a tenant or a user, with Bob's membership in it."""
    row = Membership.objects.get(user=bob)
    fields = {"id": row.pk, "tenant": acme.pk, "user": bob.pk, "role": "member", **last}
    counts = {"TOTAL_FORMS": "1", "INITIAL_FORMS": "1"}
    return {f"memberships-{name}": value for name, value in counts.items()} | {
        f"memberships-0-{name}": value for name, value in fields.items()
    }


TENANT = {"name": "acme", "enabled": "on", "latency_class": "interactive", "weight": "100", "cache_scope": "tenant"}
USER = {"username": "bob", "is_active": "on", "date_joined_0": "2026-01-01", "date_joined_1": "00:00"}
WAYS = {
    "the membership is deleted": ("membership_delete", lambda acme, bob: {"post": "yes"}),
    "several are": ("membership_changelist", lambda acme, bob: {
        "action": "delete_selected", "_selected_action": [Membership.objects.get(user=bob).pk], "post": "yes"}),
    "they become a viewer": ("membership_change", lambda acme, bob: {
        "tenant": acme.pk, "user": bob.pk, "role": "viewer"}),
    "it becomes somebody else's": ("membership_change", lambda acme, bob: {
        "tenant": acme.pk, "user": make_user("dora").pk, "role": "member"}),
    "deleted with the tenant": ("tenant_change", lambda acme, bob: TENANT | inline(acme, bob, DELETE="on")),
    "a viewer with the tenant": ("tenant_change", lambda acme, bob: TENANT | inline(acme, bob, role="viewer")),
    "deleted with the user": ("user_change", lambda acme, bob: USER | inline(acme, bob, DELETE="on")),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_t6_in_the_admin_too_the_keys_of_who_is_out_are_off(client, root, acme, bob, key, way):
    name, fields = WAYS[way]
    pks = {"membership": Membership.objects.get(user=bob).pk, "tenant": acme.pk, "user": bob.pk}
    args = [] if name.endswith("changelist") else [pks[name.partition("_")[0]]]
    client.force_login(root)
    answer = client.post(reverse(f"admin:tenants_{name}", args=args), fields(acme, bob))
    assert answer.status_code == 302, answer.context["errors"]
    key.refresh_from_db()
    assert (key.enabled, key.switched_off_by, key.revoked_at) == (False, "administrator", None)
    assert ApiKey.objects.get(name="a service key").enabled
    assert AuditEntry.objects.filter(object_id=key.pk, changes__has_key="enabled").exists()
    assert "switched off: 1" in client.get(reverse("admin:index")).content.decode()


def test_the_admin_says_before_how_many_keys_that_are(client, root, bob, key):
    client.force_login(root)
    row = Membership.objects.get(user=bob)
    page = client.get(reverse("admin:tenants_membership_delete", args=[row.pk])).content.decode()
    assert "1 key of theirs" in page


@pytest.mark.parametrize("role", ["owner", "member"])
def test_in_the_admin_keys_stay_on_where_somebody_may_have_them(client, root, acme, bob, key, role):
    client.force_login(root)
    url = reverse("admin:tenants_membership_change", args=[Membership.objects.get(user=bob).pk])
    assert client.post(url, {"tenant": acme.pk, "user": bob.pk, "role": role}).status_code == 302
    key.refresh_from_db()
    assert key.enabled


def test_whom_somebody_else_put_out_meanwhile_is_told_of(client, alice, bob):
    seen = Membership.objects.get(user=bob)
    Membership.objects.filter(pk=seen.pk).delete()
    for act in (lambda: memberships.change_role(seen, Role.VIEWER), lambda: memberships.remove(seen)):
        with pytest.raises(memberships.NotThere, match="bob is not in acme any more"):
            act()


def test_the_last_owner_is_who_it_is_now(alice, bob, acme):
    """Somebody who was a member when the page was made."""
    seen = Membership.objects.get(user=bob)
    Membership.objects.filter(pk=seen.pk).update(role=Role.OWNER)
    Membership.objects.filter(user=alice).delete()
    for act in (lambda: memberships.change_role(seen, Role.VIEWER), lambda: memberships.remove(seen)):
        with pytest.raises(memberships.LastOwner):
            act()
