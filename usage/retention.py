"""Forgetting old records. Their sums stay, in the roll-ups."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from usage.models import Retention, UsageRecord
from usage.rollups import day_begins, day_of, reporting_zone

# Short transactions: the ledger waits for no more than one of them.
BATCH = 2000


def oldest_to_keep(days: int, now: datetime | None = None) -> datetime:
    """The beginning of a day of the reporting zone, so that no bucket and no day loses only some of its records."""
    zone = reporting_zone()
    return day_begins(day_of(now or timezone.now(), zone) - timedelta(days=days), zone)


def prune(before: datetime) -> Iterator[int]:
    """Deletes the records of before, in batches; yields how many are gone so far."""
    old = UsageRecord.objects.filter(started_at__lt=before)
    if not old.exists():
        return
    # First, so that at no moment records are missing that roll-ups are compared with.
    note_records_since(before)
    deleted = 0
    while ids := list(old.order_by("started_at").values_list("pk", flat=True)[:BATCH]):
        deleted += UsageRecord.objects.filter(pk__in=ids).delete()[0]
        yield deleted


@transaction.atomic
def note_records_since(moment: datetime) -> None:
    retention, created = Retention.objects.select_for_update().get_or_create(defaults={"records_since": moment})
    if not created and retention.records_since < moment:
        retention.records_since = moment
        retention.save(update_fields=["records_since"])
