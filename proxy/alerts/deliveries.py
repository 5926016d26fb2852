"""From a delivery that is due to one that is done: claimed by one thread of one process, tried, tried again later."""

import logging
import time
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import DatabaseError, InterfaceError, connections
from django.db.models import F
from django.utils import timezone

from proxy.alerts.posting import NotSent, send
from proxy.models import Delivery, LimitAlert, Webhook

logger = logging.getLogger(__name__)

State = Delivery.State
# Between the attempts; after the last of them it has failed.
WAITS = tuple(timedelta(seconds=seconds) for seconds in (2, 10, 60, 300, 1800, 7200, 21600))
# An attempt takes less by far; one that is not told the end of by then died with its process.
CLAIMED = timedelta(seconds=120)
KEPT = timedelta(days=90)


def claim(delivery: Delivery, now: datetime | None = None) -> bool:
    """Whether this attempt is ours. Of several who try, one."""
    now = now or timezone.now()
    rows = Delivery.objects.due(now).filter(pk=delivery.pk, attempts=delivery.attempts)
    return bool(rows.update(attempts=F("attempts") + 1, due_at=now + CLAIMED))


def attempt(delivery_id: UUID) -> None:
    """Makes a claimed attempt and notes what became of it. In a thread of its own; never raises."""
    try:
        delivery = Delivery.objects.select_related("alert", "webhook").get(pk=delivery_id)
        _note(delivery, *_tried(delivery))
    except Delivery.DoesNotExist:
        pass  # deleted with its webhook
    except (DatabaseError, InterfaceError) as exc:
        logger.warning("A delivery could not be looked after (%s); it is tried again", type(exc).__name__)
    except Exception:
        logger.exception("A delivery failed")
    finally:
        connections.close_all()


def send_test(*, webhook: Webhook | None = None, email: str = "") -> Delivery:
    """Sends a test now, while the person waits. It is tried once, and stands in the log."""
    delivery = Delivery(webhook=webhook, email=email, attempts=1, due_at=timezone.now() + CLAIMED)
    delivery.created_at = timezone.now()
    state, outcome = _tried(delivery)
    delivery.state = State.FAILED if state is State.PENDING else state
    delivery.outcome, delivery.finished_at = outcome, timezone.now()
    delivery.save(force_insert=True)
    return delivery


def prune() -> None:
    """Deletes what is long done. An alert outlives its window, or it would be told again."""
    before = timezone.now() - KEPT
    Delivery.objects.filter(created_at__lt=before).exclude(state=State.PENDING).delete()
    LimitAlert.objects.filter(window_end__lt=before).delete()


def _tried(delivery: Delivery) -> tuple[State, str]:
    again = State.PENDING if delivery.attempts <= len(WAITS) else State.FAILED
    try:
        return State.SENT, send(delivery)
    except NotSent as exc:
        return again, str(exc)
    except Exception:
        # It must come to an end, too.
        logger.exception("A delivery failed")
        return again, "An error of ours; the log has it."


def _note(delivery: Delivery, state: State, outcome: str) -> None:
    now = timezone.now()
    changes: dict[str, Any] = {"state": state, "outcome": outcome[:200]}
    if state is State.PENDING:
        changes["due_at"] = now + WAITS[delivery.attempts - 1]
        logger.warning("%s: attempt %d failed. %s", delivery, delivery.attempts, outcome)
    else:
        changes["finished_at"] = now
    for wait in (0.5, 1, 2, 5, 10, 20, None):
        try:
            Delivery.objects.filter(pk=delivery.pk).update(**changes)
        except (DatabaseError, InterfaceError):
            # It was sent: untold, it would be sent again when the claim ends.
            if wait is None:
                raise
            connections.close_all()
            time.sleep(wait)
        else:
            return
