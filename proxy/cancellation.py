"""Asking for the end of a call, wherever it runs. Blocks: for commands and threads."""

from datetime import timedelta

from django.utils import timezone

from proxy.models import CallCancellation
from tenants.announcements import announce

# How long a cancellation is looked for by the workers, and how long its row stays, for whoever wants to know.
EFFECTIVE = timedelta(minutes=10)
KEPT = timedelta(days=1)


def request(call_id: str, by: str) -> None:
    """Has the call end, in whichever process it runs. That it ended shows in its record.

    Works on any database and without a channel layer: workers find the row within the quarter of a second in which
    they look for changes, or when PostgreSQL tells them. The message is only quicker.
    """
    now = timezone.now()
    CallCancellation.objects.filter(requested_at__lt=now - KEPT).delete()
    CallCancellation.objects.update_or_create(call_id=call_id, defaults={"by": by[:200], "requested_at": now})
    announce({"type": "cancel", "call": call_id, "by": by[:200]})
