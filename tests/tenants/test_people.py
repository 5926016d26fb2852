"""The people of a tenant: invited by a link that works once, given roles, and taken out again."""

import smtplib

import pytest
from django.core import mail
from django.db import connection
from django.db.models.signals import pre_save
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from tenants import invitations
from tenants.models import ApiKey, Invitation, Membership, Role, User
from tests.factories import PASSWORD, make_admin, make_key, make_tenant, make_user

pytestmark = pytest.mark.django_db

ACCOUNT = {"username": "nina", "first_name": "Nina", "last_name": "N", "password1": PASSWORD, "password2": PASSWORD}


def path_of(new):
    return new.link.removeprefix("http://localhost:8080")


@pytest.fixture
def invited(acme, alice):
    return invitations.invite(acme, "nina@example.com", Role.MEMBER, alice)


def test_an_invitation_is_sent_and_makes_an_account_with_its_role(client, acme, alice, settings):
    settings.EMAIL_IS_SENT = True
    client.force_login(alice)
    form = {"email": "nina@example.com", "tenant": acme.pk, "role": "viewer"}
    assert client.post(reverse("invite"), form)["location"] == reverse("people")
    (message,) = mail.outbox
    assert message.to == ["nina@example.com"]
    link = next(line for line in message.body.splitlines() if line.startswith(settings.SITE_URL))
    client.logout()
    path = link.removeprefix(settings.SITE_URL)
    page = client.get(path)
    assert page["Referrer-Policy"] == "strict-origin"
    assert client.post(path, ACCOUNT)["location"] == reverse("home")
    nina = User.objects.get(username="nina")
    assert (nina.email, nina.get_full_name(), nina.check_password(PASSWORD)) == ("nina@example.com", "Nina N", True)
    assert not nina.is_staff
    assert Membership.objects.get(user=nina).role == "viewer"
    assert nina.emailaddress_set.get().verified
    assert client.get(reverse("home")).wsgi_request.user == nina
    client.logout()
    assert client.get(path).status_code == 404
    assert client.post(path, {**ACCOUNT, "username": "second"}).status_code == 404


def test_without_mail_the_link_is_shown_to_who_invites_once(client, acme, alice):
    client.force_login(alice)
    form = {"email": "nina@example.com", "tenant": acme.pk, "role": "member"}
    page = client.post(reverse("invite"), form)
    link = page.context["link"]
    assert link in page.content.decode()
    assert page["Cache-Control"] == "no-store"
    assert not mail.outbox
    assert link not in client.get(reverse("people")).content.decode()
    client.logout()
    assert client.get(link.removeprefix("http://localhost:8080")).status_code == 200
    assert Invitation.objects.get().link_shown


def test_a_mail_server_that_refuses_loses_no_invitation(client, acme, alice, settings, monkeypatch):
    settings.EMAIL_IS_SENT = True

    def refuse(*args, **kwargs):
        raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")

    monkeypatch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", refuse)
    client.force_login(alice)
    page = client.post(reverse("invite"), {"email": "nina@example.com", "tenant": acme.pk, "role": "member"})
    assert page.status_code == 200
    assert "did not take the message" in page.content.decode()
    # Who was shown the link may follow it as well: it proves no mailbox.
    path = page.context["link"].removeprefix(settings.SITE_URL)
    client.logout()
    assert client.post(path, ACCOUNT)["location"] == reverse("home")
    assert not User.objects.get(username="nina").emailaddress_set.get().verified


@pytest.mark.parametrize(
    "end",
    [
        lambda row: setattr(row, "expires_at", timezone.now()),
        lambda row: setattr(row, "withdrawn_at", timezone.now()),
        lambda row: setattr(row, "accepted_at", timezone.now()),
        lambda row: row.tenant.archive(),
    ],
    ids=["too old", "withdrawn", "accepted", "tenant deleted"],
)
def test_an_invitation_that_ended_makes_no_account(client, invited, end):
    end(invited.row)
    invited.row.save()
    assert client.get(path_of(invited)).status_code == 404
    assert client.post(path_of(invited), ACCOUNT).status_code == 404
    assert not User.objects.filter(username="nina").exists()


