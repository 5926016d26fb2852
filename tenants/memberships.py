"""What a person's keys in a tenant come to when their role changes or they leave."""

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet

from tenants.auditing import change
from tenants.authority import switched
from tenants.models import ApiKey, Authority, Membership, Role, Tenant


class LastOwner(PermissionDenied):
    """Somebody must be left who can manage the tenant."""


@transaction.atomic
def change_role(membership: Membership, role: str) -> int:
    """Returns how many keys were switched off: viewers have none that work. Raises LastOwner."""
    if membership.role == Role.OWNER != role:
        _refuse_the_last_owner(membership)
    membership.role = role
    membership.save(update_fields=["role"])
    if role != Role.VIEWER:
        return 0
    # Those that are off already stay with whoever switched them off.
    return change(keys_of(membership).filter(enabled=True), **switched(on=False, by=Authority.OWNER))


@transaction.atomic
def remove(membership: Membership) -> int:
    """Returns how many keys were revoked. Raises LastOwner."""
    if membership.role == Role.OWNER:
        _refuse_the_last_owner(membership)
    count = keys_of(membership).revoke()
    membership.delete()
    return count


def keys_of(membership: Membership) -> QuerySet[ApiKey]:
    return ApiKey.objects.filter(tenant=membership.tenant_id, user=membership.user_id)


def _refuse_the_last_owner(membership: Membership) -> None:
    # The tenant's row is locked, so that two owners cannot remove each other at the same time.
    Tenant.objects.select_for_update().get(pk=membership.tenant_id)
    if not Membership.objects.filter(tenant=membership.tenant_id, role=Role.OWNER).exclude(pk=membership.pk).exists():
        raise LastOwner(f"{membership.user} is the last owner of {membership.tenant}. Make another one first.")
