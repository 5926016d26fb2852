"""Signing in, by name or address, with a second factor; new passwords; where one is sent afterwards."""

import re

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import (
    TOTP,
    format_hotp_value,
    generate_totp_secret,
    hotp_value,
    yield_hotp_counters_from_time,
)
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse

from tenants.management_tokens import create_token
from tenants.models import User
from tenants.rate_limits import SECOND_FACTOR
from tests.factories import PASSWORD, make_admin, make_user

pytestmark = pytest.mark.django_db

NO_MEMBERSHIPS = {"memberships-TOTAL_FORMS": "0", "memberships-INITIAL_FORMS": "0"}
NEW_PASSWORD = "a fresh battery staples horses"


@pytest.fixture
def nina(db):
    return make_user("nina", email="nina@example.com", password=PASSWORD)


def sign_in(client, login="nina", password=PASSWORD, *, REMOTE_ADDR="127.0.0.1", **fields):
    form = {"login": login, "password": password, **fields}
    return client.post(reverse("account_login"), form, REMOTE_ADDR=REMOTE_ADDR)


def confirm(client):
    """Who changes how they sign in gives the password again."""
    assert client.post(reverse("account_reauthenticate"), {"password": PASSWORD}).status_code == 302


def who(client):
    return client.get(reverse("account_login")).wsgi_request.user


def code_of(secret):
    return format_hotp_value(hotp_value(secret, next(yield_hotp_counters_from_time())))


@pytest.mark.parametrize("login", ["nina", "nina@example.com", "NINA@example.com"])
def test_one_signs_in_by_name_or_address(client, nina, login):
    assert sign_in(client, login)["location"] == reverse("home")
    assert who(client) == nina


@pytest.mark.parametrize(("login", "password"), [("nina", "wrong"), ("nobody", PASSWORD), ("nina", ""), ("", PASSWORD)])
def test_a3_wrong_names_and_wrong_passwords_are_answered_alike(client, nina, login, password):
    answer = sign_in(client, login, password)
    assert answer.status_code == 200
    assert not who(client).is_authenticated
    if login and password:
        assert "are not correct" in answer.content.decode()


def test_who_is_switched_off_stays_out_and_is_out_at_once(client, nina):
    sign_in(client)
    User.objects.update(is_active=False)
    assert not who(client).is_authenticated
    sign_in(client)
    assert not who(client).is_authenticated


