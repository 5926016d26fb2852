"""What a person's keys in a tenant come to when their role changes or they leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet

from tenants.auditing import change
from tenants.authority import switched
from tenants.models import ApiKey, Authority, Membership, Role, Tenant


class LastOwner(PermissionDenied):
    """Somebody must be left who can manage the tenant."""


class NotThere(PermissionDenied):
    """Somebody else put them out meanwhile."""


@transaction.atomic
def change_role(membership: Membership, role: str) -> int:
    """Returns how many keys were switched off: viewers have none that work. Raises LastOwner, NotThere."""
    _lock(membership)
    if membership.role == Role.OWNER != role:
        _refuse_the_last_owner(membership)
    membership.role = role
    membership.save(update_fields=["role"])
    return change(keys_a_role_switches_off(membership, role), **switched(on=False, by=Authority.OWNER))


def keys_a_role_switches_off(membership: Membership, role: str) -> QuerySet[ApiKey]:
    """Viewers have none. Those that are off already stay with whoever switched them off."""
    keys = keys_of(membership)
    return keys.filter(enabled=True, revoked_at=None) if role == Role.VIEWER else keys.none()


@transaction.atomic
def remove(membership: Membership) -> int:
    """Returns how many keys were revoked. Raises LastOwner, NotThere."""
    _lock(membership)
    if membership.role == Role.OWNER:
        _refuse_the_last_owner(membership)
    count = keys_of(membership).revoke()
    membership.delete()
    return count


@dataclass(slots=True)
class Settled:
    keys_off: int = 0


@contextmanager
def settling_keys(rows: QuerySet[Membership]) -> Iterator[Settled]:
    """Around whatever a form of the admin does with memberships: keys of who is out, or a viewer, are off from then
    on. Not revoked, for an administrator may have them come back."""
    settled = Settled()
    with transaction.atomic():
        before = _roles(rows)
        yield settled
        after = _roles(rows)
        for (tenant, user), role in before.items():
            if after.get((tenant, user), Role.VIEWER) == Role.VIEWER != role:
                keys = ApiKey.objects.filter(tenant=tenant, user=user, enabled=True, revoked_at=None)
                settled.keys_off += change(keys, **switched(on=False, by=Authority.ADMINISTRATOR))


def _roles(rows: QuerySet[Membership]) -> dict[tuple[int, int], str]:
    return {(row.tenant_id, row.user_id): row.role for row in rows.all()}


def keys_of(membership: Membership) -> QuerySet[ApiKey]:
    return ApiKey.objects.filter(tenant=membership.tenant_id, user=membership.user_id)


def _lock(membership: Membership) -> None:
    """What it is now, for it may have been looked at a while ago."""
    row = Membership.objects.select_for_update().filter(pk=membership.pk).first()
    if row is None:
        raise NotThere(f"{membership.user} is not in {membership.tenant} any more.")
    membership.role = row.role


def _refuse_the_last_owner(membership: Membership) -> None:
    # The tenant's row is locked, so that two owners cannot remove each other at the same time.
    Tenant.objects.select_for_update().get(pk=membership.tenant_id)
    if not Membership.objects.filter(tenant=membership.tenant_id, role=Role.OWNER).exclude(pk=membership.pk).exists():
        raise LastOwner(f"{membership.user} is the last owner of {membership.tenant}. Make another one first.")
