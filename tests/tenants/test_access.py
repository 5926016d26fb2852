"""Every page of the people's side: what happens for whom, by which method (T1, T2, T7)."""

from datetime import UTC, datetime, time

import pytest
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone

from proxy.credentials import seal
from proxy.models import Webhook
from tenants import invitations
from tenants.models import ManagementToken, Membership, Role
from tests.factories import make_admin, make_key, make_limit, make_usage, make_user
from usage import reports
from usage.models import StoredText
from usage.rollups import rebuild

pytestmark = pytest.mark.django_db

# Who: nobody; somebody without a tenant; roles in acme; the owner of another tenant; a superuser without a tenant.
WHO = ("nobody", "loner", "viewer", "member", "owner", "foreign", "root")

# Each status for WHO, in this order. 302 for nobody is the way to the sign-in page.
GET = {
    "home": (302, 200, 200, 200, 200, 200, 200),
    "usage": (302, 200, 200, 200, 200, 200, 200),
    "usage of acme": (302, 404, 200, 404, 200, 404, 404),
    "usage of mine": (302, 404, 404, 200, 200, 200, 404),
    "usage of all tenants": (302, 404, 404, 404, 404, 404, 200),
    "usage_csv": (302, 404, 200, 200, 200, 200, 200),
    "usage_json": (302, 404, 200, 200, 200, 200, 200),
    "requests": (302, 200, 200, 200, 200, 200, 200),
    "requests of acme": (302, 404, 200, 404, 200, 404, 404),
    "requests_rows": (302, 404, 200, 200, 200, 200, 200),
    "requests_csv": (302, 404, 200, 200, 200, 200, 200),
    "requests_json": (302, 404, 200, 200, 200, 200, 200),
    "request": (302, 404, 200, 200, 200, 404, 200),
    "request of the owner": (302, 404, 200, 404, 200, 404, 200),
    "request_text": (302, 405, 405, 405, 405, 405, 405),  # a look is noted
    "texts": (302, 200, 200, 200, 200, 200, 200),
    "account": (302, 200, 200, 200, 200, 200, 200),
    "keys": (302, 403, 403, 200, 200, 200, 403),
    "key_new": (302, 403, 403, 200, 200, 200, 403),
    "key": (302, 404, 404, 200, 200, 404, 404),
    "key_secret": (302, 404, 404, 302, 302, 404, 404),
    "key_edit": (302, 404, 404, 200, 200, 404, 404),
    "key_rotate": (302, 404, 404, 200, 200, 404, 404),
    "key_switch": (302, 404, 404, 200, 200, 404, 404),
    "key_revoke": (302, 404, 404, 200, 200, 404, 404),
    "key of the owner": (302, 404, 404, 404, 200, 404, 404),
    "service key": (302, 404, 404, 404, 200, 404, 404),
    "limits": (302, 200, 200, 200, 200, 200, 200),
    "limit_new": (302, 404, 404, 404, 200, 404, 404),
    "limit_edit": (302, 404, 404, 404, 200, 404, 404),
    "limit_delete": (302, 404, 404, 404, 200, 404, 404),
    "edit a limit of administrators": (302, 404, 404, 404, 404, 404, 404),
    "limits_test_mail": (302, 405, 405, 405, 405, 405, 405),
    "webhooks": (302, 403, 403, 403, 200, 200, 403),
    "webhook_new": (302, 403, 403, 403, 200, 200, 403),
    "webhook": (302, 404, 404, 404, 200, 404, 404),
    "webhook_secret": (302, 404, 404, 404, 302, 404, 404),
    "webhook_renew": (302, 404, 404, 404, 200, 404, 404),
    "webhook_test": (302, 405, 405, 405, 405, 405, 405),
    "webhook_switch": (302, 405, 405, 405, 405, 405, 405),
    "webhook_delete": (302, 404, 404, 404, 200, 404, 404),
    "people": (302, 403, 403, 403, 200, 200, 200),
    "invite": (302, 403, 403, 403, 200, 200, 200),
    "change_role": (302, 405, 405, 405, 405, 405, 405),
    "remove_person": (302, 403, 403, 403, 200, 404, 200),
    "withdraw_invitation": (302, 405, 405, 405, 405, 405, 405),
    "tokens": (302, 200, 200, 200, 200, 200, 200),
    "token_new": (302, 200, 200, 200, 200, 200, 200),
    "token_secret": (302, 404, 404, 302, 404, 404, 404),
    "token_revoke": (302, 404, 404, 200, 404, 404, 404),
    "changes": (302, 403, 403, 403, 200, 200, 403),
    "changes_export": (302, 403, 403, 403, 200, 200, 403),
    "setup": (302, 403, 403, 403, 403, 403, 302),
    "setup_backend": (302, 403, 403, 403, 403, 403, 200),
    "setup_key": (302, 403, 403, 403, 403, 403, 200),
    "setup_answer": (302, 404, 404, 200, 200, 404, 404),
    "setup_answer_state": (302, 404, 404, 200, 200, 404, 404),
    "setup_account": (404, 404, 404, 404, 404, 404, 404),
    "invitation": (200, 200, 200, 200, 200, 200, 200),
    "invitation that is none": (404, 404, 404, 404, 404, 404, 404),
    "admin": (302, 302, 302, 302, 302, 302, 200),
}
POST = {
    "home": (302, 200, 200, 200, 200, 200, 200),  # it changes nothing
    "keys": (302, 405, 405, 405, 405, 405, 405),
    "key": (302, 405, 405, 405, 405, 405, 405),
    "key_new": (302, 403, 403, 302, 302, 302, 403),
    "key_secret": (302, 405, 405, 405, 405, 405, 405),
    "key_edit": (302, 404, 404, 302, 302, 404, 404),
    "key_rotate": (302, 404, 404, 302, 302, 404, 404),
    "key_switch": (302, 404, 404, 302, 302, 404, 404),
    "key_revoke": (302, 404, 404, 302, 302, 404, 404),
    "revoke the key of the owner": (302, 404, 404, 404, 302, 404, 404),
    "revoke a service key": (302, 404, 404, 404, 302, 404, 404),
    "request_text": (302, 404, 404, 200, 404, 404, 200),  # its author, and who has the permission
    "texts": (302, 200, 200, 200, 200, 200, 200),
    "limits": (302, 405, 405, 405, 405, 405, 405),
    "limit_new": (302, 404, 404, 404, 302, 404, 404),
    "limit_edit": (302, 404, 404, 404, 302, 404, 404),
    "limit_delete": (302, 404, 404, 404, 302, 404, 404),
    "edit a limit of administrators": (302, 404, 404, 404, 404, 404, 404),
    "delete a limit of administrators": (302, 404, 404, 404, 404, 404, 404),
    "limits_test_mail": (302, 403, 403, 403, 302, 302, 302),
    "webhook_new": (302, 403, 403, 403, 200, 200, 403),  # for a tenant that is not offered: the form again
    "webhook_renew": (302, 404, 404, 404, 302, 404, 404),
    "webhook_test": (302, 404, 404, 404, 302, 404, 404),
    "webhook_switch": (302, 404, 404, 404, 302, 404, 404),
    "webhook_delete": (302, 404, 404, 404, 302, 404, 404),
    "invite": (302, 403, 403, 403, 200, 200, 200),  # to a tenant that is not offered: the form again
    "change_role": (302, 403, 403, 403, 302, 404, 302),
    "remove_person": (302, 403, 403, 403, 302, 404, 302),
    "withdraw_invitation": (302, 403, 403, 403, 302, 404, 302),
    "token_revoke": (302, 404, 404, 302, 404, 404, 404),
    "setup_backend": (302, 403, 403, 403, 403, 403, 200),
    "setup_key": (302, 403, 403, 403, 403, 403, 302),
    "setup_account": (404, 404, 404, 404, 404, 404, 404),
    "invitation": (200, 302, 302, 302, 302, 302, 302),
}
FIELDS = {
    "key_new": {"name": "k", "whose": "mine"},
    "key_edit": {"name": "k"},
    "key_rotate": {"overlap": "1d"},
    "key_switch": {"to": "off"},
    "change_role": {"role": "viewer", "confirmed": "yes"},
    "limit_edit": {"amount": "7", "mode": "enforce"},
    "webhook_switch": {"to": "off"},
    "setup_key": {"name": "k"},
}


