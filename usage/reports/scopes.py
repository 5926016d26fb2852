"""Whose usage somebody may see. Everything is asked within one of these (T1, T2)."""

from dataclasses import dataclass

from django.db.models import Q

from tenants.models import Role, User


@dataclass(frozen=True, slots=True)
class Scope:
    """One's own usage, a whole tenant's, or all tenants'. `rows` fits roll-ups and records alike, and the keys that
    they are of, unless `keys` does."""

    slug: str
    label: str
    rows: Q
    keys: Q | None = None


def scopes(user: User) -> list[Scope]:
    """What a person may see as one of its tenants, the widest first."""
    memberships = list(user.memberships.filter(tenant__archived_at=None).select_related("tenant"))
    found = [
        Scope(f"tenant-{membership.tenant_id}", str(membership.tenant), Q(tenant=membership.tenant_id))
        for membership in memberships
        if membership.role in (Role.OWNER, Role.VIEWER)
    ]
    if any(membership.role != Role.VIEWER for membership in memberships):
        tenants = [membership.tenant_id for membership in memberships]
        found.append(Scope("mine", "My own keys", Q(user=user, tenant__in=tenants)))
    return found


def sees_all_tenants(user: User) -> bool:
    """Whoever may see the roll-ups in the admin."""
    return user.is_staff_who_may("usage.view_dailyusage")


def all_scopes(user: User) -> list[Scope]:
    """The same, and before them all tenants for who may see those."""
    if sees_all_tenants(user):
        return [Scope("all", "All tenants", Q()), *scopes(user)]
    return scopes(user)
