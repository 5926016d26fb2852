"""The pages of limits and webhooks: owners set limits within their own, members see what holds for them."""

import re
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from proxy.credentials import unseal
from proxy.models import Delivery, Webhook
from tenants.models import Limit, Membership, Role
from tests.factories import make_key, make_limit, make_user
from usage.models import DailyUsage
from usage.reports import today

pytestmark = pytest.mark.django_db


def post(client, of, **fields):
    values = {"metric": "tokens", "window": "day", "amount": "1000", "mode": "enforce", **fields}
    return client.post(reverse("limit_new", args=[of.pk]), values)


def errors(answer):
    assert answer.status_code == 200, answer.status_code
    return answer.context["form"].errors


def test_an_owner_limits_the_tenant_its_people_and_its_keys(client, acme, alice, bob):
    key = make_key(acme, user=bob).row
    client.force_login(alice)
    for whom in (f"tenant:{acme.pk}", f"user:{bob.pk}", f"key:{key.pk}"):
        assert post(client, acme, whom=whom).status_code == 302, whom
    found = [(row.scope, row.tenant, row.user, row.key, row.managed_by) for row in Limit.objects.order_by("id")]
    assert found == [
        ("tenant", acme, None, None, acme), ("user", None, bob, None, acme), ("key", None, None, key, acme),
    ]  # fmt: skip


def test_what_somebody_is_elsewhere_does_not_matter(client, acme, other, alice, bob):
    Membership.objects.create(tenant=other, user=bob, role=Role.VIEWER)
    looks_on = make_user(tenant=acme, role=Role.VIEWER)
    Membership.objects.create(tenant=other, user=looks_on, role=Role.MEMBER)
    client.force_login(alice)
    assert post(client, acme, whom=f"user:{bob.pk}").status_code == 302
    assert "whom" in errors(post(client, acme, whom=f"user:{looks_on.pk}"))


def test_t6_an_owner_limits_nobody_elses(client, acme, other, alice, charlie):
    foreign = make_key(other).row
    client.force_login(alice)
    for whom in (f"tenant:{other.pk}", f"user:{charlie.pk}", f"key:{foreign.pk}", "default:1", "address:1", "x", ""):
        assert "whom" in errors(post(client, acme, whom=whom)), whom
    forged = {"tenant": other.pk, "managed_by": other.pk, "scope": "default"}
    post(client, acme, whom=f"tenant:{acme.pk}", **forged)
    row = Limit.objects.get()
    assert (row.scope, row.tenant, row.managed_by) == ("tenant", acme, acme)


@pytest.mark.parametrize(("fields", "beside"), [
    ({"amount": "1.5"}, "amount"),
    ({"amount": "-1"}, "amount"),
    ({"amount": "many"}, "amount"),
    ({"amount": "9" * 39}, "amount"),
    ({"metric": "cost", "amount": "25,50"}, "amount"),
    ({"amount": "x", "override_amount": "900", "override_until": "2099-01-01T00:00"}, "amount"),
    ({"amount": ""}, "amount"),
    ({"window": "none"}, "window"),
    ({"metric": "concurrent"}, "window"),
    ({"window": "seconds"}, "window_seconds"),
    ({"window": "seconds", "window_seconds": "60", "alert": "on"}, "alert"),
    ({"window": "minute", "alert": "on"}, "alert"),
    ({"override_amount": "2000"}, "override_amount"),
    ({"override_until": "2099-01-01T00:00"}, "override_amount"),
    ({"override_amount": "900", "override_until": "2099-01-01T00:00"}, "override_amount"),
    ({"override_amount": "x", "override_until": "2099-01-01T00:00"}, "override_amount"),
])  # fmt: skip
def test_what_makes_no_sense_is_said_beside_the_field(client, acme, alice, fields, beside):
    client.force_login(alice)
    found = errors(post(client, acme, whom=f"tenant:{acme.pk}", **fields))
    assert {name: len(said) for name, said in found.items()} == {beside: 1}, found
    assert not Limit.objects.exists()