def test_an_invitation_made_again_ends_the_one_before(client, acme, alice, invited):
    again = invitations.invite(acme, "NINA@example.com", Role.OWNER, alice)
    assert client.get(path_of(invited)).status_code == 404
    assert client.get(path_of(again)).status_code == 200


def test_the_database_does_not_hold_the_link(invited):
    token = path_of(invited).split("/")[-2]
    row = Invitation.objects.values().get()
    assert token not in str(row)
    assert token.encode() not in bytes(row["digest"])


def test_who_is_signed_in_joins_with_their_account_after_a_question(client, acme, charlie, invited):
    client.force_login(charlie)
    assert "Join acme?" in client.get(path_of(invited)).content.decode()
    assert not charlie.memberships.filter(tenant=acme).exists()
    client.post(path_of(invited))
    assert charlie.memberships.get(tenant=acme).role == "member"


def test_who_is_in_the_tenant_keeps_their_role(client, acme, alice):
    new = invitations.invite(acme, "alice@example.com", Role.VIEWER, alice)
    client.force_login(alice)
    client.post(path_of(new))
    assert alice.memberships.get(tenant=acme).role == "owner"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"password2": "another"}, "password2"),
        ({"password1": "12345", "password2": "12345"}, "password1"),
        ({"password1": "nina@example.com", "password2": "nina@example.com"}, "password1"),
        ({"username": "ALICE"}, "username"),
        ({"username": ""}, "username"),
    ],
)
def test_an_account_needs_a_free_name_and_a_good_password(client, invited, changes, field):
    answer = client.post(path_of(invited), {**ACCOUNT, **changes})
    assert answer.context["form"].errors[field]
    assert User.objects.count() == 1


def test_whose_mailbox_it_is_already_signs_in_instead(client, acme, alice, settings):
    settings.EMAIL_IS_SENT = True
    invited = invitations.invite(acme, "nina@example.com", Role.MEMBER, alice)
    invitations.note_address(make_user("nina-of-old", email="nina@example.com"), "nina@example.com", verified=True)
    answer = client.post(path_of(invited), ACCOUNT)
    assert answer.status_code == 200
    assert "Sign in to it, and follow the link again" in answer.content.decode()
    assert not User.objects.filter(username="nina").exists()
    assert Invitation.objects.open().exists()


def test_of_two_who_choose_a_name_at_once_one_is_asked_for_another(client, invited):
    def be_quicker(instance, **_):
        if not User.objects.filter(username="nina").exists():
            User.objects.bulk_create([User(username="nina")])

    pre_save.connect(be_quicker, sender=User)
    try:
        answer = client.post(path_of(invited), ACCOUNT)
    finally:
        pre_save.disconnect(be_quicker, sender=User)
    assert answer.status_code == 200
    assert "Choose another name" in answer.content.decode()
    assert Invitation.objects.open().exists()
    assert client.post(path_of(invited), {**ACCOUNT, "username": "nina2"}).status_code == 302


def test_forged_fields_make_nobody_an_administrator(client, invited):
    client.post(path_of(invited), {**ACCOUNT, "is_staff": "on", "is_superuser": "on", "email": "x@example.com"})
    nina = User.objects.get(username="nina")
    assert (nina.is_staff, nina.is_superuser, nina.email) == (False, False, "nina@example.com")


def test_t6_owners_invite_to_their_own_tenants_alone(client, alice, other):
    client.force_login(alice)
    answer = client.post(reverse("invite"), {"email": "x@example.com", "tenant": other.pk, "role": "owner"})
    assert answer.context["form"].errors["tenant"]
    client.force_login(make_admin("root"))
    answer = client.post(reverse("invite"), {"email": "x@example.com", "tenant": other.pk, "role": "owner"})
    assert answer.context["link"]


