"""What is used to 80 and 100 %: found in the roll-ups, written down and claimed once, on both databases."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default

import pytest
from django.core.mail import EmailMessage
from django.db import connections
from django.utils import timezone

from proxy import duties
from proxy.alerts import deliveries, messages
from proxy.alerts.crossings import Crossings
from proxy.alerts.watch import AT_ONCE, AlertsWatch
from proxy.limits.rules import calendar_window
from proxy.models import Delivery, Duty, LimitAlert, Webhook
from tenants.models import Role
from tests.factories import make_key, make_limit, make_tenant, make_user
from usage.models import DailyUsage

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def sends_mail(settings):
    settings.EMAIL_IS_SENT = True


def use(key, tokens, day="2026-03-10", **fields):
    DailyUsage.objects.create(
        tenant=key.tenant, user=key.user, api_key=key, model="m:latest", day=day, requests=1, prompt_tokens=tokens,
        **fields,
    )  # fmt: skip


def told():
    return [(alert.threshold, alert.body["used"]) for alert in LimitAlert.objects.order_by("id")]


def look(now=NOW, **given):
    return Crossings().look(now=now, **given)


def test_each_threshold_is_written_down_once_though_several_look_at_the_same_time(database):
    key = make_key().row
    Webhook.objects.create(tenant=key.tenant, url="https://example.com/", secret_encrypted=b"x")
    make_limit(100, metric="tokens", window="day", tenant=key.tenant, alert=True)
    use(key, 100)
    if database == "sqlite":  # in memory, which threads do not share
        assert [look() for _ in range(3)] == [2, 0, 0]
    else:
        together(4, look)
    assert told() == [(80, 100), (100, 100)]
    assert Delivery.objects.count() == 2


def together(count, function, *args):
    """Runs a function in threads that begin at the same moment, each with a connection of its own."""
    default = connections["default"]
    gate, results = threading.Barrier(count), []

    def work():
        connections["default"] = default.copy()
        try:
            gate.wait()
            results.append(function(*args))
        finally:
            connections["default"].close()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_delivery_is_claimed_by_one(database):
    delivery = Delivery.objects.create(email="a@example.com")
    if database == "sqlite":
        claims = [deliveries.claim(delivery) for _ in range(4)]
    else:
        claims = together(6, deliveries.claim, delivery)
    assert sum(claims) == 1
    delivery.refresh_from_db()
    assert delivery.attempts == 1
    assert not deliveries.claim(delivery)
    # An attempt that nobody tells the end of, because its process died, is made again.
    assert deliveries.claim(delivery, timezone.now() + deliveries.CLAIMED + timedelta(seconds=1))


def test_a_receiver_for_whom_hundreds_wait_keeps_no_other_from_theirs(transactional_db):
    hung, long_ago = [f"hung{n}@example.com" for n in range(AT_ONCE)], timezone.now() - timedelta(hours=1)
    Delivery.objects.bulk_create(Delivery(email=email, due_at=long_ago) for email in hung for _ in range(150))
    patient = Delivery.objects.create(email="patient@example.com")
    watch, ended = AlertsWatch(), threading.Event()
    busy = [threading.Thread(target=ended.wait, daemon=True) for _ in hung]
    watch._sending = {(email, None): thread for email, thread in zip(hung, busy, strict=True)}
    watch._served = dict.fromkeys(watch._sending, time.monotonic())
    for thread in busy[1:]:
        thread.start()
    try:
        watch._send_what_is_due()  # one of them has come to its end
        patient.refresh_from_db()
        assert patient.attempts == 1
        assert not Delivery.objects.filter(email__in=hung, attempts__gt=0).exists()
    finally:
        ended.set()
        for thread in watch._sending.values():
            thread.join()


def test_a_duty_has_one_holder_until_they_are_silent(database):
    assert duties.take("alerts", "one")
    assert duties.take("alerts", "one")
    assert not duties.is_free("alerts", "two")
    assert not duties.take("alerts", "two")
    Duty.objects.update(seen_at=timezone.now() - duties.LEASE - timedelta(seconds=1))
    assert duties.is_free("alerts", "two")
    assert duties.take("alerts", "two")
    assert not duties.take("alerts", "one")
    duties.let_go("alerts", "one")
    assert not duties.take("alerts", "one")
    duties.let_go("alerts", "two")
    assert duties.take("alerts", "one")


@pytest.mark.django_db
@pytest.mark.parametrize(("used", "thresholds"), [(79, []), (80, [80]), (99, [80]), (100, [80, 100]), (250, [80, 100])])
def test_the_thresholds_are_reached_exactly(used, thresholds):
    key = make_key().row
    make_limit(100, metric="tokens", window="month", tenant=key.tenant, alert=True)
    use(key, used)
    look()
    assert [threshold for threshold, _ in told()] == thresholds


@pytest.mark.django_db
def test_limits_that_refuse_are_used_up_from_80_percent_on():
    key = make_key().row
    row = make_limit(100, metric="tokens", window="day", tenant=key.tenant, alert=True)
    window = f"{row.pk}:tokens:day:tenant {key.tenant_id}:{int(calendar_window('day', 'UTC', int(NOW // 60))[0])}"
    use(key, 50)
    assert look(full={window: row.pk}) == 0  # what runs has it reserved; it may come back
    DailyUsage.objects.update(prompt_tokens=85)
    assert look(full={window: row.pk}) == 2
    assert told() == [(80, 85), (100, 85)]


@pytest.mark.django_db
def test_a_new_window_is_told_anew_and_the_end_of_the_last_one_is_not_missed():
    key = make_key().row
    make_limit(100, metric="tokens", window="day", tenant=key.tenant, alert=True)
    midnight = datetime(2026, 3, 11, tzinfo=UTC).timestamp()
    use(key, 100, day="2026-03-10")
    use(key, 85, day="2026-03-11")
    assert look(now=midnight + 30) == 3
    days = sorted((alert.window_start.day, alert.threshold) for alert in LimitAlert.objects.all())
    assert days == [(10, 80), (10, 100), (11, 80)]
    assert look(now=midnight + 300) == 0


@pytest.mark.django_db
def test_while_an_amount_is_raised_shares_of_it_count_and_are_told_of_it():
    key = make_key().row
    until = datetime.fromtimestamp(NOW + 3600, UTC)
    make_limit(
        100, metric="tokens", window="month", tenant=key.tenant, alert=True, override_amount=200, override_until=until
    )
    use(key, 150)
    assert look() == 0
    DailyUsage.objects.update(prompt_tokens=170)
    assert look() == 1
    assert look(now=NOW + 7200) == 2  # the old amount holds again, and is used up
    amounts = sorted((alert.amount, alert.threshold) for alert in LimitAlert.objects.all())
    assert amounts == [(100, 80), (100, 100), (200, 80)]


@pytest.mark.django_db
def test_who_is_told_depends_on_whose_limit_it_is():
    acme, other = make_tenant("acme"), make_tenant("other")
    for name, tenant, role in (
        ("owner", acme, Role.OWNER), ("ann", acme, Role.MEMBER), ("looker", acme, Role.VIEWER),
        ("foreign", other, Role.OWNER),
    ):  # fmt: skip
        make_user(name, tenant=tenant, role=role, email=f"{name}@example.com")
    gone = make_user("gone", tenant=acme, role=Role.OWNER, email="gone@example.com")
    gone.is_active = False
    gone.save()
    ann = acme.users.get(username="ann")
    key, service = make_key(acme, user=ann).row, make_key(acme).row
    hooks = {name: Webhook.objects.create(tenant=tenant, url=f"https://{name}.example.com", secret_encrypted=b"x")
             for name, tenant in (("all", None), ("acme", acme), ("other", other))}  # fmt: skip
    Webhook.objects.create(tenant=acme, url="https://off.example.com", secret_encrypted=b"x", enabled=False)
    ours = {hooks["all"].url, hooks["acme"].url}
    cases = {
        make_limit(10, metric="tokens", window="day", tenant=acme, alert=True): {"owner@example.com"} | ours,
        make_limit(10, metric="tokens", window="day", key=key, alert=True): {
            "owner@example.com", "ann@example.com", *ours,
        },
        make_limit(10, metric="tokens", window="day", key=service, alert=True): {"owner@example.com"} | ours,
        make_limit(10, metric="tokens", window="day", user=ann, alert=True): {"ann@example.com", hooks["all"].url},
        make_limit(10, metric="tokens", window="day", user=ann, alert=True, managed_by=acme): {
            "ann@example.com", "owner@example.com", *ours,
        },
    }  # fmt: skip
    use(key, 8)
    use(service, 9)
    look()
    for row, receivers in cases.items():
        sent = Delivery.objects.filter(alert__limit=row, alert__threshold=80)
        assert {delivery.receiver for delivery in sent} == receivers, row


@pytest.mark.django_db
def test_defaults_are_told_for_each_key_apart():
    first, second = make_key().row, make_key().row
    make_limit(10, metric="tokens", window="day", alert=True)
    use(first, 9)
    use(second, 3)
    look()
    alert = LimitAlert.objects.get()
    assert alert.counted_for == first.prefix
    assert alert.tenant == first.tenant
    assert first.prefix in alert.body["text"]


@pytest.mark.django_db
@pytest.mark.parametrize("end", ["\r", "\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\x1b"], ids=ascii)
def test_t8_whatever_a_name_holds_the_mail_goes_out_with_a_head_of_ours(end):
    tenant = make_tenant(f"acme{end}Reply-To: eve@example.com{end}{end}Dear Ada")
    key = make_key(tenant).row
    make_user("ada", tenant=tenant, role=Role.OWNER, email="ada@example.com")
    make_limit(100, metric="tokens", window="day", tenant=tenant, alert=True)
    use(key, 80)
    assert look() == 1
    subject, text = messages.mail(Delivery.objects.get())
    mail = EmailMessage(subject, text, "us@example.com", ["ada@example.com"]).message().as_bytes()
    read = message_from_bytes(mail, policy=default)
    assert "Reply-To" not in read
    assert read["Subject"].endswith("for the tenant acme Reply-To: eve@example.com Dear Ada")


@pytest.mark.django_db
def test_what_wants_no_alerts_gets_none(django_assert_num_queries):
    key = make_key().row
    make_limit(1, metric="tokens", window="day", tenant=key.tenant)
    use(key, 100)
    with django_assert_num_queries(1):
        assert look() == 0


@pytest.mark.django_db
def test_a_budget_is_told_in_the_currency(settings):
    key = make_key().row
    make_limit(2_500_000_000, metric="cost", window="month", tenant=key.tenant, alert=True)
    use(key, 5, cost_nano=2_250_000_000)
    look()
    body = LimitAlert.objects.get().body
    assert (body["used"], body["limit"]["amount"], body["currency"]) == ("2.25", "2.5", "EUR")
    assert "2.5 EUR per month" in body["text"]