@pytest.mark.parametrize("fields", [
    {"amount": "-1"},
    {"amount": "x", "override_amount": "900", "override_until": "2099-01-01T00:00"},
    {"amount": "500", "override_amount": "x", "override_until": "2099-01-01T00:00"},
])  # fmt: skip
def test_a_changed_limit_has_one_error_for_one_mistake(client, acme, alice, fields):
    limit = make_limit(1000, tenant=acme, window="day", managed_by=acme)
    client.force_login(alice)
    found = errors(client.post(reverse("limit_edit", args=[limit.pk]), {"mode": "enforce", **fields}))
    assert [len(said) for said in found.values()] == [1], found


def test_costs_are_written_in_the_currency_and_shown_so_again(client, acme, alice):
    client.force_login(alice)
    fields = {"metric": "cost", "window": "month", "amount": "25.50", "override_amount": "40", "alert": "on"}
    post(client, acme, whom=f"tenant:{acme.pk}", override_until="2099-01-01T00:00", **fields)
    row = Limit.objects.get()
    assert (row.amount, row.override_amount, row.alert) == (25_500_000_000, 40_000_000_000, True)
    form = client.get(reverse("limit_edit", args=[row.pk])).context["form"]
    assert (form["amount"].value(), form["override_amount"].value()) == ("25.5", "40")
    assert "40.00 EUR" in client.get(reverse("limits")).content.decode()


def test_a_cost_is_told_with_its_currency(client, acme, alice, settings):
    client.force_login(alice)
    fields = {"whom": f"tenant:{acme.pk}", "metric": "cost", "window": "month", "amount": "12.5"}
    currency = settings.GATEWAY.currency
    answer = client.post(reverse("limit_new", args=[acme.pk]), {"mode": "enforce", **fields}, follow=True)
    assert f"12.5 {currency} per month for acme: it holds within a second." in answer.content.decode()
    assert f"12.5 {currency} per month for acme" in client.get(reverse("changes")).content.decode()


def test_a_change_keeps_whom_it_is_for_and_deleting_asks_first(client, acme, alice, other):
    row = make_limit(5, tenant=acme, window="day", managed_by=acme)
    client.force_login(alice)
    fields = {"amount": "7", "mode": "shadow", "whom": f"tenant:{other.pk}", "metric": "cost", "window": "month"}
    assert client.post(reverse("limit_edit", args=[row.pk]), fields).status_code == 302
    row.refresh_from_db()
    assert (row.amount, row.mode, row.tenant, row.metric, row.window) == (7, "shadow", acme, "requests", "day")
    rolling = make_limit(5, tenant=acme, window="seconds", window_seconds=9, managed_by=acme)
    assert "alert" in errors(client.post(reverse("limit_edit", args=[rolling.pk]), {**fields, "alert": "on"}))
    assert "Delete this limit?" in client.get(reverse("limit_delete", args=[row.pk])).content.decode()
    assert Limit.objects.filter(pk=row.pk).exists()
    client.post(reverse("limit_delete", args=[row.pk]))
    assert not Limit.objects.filter(pk=row.pk).exists()


def test_what_administrators_set_is_seen_and_not_changed(client, acme, alice):
    row = make_limit(5, tenant=acme, window="day")
    client.force_login(alice)
    page = client.get(reverse("limits")).content.decode()
    assert "administrators" in page
    assert reverse("limit_edit", args=[row.pk]) not in page
    for name in ("limit_edit", "limit_delete"):
        assert client.post(reverse(name, args=[row.pk]), {"amount": "900", "mode": "enforce"}).status_code == 404
    row.refresh_from_db()
    assert row.amount == 5