@pytest.fixture
def cast(acme, alice, bob, charlie):
    return {
        "nobody": None,
        "loner": make_user("loner"),
        "viewer": make_user("viewer", tenant=acme, role=Role.VIEWER),
        "member": bob,
        "owner": alice,
        "foreign": charlie,
        "root": make_admin("root"),
    }


@pytest.fixture
def addresses(acme, alice, bob, charlie):
    """By the names of the tables above; all of acme."""
    key, owners = make_key(acme, "bobs", user=bob).row, make_key(acme, "alices", user=alice).row
    service = make_key(acme, "service").row
    token = ManagementToken.objects.create(user=bob, name="bobs", prefix="token123", digest=b"x" * 32, scopes=["read"])
    new = invitations.invite(acme, "new@example.com", Role.MEMBER, alice)
    membership = Membership.objects.get(user=bob)
    limit = make_limit(5, tenant=acme, window="day", managed_by=acme)
    above = make_limit(9, tenant=acme, window="day")
    FIELDS["limit_new"] = {
        "whom": f"tenant:{acme.pk}", "metric": "tokens", "window": "day", "amount": "7", "mode": "enforce",
    }  # fmt: skip
    bobs = make_usage(key)
    StoredText.objects.create(record_id=bobs.pk, at=timezone.now(), tenant=acme, user=bob, api_key=key, prompt="why?")
    webhook = Webhook.objects.create(tenant=acme, url="http://203.0.113.7/x", secret_encrypted=seal("s"))
    paths = {
        "limit_new": reverse("limit_new", args=[acme.pk]),
        "limit_edit": reverse("limit_edit", args=[limit.pk]),
        "limit_delete": reverse("limit_delete", args=[limit.pk]),
        "edit a limit of administrators": reverse("limit_edit", args=[above.pk]),
        "delete a limit of administrators": reverse("limit_delete", args=[above.pk]),
        "usage of acme": f"{reverse('usage')}?of=tenant-{acme.pk}",
        "usage of mine": f"{reverse('usage')}?of=mine",
        "usage of all tenants": f"{reverse('usage')}?of=all",
        "requests of acme": f"{reverse('requests')}?of=tenant-{acme.pk}",
        "request": reverse("request", args=[bobs.pk]),
        "request_text": reverse("request_text", args=[bobs.pk]),
        "request of the owner": reverse("request", args=[make_usage(owners).pk]),
        "key of the owner": reverse("key", args=[owners.prefix]),
        "service key": reverse("key", args=[service.prefix]),
        "revoke the key of the owner": reverse("key_revoke", args=[owners.prefix]),
        "revoke a service key": reverse("key_revoke", args=[service.prefix]),
        "remove_person": reverse("remove_person", args=[membership.pk]),
        "change_role": reverse("change_role", args=[membership.pk]),
        "withdraw_invitation": reverse("withdraw_invitation", args=[new.row.pk]),
        "setup_account": reverse("setup_account", args=["a-token-that-is-none"]),
        "invitation": new.link.removeprefix("http://localhost:8080"),
        "invitation that is none": reverse("invitation", args=["nothing"]),
        "admin": reverse("admin:index"),
    }
    for name in ("token_secret", "token_revoke"):
        paths[name] = reverse(name, args=[token.prefix])
    for name in ("key", "key_secret", "key_edit", "key_rotate", "key_switch", "key_revoke", "setup_answer",
                 "setup_answer_state"):  # fmt: skip
        paths[name] = reverse(name, args=[key.prefix])
    for name in ("webhook", "webhook_secret", "webhook_renew", "webhook_test", "webhook_switch", "webhook_delete"):
        paths[name] = reverse(name, args=[webhook.pk])
    return paths


