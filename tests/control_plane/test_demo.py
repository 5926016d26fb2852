"""What the demo shows: the same at each start, and sums that are what the records add up to."""

import pytest

from proxy import demo
from proxy.models import Backend
from tenants.keys import digest
from tenants.models import ApiKey, Membership, Tenant, User
from tests.factories import make_tenant
from usage.models import DailyUsage, UsageRecord
from usage.rollups import reconcile

pytestmark = pytest.mark.django_db(transaction=True)

BACKENDS = ["http://127.0.0.1:1", "http://127.0.0.1:2"]


def test_a_second_start_changes_nothing():
    first = demo.make(BACKENDS)
    counts = [model.objects.count() for model in (Tenant, User, Membership, ApiKey, Backend)]
    records = set(UsageRecord.objects.values_list("id", flat=True))
    second = demo.make(BACKENDS)
    assert second == first
    assert [model.objects.count() for model in (Tenant, User, Membership, ApiKey, Backend)] == counts
    # A minute may have passed, and with it some more invented calls; none is gone or double.
    assert set(UsageRecord.objects.values_list("id", flat=True)) >= records
    assert reconcile() == []


def test_it_has_a_month_of_usage_with_and_without_prices(settings):
    made = demo.make(BACKENDS)
    assert {"app", "notebook"} <= made.keys.keys()
    for name, clear_text in made.keys.items():
        key = ApiKey.objects.usable().get(digest=digest(clear_text.encode(), settings.KEY_PEPPER))
        assert key.name == name
    assert DailyUsage.objects.values("day").distinct().count() >= 30
    assert DailyUsage.objects.filter(cost_nano__gt=0).exists()
    assert DailyUsage.objects.filter(unpriced__gt=0).exists()
    assert not (settings.DATA_DIR / "demo-quarantine.jsonl").exists()


def test_it_does_not_touch_an_installation():
    make_tenant("a customer")
    with pytest.raises(demo.NotADemo):
        demo.make(BACKENDS)
    assert not User.objects.exists()