def test_t1_each_sees_the_limits_that_hold_for_them(client, acme, other, alice, bob, charlie):
    viewer = make_user("viewer", tenant=acme, role=Role.VIEWER)
    bobs, alices = make_key(acme, "bobs", user=bob).row, make_key(acme, "alices", user=alice).row
    rows = {
        "tenant": make_limit(111_001, tenant=acme, window="day"),
        "bob": make_limit(111_002, user=bob, window="day"),
        "alice": make_limit(111_003, user=alice, window="day"),
        "bobs": make_limit(111_004, key=bobs, window="day"),
        "alices": make_limit(111_005, key=alices, window="day"),
        "default": make_limit(111_006, window="day"),
        "foreign": make_limit(111_007, tenant=other, window="day"),
        "elsewhere": make_limit(111_008, user=bob, window="day", managed_by=other),
    }
    names = {f"{row.amount:,}": name for name, row in rows.items()}
    everything = {"tenant", "bob", "alice", "bobs", "alices", "default"}
    seen = {}
    for user in (alice, viewer, bob, charlie):
        client.force_login(user)
        page = client.get(reverse("limits")).content.decode()
        seen[user.username] = {names[number] for number in re.findall(r"111,00\d", page)}
    assert seen == {
        "alice": everything,
        "viewer": everything,
        "bob": {"tenant", "bob", "bobs", "default"},
        "charlie": {"foreign", "default"},
    }


def test_the_numbers_of_a_process_that_serves_no_calls_are_those_of_the_roll_ups_and_say_so(client, acme, bob):
    key = make_key(acme, user=bob).row
    make_limit(1000, tenant=acme, metric="tokens", window="month")
    make_limit(50, key=key, metric="requests", window="day", mode="shadow")
    make_limit(9, metric="tokens", window="minute")
    DailyUsage.objects.create(
        tenant=acme, user=bob, api_key=key, model="m:latest", day=today(), requests=3, prompt_tokens=840
    )
    client.force_login(bob)
    states = client.get(reverse("key", args=[key.prefix])).context["facts"].limits
    assert states.source == "recorded"
    assert [(state.used, state.left, state.percent, state.tone) for state in states.limits] == [
        (3, 47, 6, "ok"), (None, None, 0, "ok"), (840, 160, 84, "warn"),
    ]  # fmt: skip
    page = client.get(reverse("key", args=[key.prefix])).content.decode()
    assert "only counted" in page
    assert "As the finished calls say" in page
    home = client.get(reverse("home")).content.decode()
    assert "840 of 1,000, 160 left" in home


def test_an_override_is_shown_with_its_end(client, acme, alice):
    until = timezone.now() + timedelta(days=1)
    make_limit(10, tenant=acme, window="day", override_amount=77, override_until=until)
    client.force_login(alice)
    page = client.get(reverse("limits")).content.decode()
    assert f"until {timezone.localtime(until):%Y-%m-%d %H:%M}, then 10" in page
    Limit.objects.update(override_until=timezone.now() - timedelta(seconds=1))
    assert "77" not in client.get(reverse("limits")).content.decode()


# Webhooks


def make_webhook(client, tenant, url="http://203.0.114.7/x"):
    answer = client.post(reverse("webhook_new"), {"tenant": tenant.pk, "url": url})
    assert answer.status_code == 302, answer.context["form"].errors
    return answer["location"]


def test_the_secret_of_a_webhook_is_shown_once_and_kept_sealed(client, acme, alice):
    client.force_login(alice)
    location = make_webhook(client, acme)
    page = client.get(location)
    secret = page.context["clear_text"]
    row = Webhook.objects.get()
    assert secret in page.content.decode()
    assert unseal(row.secret_encrypted) == secret
    assert secret.encode() not in bytes(row.secret_encrypted)
    assert secret not in client.get(location, follow=True).content.decode()
    asked = client.get(reverse("webhook_renew", args=[row.pk])).content.decode()
    assert "refuses it until the new one is put there" in asked
    row.refresh_from_db()
    assert unseal(row.secret_encrypted) == secret
    renewed = client.get(client.post(reverse("webhook_renew", args=[row.pk]))["location"]).context["clear_text"]
    row.refresh_from_db()
    assert renewed != secret
    assert unseal(row.secret_encrypted) == renewed


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://10.0.0.1/x", "http://169.254.169.254/", "ftp://x", "http://[::1]/"]
)
def test_a_webhook_leads_nowhere_private(client, acme, alice, url):
    client.force_login(alice)
    assert "url" in errors(client.post(reverse("webhook_new"), {"tenant": acme.pk, "url": url}))
    assert not Webhook.objects.exists()