def signed_in(client, user):
    if user is not None:
        client.force_login(user)
    return client


@pytest.mark.parametrize("name", GET)
def test_t1_who_may_look_at_what(cast, addresses, name):
    path = addresses.get(name) or reverse(name)
    found = []
    for who in WHO:
        answer = signed_in(Client(), cast[who]).get(path)
        found.append(answer.status_code)
        if who == "nobody" and answer.status_code == 302:
            assert answer["location"].startswith(("/account/login/?next=", "/admin/login/?next="))
    assert dict(zip(WHO, found, strict=True)) == dict(zip(WHO, GET[name], strict=True))


@pytest.mark.parametrize("name", POST)
def test_t1_who_may_do_what(cast, addresses, name):
    path = addresses.get(name) or reverse(name)
    found = []
    for who in WHO:
        with transaction.atomic():
            found.append(signed_in(Client(), cast[who]).post(path, FIELDS.get(name, {})).status_code)
            transaction.set_rollback(True)  # what one did is not there for the next
    assert dict(zip(WHO, found, strict=True)) == dict(zip(WHO, POST[name], strict=True))


def test_every_page_of_ours_is_in_the_tables():
    """Those of allauth, the admin, the machines and the live page have tests of their own."""
    ours = {
        pattern.name
        for pattern in get_resolver().url_patterns
        if isinstance(pattern, URLPattern) and pattern.name
        and pattern.callback.__module__.startswith(("tenants.views", "usage.views", "proxy.setup_pages"))
    }  # fmt: skip
    assert ours - GET.keys() == set()
    assert all(isinstance(pattern, URLPattern | URLResolver) for pattern in get_resolver().url_patterns)


