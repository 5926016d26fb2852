import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone

from tests.factories import make_key, make_usage
from usage import retention
from usage.models import DailyUsage, Retention, UsageBucket, UsageRecord
from usage.retention import oldest_to_keep
from usage.rollups import rebuild, reconcile

pytestmark = pytest.mark.django_db


def prune(days, *options):
    out, err = StringIO(), StringIO()
    call_command("prune_usage", "--days", str(days), *options, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.fixture
def hundred_days():
    key = make_key().row
    for age in range(100):
        make_usage(key, at=timezone.now() - timedelta(days=age))
    rebuild()


def test_old_records_go_in_batches_and_their_sums_stay(hundred_days, monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 7)
    out, progress = prune(30)
    assert out.startswith("Deleted 69 records")
    assert progress.splitlines()[:2] == ["7 deleted", "14 deleted"]
    assert UsageRecord.objects.count() == 31
    assert sum(DailyUsage.objects.values_list("requests", flat=True)) == 100
    assert sum(UsageBucket.objects.values_list("requests", flat=True)) == 100


def test_what_was_pruned_is_no_difference_and_no_rebuild_forgets_it(hundred_days):
    prune(30)
    assert reconcile() == []
    rebuild()
    assert sum(DailyUsage.objects.values_list("requests", flat=True)) == 100
    DailyUsage.objects.filter(day=timezone.now().date()).delete()
    assert {found.table for found in reconcile()} == {"DailyUsage"}


def test_a_drift_at_the_first_kept_day_is_found(hundred_days):
    prune(30)
    UsageRecord.objects.filter(started_at__lt=oldest_to_keep(29)).delete()
    assert reconcile()


def test_again_does_nothing_and_a_longer_time_does_not_move_the_border_back(hundred_days):
    prune(30)
    border = Retention.objects.get().records_since
    assert json.loads(prune(30, "--json")[0])["changed"] is False
    prune(60)
    assert Retention.objects.get().records_since == border


def test_nothing_to_prune_leaves_no_border():
    make_usage(at=timezone.now())
    prune(1)
    assert not Retention.objects.exists()


@pytest.mark.parametrize("days", [0, -1, 10**9])
def test_less_than_a_day_is_wrong_usage(days):
    with pytest.raises(CommandError) as refused:
        prune(days)
    assert refused.value.returncode == 2