def test_who_becomes_a_viewer_has_their_keys_switched_off_after_a_question(client, acme, alice, bob):
    key = make_key(acme, user=bob).row
    make_key(acme, user=bob).row.revoke()
    client.force_login(alice)
    url = reverse("change_role", args=[bob.memberships.get().pk])
    assert "1 key of theirs in this tenant is switched off" in client.post(url, {"role": "viewer"}).content.decode()
    assert bob.memberships.get().role == "member"
    client.post(url, {"role": "viewer", "confirmed": "yes"})
    assert bob.memberships.get().role == "viewer"
    key.refresh_from_db()
    assert key.state == "disabled"
    why = client.get(reverse("key", args=[key.prefix])).content.decode()
    assert "bob is a viewer of acme, and viewers have no keys" in why


def test_what_switches_nothing_off_is_not_asked_about(client, acme, alice, bob):
    client.force_login(alice)
    for role in ("viewer", "member", "owner"):
        assert client.post(reverse("change_role", args=[bob.memberships.get().pk]), {"role": role}).status_code == 302
        assert bob.memberships.get().role == role


def test_who_is_removed_loses_their_keys_there_and_no_others(client, acme, other, alice, bob):
    Membership.objects.create(user=bob, tenant=other)
    here, there = make_key(acme, user=bob).row, make_key(other, user=bob).row
    service = make_key(acme).row
    client.force_login(alice)
    membership = bob.memberships.get(tenant=acme)
    assert "1 key of theirs" in client.get(reverse("remove_person", args=[membership.pk])).content.decode()
    client.post(reverse("remove_person", args=[membership.pk]))
    assert [tenant.name for tenant in bob.tenants.all()] == ["other"]
    states = {key.pk: key.state for key in ApiKey.objects.all()}
    assert states == {here.pk: "revoked", there.pk: "active", service.pk: "active"}


def test_the_last_owner_stays_one_and_is_told_why(client, acme, alice, bob):
    client.force_login(alice)
    membership = alice.memberships.get()
    change, remove = (reverse(name, args=[membership.pk]) for name in ("change_role", "remove_person"))
    for url in (change, remove):
        page = client.post(url, {"role": "member", "confirmed": "yes"}, follow=True)
        assert page.redirect_chain == [(reverse("people"), 302)]
        assert "alice is the last owner of acme. Make another one first." in page.content.decode()
    client.post(reverse("change_role", args=[bob.memberships.get().pk]), {"role": "owner"})
    assert "This is you" in client.post(change, {"role": "member"}).content.decode()
    assert alice.memberships.get().role == "owner"
    answer = client.post(change, {"role": "member", "confirmed": "yes"})
    assert answer["location"] == reverse("home")
    assert client.get(reverse("people")).status_code == 403


@pytest.mark.parametrize("role", ["", "admin", "superuser"])
def test_only_roles_that_exist_are_given(client, alice, bob, role):
    client.force_login(alice)
    assert client.post(reverse("change_role", args=[bob.memberships.get().pk]), {"role": role}).status_code == 403


def test_the_role_of_a_member_of_two_tenants_changes_in_one(client, acme, other, alice):
    person = make_user("person", tenant=acme)
    Membership.objects.create(user=person, tenant=other)
    client.force_login(alice)
    client.post(reverse("change_role", args=[person.memberships.get(tenant=acme).pk]), {"role": "owner"})
    assert {m.tenant.name: m.role for m in person.memberships.all()} == {"acme": "owner", "other": "member"}


def test_the_page_of_many_tenants_asks_as_few_questions_as_that_of_two(client):
    root = make_admin()
    client.force_login(root)

    def questions():
        with CaptureQueriesContext(connection) as queries:
            page = client.get(reverse("people"))
        assert page.status_code == 200
        return len(queries)

    def make(number):
        for _ in range(number):
            tenant = make_tenant()
            for _ in range(2):
                make_user(tenant=tenant)
                invitations.invite(tenant, "nina@example.com", Role.MEMBER, root)

    make(2)
    few = questions()
    make(5)
    assert questions() == few
