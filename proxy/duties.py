"""What one process of the installation does for all of them: a lease in the database, which needs no Redis."""

from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now

from proxy.models import Duty

# Of a holder that says nothing any more. Whoever holds a duty says so three times in that time.
LEASE = timedelta(seconds=15)


def take(name: str, holder: str) -> bool:
    """Whether the duty is this holder's from now on; it is, if it was or if the one before is silent."""
    # By the database's clock on both sides: those of the machines may differ.
    lost = Q(seen_at__lte=Now() - LEASE)
    if Duty.objects.filter(Q(holder=holder) | lost, name=name).update(holder=holder, seen_at=Now()):
        return True
    if Duty.objects.filter(name=name).exists():
        return False
    try:
        with transaction.atomic():
            Duty.objects.create(name=name, holder=holder, seen_at=Now())
    except IntegrityError:
        return False
    return True


def is_free(name: str, holder: str) -> bool:
    """Whether `take` is worth a try. Only reads: on SQLite even an update of no row waits for the writer."""
    return not Duty.objects.filter(name=name, seen_at__gt=Now() - LEASE).exclude(holder=holder).exists()


def let_go(name: str, holder: str) -> None:
    """So that nobody has to wait for the lease to run out."""
    Duty.objects.filter(name=name, holder=holder).delete()
