"""What an administrator or owner decided about a key, those below them cannot undo."""

import pytest
from django.urls import reverse

from tenants.models import ApiKey, Authority, Membership, Role
from tests.factories import make_key, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def key(acme, bob):
    return make_key(acme, "bobs", user=bob).row


def press(client, user, key, to):
    client.force_login(user)
    return client.post(reverse("key_switch", args=[key.prefix]), {"to": to}).status_code


def switch_off_in_admin(client, root, key):
    client.force_login(root)
    client.post(
        reverse("admin:tenants_apikey_changelist"),
        {"action": "disable", "_selected_action": [key.pk], "confirmed": "yes"},
    )


def test_a_key_that_an_administrator_switched_off_stays_off(client, key, bob, alice, root):
    switch_off_in_admin(client, root, key)
    for user in (bob, alice):
        assert press(client, user, key, "on") == 403
        key.refresh_from_db()
        assert not key.enabled
        page = client.get(reverse("key", args=[key.prefix])).content.decode()
        assert "Switch on" not in page
        assert "by an administrator" in page
    client.force_login(root)
    client.post(reverse("admin:tenants_apikey_changelist"), {"action": "enable", "_selected_action": [key.pk]})
    key.refresh_from_db()
    assert (key.enabled, key.switched_off_by) == (True, "")


def test_switching_off_again_does_not_make_it_ones_own(client, key, bob, root):
    switch_off_in_admin(client, root, key)
    assert press(client, bob, key, "off") == 302
    assert press(client, bob, key, "on") == 403


def test_an_administrator_takes_over_a_key_that_its_person_switched_off(client, key, bob, root):
    assert press(client, bob, key, "off") == 302
    switch_off_in_admin(client, root, key)
    assert press(client, bob, key, "on") == 403


def test_the_form_of_the_admin_locks_as_its_action_does(client, key, bob, root):
    client.force_login(root)
    fields = {"name": key.name, "models_allowed": "[]", "confirmed": "on"}
    client.post(reverse("admin:tenants_apikey_change", args=[key.pk]), fields)
    key.refresh_from_db()
    assert (key.enabled, key.switched_off_by) == (False, Authority.ADMINISTRATOR)
    assert press(client, bob, key, "on") == 403


def test_what_an_owner_switched_off_a_member_does_not_switch_on(client, key, bob, alice):
    assert press(client, alice, key, "off") == 302
    assert press(client, bob, key, "on") == 403
    assert press(client, alice, key, "on") == 302
    assert press(client, bob, key, "off") == 302
    assert press(client, bob, key, "on") == 302


def test_what_nobody_says_who_switched_off_is_an_administrators(client, key, bob, root):
    ApiKey.objects.update(enabled=False)  # SQL, or a program that knows no better
    assert press(client, bob, key, "on") == 403
    assert press(client, make_user(is_superuser=True, tenant=key.tenant, role=Role.OWNER), key, "on") == 302


def test_becoming_a_viewer_and_a_member_again_switches_nothing_on(client, key, bob, alice):
    client.force_login(alice)
    membership = Membership.objects.get(user=bob)
    for role in ("viewer", "member"):
        client.post(reverse("change_role", args=[membership.pk]), {"role": role, "confirmed": "yes"})
    assert press(client, bob, key, "on") == 403
    assert press(client, alice, key, "on") == 302


@pytest.mark.parametrize(("by", "who", "tokens", "holds"), [
    ("administrator", "bob", "", True),
    ("administrator", "bob", "501", True),
    ("administrator", "alice", "", True),
    ("administrator", "alice", "501", True),
    ("owner", "bob", "", True),
    ("owner", "bob", "99999", True),
    ("owner", "alice", "501", False),
    ("person", "bob", "", False),
    ("person", "bob", "501", False),
])  # fmt: skip
def test_the_most_tokens_of_an_answer_are_lifted_only_by_who_may(client, key, request, by, who, tokens, holds):
    ApiKey.objects.update(max_output_tokens=500, max_output_tokens_by=by)
    client.force_login(request.getfixturevalue(who))
    answer = client.post(reverse("key_edit", args=[key.prefix]), {"name": "renamed", "max_output_tokens": tokens})
    key.refresh_from_db()
    if holds:
        assert "set at most 500" in answer.content.decode()
        assert (key.max_output_tokens, key.name) == (500, "bobs")
    else:
        assert str(key.max_output_tokens or "") == tokens


def test_they_may_be_lowered_and_go_back_no_further_than_before(client, key, bob, root):
    ApiKey.objects.update(max_output_tokens=500, max_output_tokens_by="administrator")
    client.force_login(bob)
    url = reverse("key_edit", args=[key.prefix])
    assert client.post(url, {"name": "k", "max_output_tokens": "300"}).status_code == 302
    key.refresh_from_db()
    assert (key.max_output_tokens, key.max_output_tokens_by) == (300, "administrator")
    assert client.post(url, {"name": "k", "max_output_tokens": "301"}).status_code == 200
    assert client.post(url, {"name": "k", "max_output_tokens": "300"}).status_code == 302


def test_what_the_admin_sets_is_the_administrators(client, key, bob, root):
    ApiKey.objects.update(max_output_tokens=500, max_output_tokens_by="person")
    client.force_login(root)
    fields = {"name": key.name, "models_allowed": "[]", "enabled": "on", "max_output_tokens": "100"}
    client.post(reverse("admin:tenants_apikey_change", args=[key.pk]), fields)
    key.refresh_from_db()
    assert (key.max_output_tokens, key.max_output_tokens_by) == (100, "administrator")


def test_owners_make_keys_for_their_people_and_nobody_elses(client, acme, other, alice, bob, charlie):
    client.force_login(alice)
    url = reverse("key_new")
    viewer = make_user("viewer", tenant=acme, role=Role.VIEWER)
    for person in ("", charlie.pk, viewer.pk):
        answer = client.post(url, {"name": "k", "whose": "person", "person": person})
        assert answer.status_code == 200, person
    assert not ApiKey.objects.exists()
    assert client.post(url, {"name": "k", "whose": "person", "person": bob.pk}).status_code == 302
    key = ApiKey.objects.get()
    assert (key.user, key.created_by, key.tenant) == (bob, alice, acme)
    client.force_login(bob)  # a member's form has no such field
    client.post(url, {"name": "mine", "whose": "person", "person": alice.pk})
    assert ApiKey.objects.get(name="mine").user == bob


def test_class_and_weight_are_set_by_who_may(client, key, bob, alice):
    client.force_login(bob)
    url = reverse("key_edit", args=[key.prefix])
    client.post(url, {"name": "k", "latency_class": "batch", "weight": "9000"})
    key.refresh_from_db()
    assert (key.latency_class, key.weight) == ("batch", None)
    client.force_login(alice)
    client.post(url, {"name": "k", "latency_class": "", "weight": "50"})
    key.refresh_from_db()
    assert (key.latency_class, key.weight) == ("", 50)
    assert client.post(url, {"name": "k", "weight": "0"}).status_code == 200