@pytest.mark.parametrize(
    ("wanted", "sent_to"),
    [
        ("/usage/", "/usage/"),
        ("/keys/?revoked", "/keys/?revoked"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("///evil.example", "/"),
        ("http:///evil.example", "/"),
        ("/\\evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("http://localhost:8080/usage/", "http://localhost:8080/usage/"),
        ("http://testserver/usage/", "/"),
    ],
)
def test_t12_one_is_sent_to_this_site_alone(client, nina, wanted, sent_to):
    assert sign_in(client, next=wanted)["location"] == sent_to
    # Whoever is signed in already is sent on at once.
    assert client.get(reverse("account_login"), {"next": wanted})["location"] == sent_to


def test_the_doors_of_the_admin_and_of_the_pages_are_one(client, nina):
    answer = client.get("/admin/proxy/backend/", follow=True)
    assert answer.redirect_chain[-1][0] == "/account/login/?next=%2Fadmin%2Fproxy%2Fbackend%2F"
    make_admin("root", password=PASSWORD)
    assert sign_in(client, "root", next="/admin/proxy/backend/")["location"] == "/admin/proxy/backend/"
    assert client.get("/admin/proxy/backend/").status_code == 200


def test_the_admins_door_sends_nobody_round_in_circles(client, nina):
    sign_in(client)
    answer = client.get("/admin/", follow=True)
    assert answer.status_code == 403
    assert "for staff" in answer.content.decode()
    assert client.get("/admin/login/", {"next": "https://evil.example/"}).status_code == 403
    client.force_login(make_admin("root"))
    assert client.get("/admin/login/", {"next": "https://evil.example/"})["location"] == "/admin/"


def test_a12_the_session_changes_with_the_sign_in_and_ends_with_the_sign_out(client, nina):
    client.get(reverse("account_login"))
    sign_in(client)
    session = client.session.session_key
    assert client.get(reverse("account_logout")).status_code == 200  # a question: GET changes nothing
    assert who(client) == nina
    client.post(reverse("account_logout"))
    client.cookies["sessionid"] = session
    assert not who(client).is_authenticated


def test_a12_a_new_password_ends_the_other_sessions(client, nina):
    other = Client()
    sign_in(client)
    sign_in(other)
    fields = {"oldpassword": PASSWORD, "password1": NEW_PASSWORD, "password2": NEW_PASSWORD}
    assert client.post(reverse("account_change_password"), fields).status_code == 302
    assert not who(other).is_authenticated
    assert who(client) == nina


def test_a_forgotten_password_is_replaced_by_a_link_that_works_once(client, nina):
    client.post(reverse("account_reset_password"), {"email": "nina@example.com"}, headers={"host": "testserver"})
    (message,) = mail.outbox
    link = re.search(r"http\S+", message.body)[0]
    # Not from the Host header, which whoever asked may have forged (N4).
    assert link.startswith("http://localhost:8080/account/password/reset/key/")
    assert "testserver" not in message.body + message.subject
    page = client.get(link.removeprefix("http://localhost:8080"), follow=True)
    path = page.redirect_chain[-1][0]
    assert client.post(path, {"password1": NEW_PASSWORD, "password2": NEW_PASSWORD}).status_code == 302
    nina.refresh_from_db()
    assert nina.check_password(NEW_PASSWORD)
    again = client.get(link.removeprefix("http://localhost:8080"), follow=True)
    assert "invalid" in again.content.decode().lower()


def test_a3_asking_for_a_new_password_tells_nobody_who_has_an_account(client, nina):
    pages = []
    for address in ("nina@example.com", "nobody@example.com"):
        answer = client.post(reverse("account_reset_password"), {"email": address}, follow=True)
        pages.append(re.sub(r'(value|name="csrf[^"]*")="[^"]*"', "", answer.content.decode()))
    assert pages[0] == pages[1]
    assert len(mail.outbox) == 1


def test_nobody_signs_up_unasked(client):
    answer = client.post(
        reverse("account_signup"),
        {"username": "eve", "email": "eve@example.com", "password1": PASSWORD, "password2": PASSWORD},
    )
    assert "by invitation" in answer.content.decode()
    assert not User.objects.exists()


def test_a_second_factor_is_asked_for_and_kept_encrypted(client, nina, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)  # a code must not end between being made and sent
    sign_in(client)
    assert client.get(reverse("mfa_activate_totp"))["location"].startswith(reverse("account_reauthenticate"))
    confirm(client)
    page = client.get(reverse("mfa_activate_totp"))
    secret = page.context["form"].secret
    assert "data:image/svg+xml" in page.content.decode()
    client.post(reverse("mfa_activate_totp"), {"code": code_of(secret)})
    kept = Authenticator.objects.get(type="totp").data
    assert secret not in str(kept)
    codes = client.get(reverse("mfa_view_recovery_codes")).context["unused_codes"]
    assert len(codes) >= 8
    with connection.cursor() as cursor:
        cursor.execute("SELECT data FROM mfa_authenticator")
        stored = str(cursor.fetchall())
    assert secret not in stored
    assert codes[0] not in stored
    client.post(reverse("account_logout"))

    assert sign_in(client)["location"].startswith(reverse("mfa_authenticate"))
    assert not who(client).is_authenticated
    assert client.post(reverse("mfa_authenticate"), {"code": "000000"}).status_code == 200
    assert not who(client).is_authenticated
    client.post(reverse("mfa_authenticate"), {"code": codes[0]})
    assert who(client) == nina
    client.post(reverse("account_logout"))
    sign_in(client)
    client.post(reverse("mfa_authenticate"), {"code": codes[0]})  # a recovery code works once
    assert not who(client).is_authenticated


@pytest.mark.usefixtures("one_window")
def test_a11_second_factors_cannot_be_guessed_from_many_addresses(client, nina):
    TOTP.activate(nina, generate_totp_secret())
    sign_in(client)
    for number in range(SECOND_FACTOR.attempts):
        guess = {"code": f"{number:06}"}
        answer = client.post(reverse("mfa_authenticate"), guess, REMOTE_ADDR=f"198.51.100.{number}")
        assert answer.status_code == 200, number
    another = Client()  # who has the password can begin again, but is counted by whose account it is
    sign_in(another, REMOTE_ADDR="203.0.113.1")
    answer = another.post(reverse("mfa_authenticate"), {"code": "999999"}, REMOTE_ADDR="203.0.113.1")
    assert answer.status_code == 429


def test_every_page_of_the_account_opens(client, nina):
    sign_in(client)
    confirm(client)
    for name in (
        "account", "account_email", "account_change_password", "account_reauthenticate", "account_logout", "mfa_index",
        "mfa_activate_totp", "mfa_list_webauthn", "mfa_add_webauthn", "socialaccount_connections",
    ):  # fmt: skip
        answer = client.get(reverse(name))
        assert answer.status_code == 200, name
        assert " style=" not in answer.content.decode(), name


def test_nobody_gets_a_name_that_differs_from_anothers_in_case_alone(client, root, alice, bob):
    """allauth asks without regard to it: neither of them could sign in by name any more."""
    program = create_token(root, "test", ["people:write"]).clear_text
    refused = client.post(
        "/manage/api/users", {"username": "Alice"}, "application/json", headers={"authorization": f"Bearer {program}"}
    )
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "username")
    with pytest.raises(CommandError, match="has this name already"):
        call_command("create_user", "ALICE", tenant="acme", role="member")
    client.force_login(root)
    fields = {"username": "aLice", "is_active": "on", "date_joined_0": "2026-01-01", "date_joined_1": "00:00"}
    page = client.post(reverse("admin:tenants_user_change", args=[bob.pk]), {**fields, **NO_MEMBERSHIPS})
    assert "has this name already" in page.content.decode()
    assert User.objects.filter(username__iexact="alice").get() == alice
    # Whoever has such a name from before goes on to be changed, and changes the case of their own.
    User.objects.filter(pk=bob.pk).update(username="ALICE")
    bob.refresh_from_db()
    bob.full_clean()
    User.objects.filter(pk=bob.pk).update(username="bob")
    bob.refresh_from_db()
    bob.username = "Bob"
    bob.full_clean()
