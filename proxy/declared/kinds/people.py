"""Tenants and users."""

from collections.abc import Iterable
from typing import Any

from proxy.declared.document import Mapping, Node, Scalar
from proxy.declared.fields import Field, Wrong, one_of
from proxy.declared.kinds.base import Change, Entry, Kind, columns, refuse_archived
from proxy.declared.world import Missing
from tenants import authority
from tenants.models import Authority, Membership, Role, Tenant, User


class Tenants(Kind):
    section, noun, model, required = "tenants", "tenant", Tenant, ("name",)
    removal = "archive"

    def make_fields(self) -> Iterable[Field]:
        return columns(
            Tenant, "name", "enabled", "latency_class", "weight", "keeps_texts", "cache_policy", "cache_scope"
        )

    def queryset(self) -> Iterable[Any]:
        return self.world.tenants.values()

    def fill(self, row: Tenant, entry: Entry) -> None:
        refuse_archived(self, row, entry)
        super().fill(row, entry)

    def save(self, row: Tenant, entry: Entry) -> None:
        super().save(row, entry)
        self.world.tenants[row.name] = row

    def may_remove(self, row: Tenant) -> bool:
        return row.archived_at is None

    def remove(self, row: Tenant) -> None:
        row.archive()

    def is_exported(self, row: Tenant) -> bool:
        return row.archived_at is None


class Users(Kind):
    """Rights of staff are given in the admin alone."""

    section, noun, model, required = "users", "user", User, ("name",)
    removal = "switch off"

    def make_fields(self) -> Iterable[Field]:
        yield from columns(User, name="username")
        yield from columns(User, "email", "first_name", "last_name", active="is_active")
        yield Field("tenants", "declared_roles", self._roles, dict, {}, {})

    def _roles(self, node: Node) -> dict[str, str]:
        if not isinstance(node, Mapping):
            raise Wrong("write tenants with roles, as in {research: owner}.")
        role = one_of(*Role.values)
        found = {}
        for name, value in node.entries.items():
            try:
                self.world.tenant(Scalar(node.lines[name], name, plain=False))
                found[name] = role(value)
            except Missing:
                raise
            except Wrong as exc:
                raise Wrong(str(exc), node.lines[name]) from None
        return dict(sorted(found.items()))

    def queryset(self) -> Iterable[Any]:
        return self.world.users.values()

    def fill(self, row: Any, entry: Entry) -> None:
        if row.pk is None:
            row.set_unusable_password()
            row.declared_roles = {}
        super().fill(row, entry)

    def save(self, row: Any, entry: Entry) -> None:
        super().save(row, entry)
        self.world.users[row.username] = row
        wanted = dict(row.declared_roles)
        for membership in row.memberships.filter(tenant__archived_at=None).select_related("tenant"):
            role = wanted.pop(membership.tenant.name, None)
            if role != membership.role:
                self._change(row, membership, role)
        for name, role in wanted.items():
            Membership.objects.create(tenant=self.world.tenants[name], user=row, role=role)

    def _change(self, user: User, membership: Membership, role: str | None) -> None:
        """As the pages do it: who leaves has no keys there any more, and those of a viewer are off."""
        theirs = [key for key in self.world.keys.values() if (key.tenant, key.user) == (membership.tenant, user)]
        if role is None:
            for key in theirs:
                key.revoke()
                self.world.forget(key)
                self.consequences.append(Change("revoke", "key", f"{key.tenant}/{key.name}"))
            membership.delete()
            return
        if role == Role.VIEWER:
            for key in [key for key in theirs if key.enabled]:
                for name, value in authority.switched(on=False, by=Authority.ADMINISTRATOR).items():
                    setattr(key, name, value)
                key.save(update_fields=["enabled", "switched_off_by"])
                self.consequences.append(Change("switch off", "key", f"{key.tenant}/{key.name}"))
        membership.role = role
        membership.save()

    def may_remove(self, row: User) -> bool:
        return row.is_active and not row.is_staff and not row.is_superuser

    def remove(self, row: User) -> None:
        row.is_active = False
        row.save(update_fields=["is_active"])
