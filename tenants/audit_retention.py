"""Forgetting old entries of the audit."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from django.utils import timezone

from tenants.models import AuditEntry

# Short transactions: nobody waits for more than one of them.
BATCH = 2000


def oldest_to_keep(days: int) -> datetime:
    return (timezone.now() - timedelta(days=days)).astimezone(UTC)


def prune(before: datetime) -> Iterator[int]:
    """Deletes the entries of before, in batches; yields how many are gone so far."""
    old = AuditEntry.objects.filter(timestamp__lt=before).order_by("timestamp")
    deleted = 0
    while ids := list(old.values_list("pk", flat=True)[:BATCH]):
        deleted += AuditEntry.objects.filter(pk__in=ids).delete()[0]
        yield deleted
