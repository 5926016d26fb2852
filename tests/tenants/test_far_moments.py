"""Days and moments at the ends of the calendar are refused in forms, and are no fault of ours."""

from zoneinfo import ZoneInfo

import pytest
from django.urls import reverse
from django.utils import timezone

from tenants.models import ApiKey, IPRule, Limit, ManagementToken
from tests.factories import make_key

pytestmark = pytest.mark.django_db

# Where the last moment, or the first, is in another year of UTC.
LAST, FIRST = ("9999-12-31T23:59", "America/New_York"), ("0001-01-01T00:00", "Asia/Tokyo")


@pytest.mark.parametrize("name", ["key_new", "token_new"])
def test_a_last_day_without_a_day_after_it_is_refused(client, bob, name):
    client.force_login(bob)
    answer = client.post(reverse(name), {"name": "k", "scopes": "read", "expires_on": "9999-12-31"})
    assert answer.status_code == 200
    assert "8999-12-31" in answer.content.decode()
    assert not ApiKey.objects.exists()
    assert not ManagementToken.objects.exists()


@pytest.mark.parametrize(("at", "zone"), [LAST, FIRST])
@pytest.mark.parametrize(("name", "fields"), [
    ("ip_rule_new", {"cidr": "10.0.0.0/8", "action": "deny", "asked": "1", "confirmed": "on"}),
    ("limit_new", {"metric": "requests", "amount": "1", "window": "day", "mode": "enforce", "override_amount": "2"}),
])  # fmt: skip
def test_a_moment_that_is_none_elsewhere_is_refused(client, alice, acme, name, fields, at, zone):
    client.force_login(alice)
    moments = {"expires_at": at, "override_until": at, "whom": f"tenant:{acme.pk}"}
    with timezone.override(ZoneInfo(zone)):
        answer = client.post(reverse(name, args=[acme.pk]), fields | moments)
    assert answer.status_code == 200
    assert "of the years 1900 to 8999" in answer.content.decode()
    assert not IPRule.objects.exists()
    assert not Limit.objects.exists()


@pytest.mark.parametrize(("at", "zone"), [LAST, FIRST])
def test_the_admin_refuses_it_too(client, root, acme, at, zone):
    key = make_key(acme).row
    client.force_login(root)
    day, time = at.split("T")
    fields = {"name": "k", "models_allowed": "[]", "expires_at_0": day, "expires_at_1": time}
    with timezone.override(ZoneInfo(zone)):
        answer = client.post(reverse("admin:tenants_apikey_change", args=[key.pk]), fields)
    assert answer.status_code == 200
    assert "of the years 1900 to 8999" in answer.content.decode()


@pytest.mark.parametrize("before", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "x", ""])
def test_texts_are_searched_from_now_where_the_moment_is_none(client, bob, before):
    client.force_login(bob)
    assert client.post(reverse("texts"), {"q": "x", "before": before}).status_code == 200
