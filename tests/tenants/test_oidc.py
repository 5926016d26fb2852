"""Sign-in by an OpenID Connect provider, which is a real server here."""

from urllib.parse import parse_qs, urlsplit

import pytest
from allauth.socialaccount.models import SocialAccount
from django.db.models.signals import pre_save
from django.urls import reverse
from django.utils import timezone

from gateway_site.page_headers import content_security_policy
from tenants import invitations
from tenants.models import Invitation, Role, Tenant, User
from tests.factories import make_user
from tests.tenants.issuer import CLIENT_ID, Issuer

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def server():
    with Issuer() as running:
        yield running


@pytest.fixture
def issuer(server, settings):
    server.__init__()
    point_to(settings, server.url)
    return server


def point_to(settings, url):
    settings.OIDC_ISSUER, settings.OIDC_NAME = url, "Example SSO"
    settings.SOCIALACCOUNT_PROVIDERS = {
        "openid_connect": {
            "APPS": [
                {
                    "provider_id": "oidc",
                    "name": "Example SSO",
                    "client_id": CLIENT_ID,
                    "secret": "a secret",
                    "settings": {"server_url": url, "oauth_pkce_enabled": True},
                }
            ]
        }
    }


def sign_in(client, **query):
    """The answer to coming back from the provider."""
    began = client.post("/account/oidc/oidc/login/", query_params=query)
    assert began.status_code == 302, began.content.decode()
    asked = parse_qs(urlsplit(began["location"]).query)
    assert asked["redirect_uri"] == ["http://localhost:8080/account/oidc/oidc/login/callback/"]
    assert asked["code_challenge_method"] == ["S256"]
    return client.get("/account/oidc/oidc/login/callback/", {"code": "a code", "state": asked["state"][0]})


def who(client):
    return client.get(reverse("home")).wsgi_request.user


def test_who_was_invited_comes_in_with_the_role_of_the_invitation(client, issuer, acme, alice):
    invitations.invite(acme, "Nina@example.com", Role.VIEWER, alice)
    assert sign_in(client, next="/usage/")["location"] == "/usage/"
    nina = who(client)
    assert (nina.username, nina.email, nina.is_staff) == ("nina", "nina@example.com", False)
    assert nina.memberships.get(tenant=acme).role == "viewer"
    assert not nina.has_usable_password()
    client.logout()
    sign_in(client)  # the invitation is used up, and not needed any more
    assert who(client) == nina


def test_an_invitation_that_is_withdrawn_at_this_moment_makes_no_account(client, issuer, acme, alice):
    new = invitations.invite(acme, "nina@example.com", Role.VIEWER, alice)

    def withdraw(**_):
        Invitation.objects.filter(pk=new.row.pk).update(withdrawn_at=timezone.now())

    pre_save.connect(withdraw, sender=User)
    try:
        answer = client.get(sign_in(client)["location"])
    finally:
        pre_save.disconnect(withdraw, sender=User)
    assert "Ask for another invitation" in answer.content.decode()
    assert not who(client).is_authenticated
    assert not User.objects.exclude(pk=alice.pk).exists()


def test_who_was_not_invited_stays_out(client, issuer):
    answer = sign_in(client)
    assert "by invitation" in answer.content.decode()
    assert not who(client).is_authenticated
    assert not User.objects.exists()


def test_an_address_that_the_provider_does_not_vouch_for_uses_no_invitation(client, issuer, acme, alice):
    invitations.invite(acme, "nina@example.com", Role.OWNER, alice)
    issuer.claims["email_verified"] = False
    sign_in(client)
    assert not User.objects.filter(username="nina").exists()


def test_everybody_comes_into_the_tenant_that_is_set(client, issuer, settings):
    settings.OIDC_AUTO_TENANT = "everybody"
    sign_in(client)
    assert [(m.tenant.name, m.role) for m in who(client).memberships.all()] == [("everybody", "member")]
    assert Tenant.objects.get().name == "everybody"


def test_the_account_of_somebody_else_is_not_taken_over_by_its_address(client, issuer, settings):
    settings.OIDC_AUTO_TENANT = "everybody"
    root = make_user("root", email="NINA@example.com", is_superuser=True)
    answer = sign_in(client)
    assert answer["location"] == reverse("account_login")
    assert "then connect" in client.get(answer["location"]).content.decode()
    assert not who(client).is_authenticated
    assert not SocialAccount.objects.filter(user=root).exists()


def test_a_taken_user_name_gives_another_one(client, issuer, settings):
    settings.OIDC_AUTO_TENANT = "everybody"
    make_user("nina")
    sign_in(client)
    assert who(client).username.startswith("nina")
    assert who(client).username != "nina"


def test_a_token_for_another_client_opens_nothing(client, issuer, settings):
    settings.OIDC_AUTO_TENANT = "everybody"
    issuer.audience = "another"
    sign_in(client)
    assert not who(client).is_authenticated


def test_an_answer_that_was_not_asked_for_opens_nothing(client, issuer, settings):
    settings.OIDC_AUTO_TENANT = "everybody"
    answer = client.get("/account/oidc/oidc/login/callback/", {"code": "a code", "state": "forged"})
    assert answer.status_code < 500
    assert not who(client).is_authenticated
    assert not issuer.token_requests


def test_who_was_switched_off_stays_out(client, issuer, settings):
    settings.OIDC_AUTO_TENANT = "everybody"
    sign_in(client)
    client.logout()
    User.objects.update(is_active=False)
    sign_in(client)
    assert not who(client).is_authenticated


def test_a_provider_that_is_away_says_so(client, settings):
    point_to(settings, "http://127.0.0.1:9")
    answer = client.post("/account/oidc/oidc/login/", follow=True)
    assert answer.status_code == 200
    assert "does not answer" in answer.content.decode()


def test_a_look_at_the_address_does_not_start_it(client, issuer):
    """Or any page could have its visitors signed in."""
    assert client.get("/account/oidc/oidc/login/").status_code == 200


def test_the_button_is_there_when_there_is_a_provider(client, issuer):
    assert "Sign in with Example SSO" in client.get(reverse("account_login")).content.decode()


def test_without_a_provider_there_is_none(client):
    assert "Sign in with Example" not in client.get(reverse("account_login")).content.decode()
    assert client.post("/account/oidc/oidc/login/").status_code == 404


def test_forms_may_lead_to_the_provider_and_to_nobody_else():
    policy = content_security_policy(["https://sso.example"])
    assert "form-action 'self' https://sso.example;" in policy