def test_t2_sums_are_of_ones_own_keys_and_tenants_alone(client, cast, acme, other, bob, alice, charlie):
    """Figures that can be told apart by their digits."""
    noon = datetime.combine(reports.today(), time(12), tzinfo=UTC)
    for key, tokens in (
        (make_key(acme, user=bob).row, 7_000_001),
        (make_key(acme, user=alice).row, 50_000_003),
        (make_key(acme).row, 600_000_007),
        (make_key(other, user=charlie).row, 8_000_000_009),
    ):
        make_usage(key, at=noon, model=f"model-{tokens}", prompt_tokens=tokens, completion_tokens=0)
    rebuild()
    seen = {
        "member": {"7,000,001"},
        "owner": {"7,000,001", "50,000,003", "600,000,007", "657,000,011"},
        "viewer": {"7,000,001", "50,000,003", "600,000,007", "657,000,011"},
        "foreign": {"8,000,000,009"},
        "loner": set(),
    }
    every = set().union(*seen.values())
    # The sum of all tenants is another figure.
    seen["root"] = every - {"657,000,011"}
    for who, expected in seen.items():
        client.force_login(cast[who])
        page = client.get(reverse("usage"), {"by": "key"}).content.decode()
        assert {figure for figure in every if figure in page} == expected, who
    client.force_login(cast["owner"])
    mine = client.get(reverse("usage"), {"of": "mine", "by": "key"}).content.decode()
    assert {figure for figure in every if figure in mine} == {"50,000,003"}


@pytest.mark.parametrize("page", ["usage", "usage_csv", "requests", "requests_rows", "requests_csv"])
@pytest.mark.parametrize(
    ("query", "status"),
    [("?of=tenant-999999", 404), ("?of=", 404), ("?of=mine'--", 404), ("?of=mine&of=x", 404), ("?of=all", 404)],
)
def test_t2_only_ones_own_scopes_are_taken(client, bob, page, query, status):
    client.force_login(bob)
    assert client.get(reverse(page) + query).status_code == status


@pytest.mark.parametrize(
    ("page", "query"),
    [("usage", "?range=31d"), ("usage", "?by=password"), ("usage", "?measure=user__password"),
     ("usage", "?per=x&by=key"), ("usage", "?first=2026-13-01"), ("usage", "?first=0001-01-01"), ("usage", "?top=0"),
     ("usage_csv", "?by=1"), ("requests", "?status=x"), ("requests", "?page=1"), ("requests", "?outcome=x"),
     ("requests", "?since=soon"), ("requests_rows", "?slower_ms=x"), ("requests_json", "?slower_ms=-1")],
)  # fmt: skip
def test_t2_only_listed_filters_are_taken(client, bob, page, query):
    client.force_login(bob)
    answer = client.get(reverse(page) + query)
    assert answer.status_code == 400
    assert len(answer.content) > 20


def test_the_live_page_says_twice_whose_calls_it_shows(client, cast, other):
    whose = {
        "loner": "Your calls",
        "member": "Your calls",
        "viewer": "The calls of your tenant",
        "owner": "The calls of your tenant, and your own elsewhere",
        "root": "The calls of all tenants",
    }
    Membership.objects.create(user=cast["owner"], tenant=other)
    for name, words in whose.items():
        client.force_login(cast[name])
        page = client.get("/live/").content.decode()
        head, empty = f"{words} that run now", f"{words} are shown here."
        assert head in page, name
        assert empty in page, name