def test_a_network_can_be_allowed(client, acme, alice, settings):
    from ipaddress import ip_network

    settings.WEBHOOK_NETWORKS = (ip_network("10.0.0.0/8"),)
    client.force_login(alice)
    make_webhook(client, acme, "http://10.0.0.1/x")


def test_a_test_to_what_became_private_is_refused_and_logged(client, acme, alice):
    client.force_login(alice)
    make_webhook(client, acme)
    Webhook.objects.update(url="http://127.0.0.1:1/")
    row = Webhook.objects.get()
    page = client.post(reverse("webhook_test", args=[row.pk]), follow=True).content.decode()
    assert "The test did not arrive. It leads to a private address." in page
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempts) == ("failed", 1)


def test_a_tenant_has_a_few_webhooks(client, acme, alice):
    client.force_login(alice)
    Webhook.objects.bulk_create(Webhook(tenant=acme, url="https://x.example", secret_encrypted=b"") for _ in range(10))
    assert "tenant" in errors(client.post(reverse("webhook_new"), {"tenant": acme.pk, "url": "http://203.0.114.7/"}))


def test_a_test_mail_goes_to_who_presses_the_button(client, acme, alice, mailoutbox):
    alice.email = "alice@example.com"
    alice.save()
    client.force_login(alice)
    page = client.post(reverse("limits_test_mail"), follow=True).content.decode()
    assert [mail.to for mail in mailoutbox] == [["alice@example.com"]]
    assert "on its way to alice@example.com" in page


def test_the_admin_makes_webhooks_for_all_tenants_and_tests_them(client, root, mailoutbox):
    client.force_login(root)
    answer = client.post(reverse("admin:proxy_webhook_add"), {"url": "http://203.0.114.7/x", "enabled": "on"})
    secret = client.get(answer["location"]).context["secret"]
    row = Webhook.objects.get()
    assert (row.tenant, row.created_by, unseal(row.secret_encrypted)) == (None, root, secret)
    assert secret not in client.get(answer["location"]).content.decode()
    Webhook.objects.update(url="http://127.0.0.1:1/")
    page = client.post(reverse("admin:proxy_webhook_test", args=[row.pk]), follow=True).content.decode()
    assert "The test did not arrive" in page
    assert client.get(reverse("admin:proxy_webhook_test", args=[row.pk])).status_code == 403
    renew = reverse("admin:proxy_webhook_renew", args=[row.pk])
    assert "A new secret for this webhook?" in client.get(renew).content.decode()
    row.refresh_from_db()
    assert unseal(row.secret_encrypted) == secret
    renewed = client.get(client.post(renew)["location"]).context["secret"]
    row.refresh_from_db()
    assert unseal(row.secret_encrypted) == renewed != secret
    root.email = "root@example.com"
    root.save()
    client.post(reverse("admin:proxy_delivery_test_mail"))
    assert mailoutbox[0].to == ["root@example.com"]
    assert client.get(reverse("admin:proxy_delivery_test_mail")).status_code == 405


@pytest.mark.parametrize("method", ["get", "post"])
def test_staff_who_may_not_see_deliveries_send_no_test_mail(client, bob, mailoutbox, method):
    bob.is_staff = True
    bob.save()
    client.force_login(bob)
    assert getattr(client, method)(reverse("admin:proxy_delivery_test_mail")).status_code == 403
    assert mailoutbox == []
