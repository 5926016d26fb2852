"""Everything that can be guessed or costs something has a limit; each test sees it come, and not before."""

import pytest
from django.urls import reverse

from tenants import invitations, rate_limits
from tenants.models import Role
from tests.control_plane.test_sign_in import DeadCache  # noqa: F401 - named in the settings below
from tests.factories import PASSWORD, make_admin, make_key

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("one_window")]


@pytest.fixture(params=["alive", "dead"])
def cache(request, settings):
    if request.param == "dead":
        settings.CACHES = {**settings.CACHES, "ratelimit": {"BACKEND": "tests.control_plane.test_sign_in.DeadCache"}}


def path_of_invitation(acme, alice):
    return invitations.invite(acme, "x@example.com", Role.MEMBER, alice).link.removeprefix("http://localhost:8080")


# name → (allowance, who is signed in, path, fields)
POSTS = {
    "password reset": (rate_limits.PASSWORD_RESET, None, "account_reset_password", {"email": "a@example.com"}),
    "password change": (rate_limits.SIGN_IN, "bob", "account_change_password", {"oldpassword": "guess"}),
    "reauthentication": (rate_limits.SIGN_IN, "bob", "account_reauthenticate", {"password": "guess"}),
    "new key": (rate_limits.NEW_KEY, "bob", "key_new", {"name": "k"}),
    "rotation": (rate_limits.NEW_KEY, "bob", "key_rotate", {"overlap": "0"}),
    "invitation": (rate_limits.MAIL, "alice", "invite", {"email": "nobody"}),
    "e-mail address": (rate_limits.MAIL, "bob", "account_email", {"email": "nobody", "action_add": ""}),
    "backend test": (rate_limits.TEST_BUTTON, "root", "setup_backend", {"test": "1"}),
    "passkey": (rate_limits.SIGN_IN, None, "mfa_login_webauthn", {"credential": "{}"}),
    "set-up link": (rate_limits.INVITATION_LINK, None, "setup_account", {}),
}


@pytest.mark.parametrize("name", POSTS)
def test_a11_after_the_allowance_comes_429(client, cache, acme, alice, bob, name):
    allowance, who, view, fields = POSTS[name]
    people = {"alice": alice, "bob": bob}
    bob.set_password(PASSWORD)
    bob.save()
    if who:
        client.force_login(people.get(who) or make_admin(who))
    arguments = []
    if view == "key_rotate":
        arguments = [make_key(acme, user=bob).row.prefix]
    if view == "setup_account":
        arguments = ["no-such-token"]
    path = reverse(view, args=arguments)
    for number in range(allowance.attempts):
        assert client.post(path, fields).status_code not in (429, 500), number
    refused = client.post(path, fields)
    assert refused.status_code == 429
    assert 0 < int(refused["Retry-After"]) <= allowance.seconds
    page = refused.content.decode()
    assert "Too many" in page
    assert "Try again in" in page
    # Looking is free.
    assert client.get(path).status_code in (200, 302, 404)


def test_links_of_invitations_cannot_be_tried_for_ever(client, cache, acme, alice):
    path = path_of_invitation(acme, alice)
    for number in range(rate_limits.INVITATION_LINK.attempts):
        assert client.get(reverse("invitation", args=[f"guess-{number}"])).status_code == 404
    assert client.get(path).status_code == 429
    assert client.get(path, REMOTE_ADDR="203.0.113.9").status_code == 200


def test_one_person_does_not_use_up_the_keys_of_another(client, acme, alice, bob):
    client.force_login(bob)
    for _ in range(rate_limits.NEW_KEY.attempts + 1):
        last = client.post(reverse("key_new"), {"name": "k"})
    assert last.status_code == 429
    client.force_login(alice)
    assert client.post(reverse("key_new"), {"name": "k", "whose": "mine"}).status_code == 302


def test_without_the_limit_nothing_stops_it(client, bob, settings):
    """What the tests above would see if the views were not limited."""
    settings.RATELIMIT_ENABLE = False
    client.force_login(bob)
    answers = {
        client.post(reverse("key_new"), {"name": "k"}).status_code for _ in range(rate_limits.NEW_KEY.attempts + 1)
    }
    assert answers == {302}
