"""What a file may refer to: the rows that there are, the ones that it makes, the environment and files with secrets."""

from collections.abc import Mapping as Lookup
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from proxy.declared.document import Node
from proxy.declared.fields import Wrong, text
from proxy.models import Backend
from tenants.models import ApiKey, Tenant, User

MAX_SECRET_BYTES = 64 << 10


@dataclass
class World:
    environment: Lookup[str, str]
    directory: Path  # what relative names of files begin at
    # What the file declares, or tried to: a reference to an entry that is wrong itself is not wrong for that.
    declared: set[tuple[str, str]] = field(default_factory=set)

    @cached_property
    def tenants(self) -> dict[str, Tenant]:
        return {row.name: row for row in Tenant.objects.order_by("pk")}

    @cached_property
    def users(self) -> dict[str, Any]:
        """Each with its roles, by tenant, as `declared_roles`."""
        found = {}
        for user in User.objects.order_by("pk").prefetch_related("memberships__tenant"):
            there = [member for member in user.memberships.all() if member.tenant.archived_at is None]
            user.declared_roles = dict(sorted((member.tenant.name, str(member.role)) for member in there))  # type: ignore[attr-defined]
            found[user.username] = user
        return found

    @cached_property
    def backends(self) -> dict[str, Backend]:
        return {row.name: row for row in Backend.objects.order_by("pk")}

    @cached_property
    def keys(self) -> dict[str, ApiKey]:
        """By prefix, those that are not revoked."""
        tenants = {row.pk: row for row in self.tenants.values()}
        users = {row.pk: row for row in self.users.values()}
        found = {}
        for key in ApiKey.objects.filter(revoked_at=None).order_by("pk"):
            key.tenant = tenants[key.tenant_id]
            key.user = users[key.user_id] if key.user_id else None
            found[key.prefix] = key
        return found

    @cached_property
    def _named(self) -> dict[str, list[ApiKey]]:
        """By TENANT/NAME."""
        found: dict[str, list[ApiKey]] = {}
        for key in self.keys.values():
            found.setdefault(f"{key.tenant}/{key.name}", []).append(key)
        return found

    def know(self, key: ApiKey) -> None:
        same = self._named.setdefault(f"{key.tenant}/{key.name}", [])
        self.keys[key.prefix] = key
        if key not in same:
            same.append(key)

    def forget(self, key: ApiKey) -> None:
        """It was revoked."""
        self._named[f"{key.tenant}/{key.name}"].remove(key)
        del self.keys[key.prefix]

    def keys_named(self, tenant: str, name: str) -> list[ApiKey]:
        return [key for key in self._named.get(f"{tenant}/{name}", []) if (key.tenant.name, key.name) == (tenant, name)]

    def name_of(self, key: ApiKey) -> str:
        """How a file refers to a key: by tenant and name, unless that is not clear."""
        name = f"{key.tenant}/{key.name}"
        return name if len(self._named.get(name, [])) == 1 and name not in self.keys else key.prefix

    # References, as fields read them

    def tenant(self, node: Node) -> Tenant:
        name = text(node)
        found = self.tenants.get(name)
        if found is None:
            self._missing("tenants", name, "tenant")
        if found.archived_at:
            raise Wrong(f"the tenant “{name}” was deleted. Restore it in the admin, or name another.")
        return found

    def user(self, node: Node) -> Any:
        name = text(node)
        found = self.users.get(name)
        if found is None:
            self._missing("users", name, "user")
        return found

    def backend(self, node: Node) -> str:
        name = text(node)
        found = self.backends.get(name)
        if name and (found is None or found.archived_at):
            self._missing("backends", name, "backend")
        return name

    def key(self, node: Node) -> ApiKey:
        name = text(node)
        same = self._named.get(name, [])
        if len(same) > 1 and name not in self.keys:
            prefixes = ", ".join(sorted(key.prefix for key in same))
            raise Wrong(f"there are several keys “{name}”. Name one by its prefix: {prefixes}.")
        found = self.keys.get(name) or (same[0] if same else None)
        if found is None:
            self._missing("keys", name, "key")
        return found

    def _missing(self, section: str, name: str, noun: str) -> NoReturn:
        if (section, name) in self.declared:
            raise Missing
        how = "TENANT/NAME or its prefix" if section == "keys" else "its name"
        raise Wrong(f"there is no {noun} “{name}”. Declare it under {section}, or write {how} as it is.")

    # Secrets

    def secret_of(self, node: Node, *, in_file: bool) -> str:
        """What the variable or file that a field names holds."""
        name = text(node)
        if not in_file:
            value = self.environment.get(name, "")
            if not value:
                raise Wrong(f"the variable {name} is not set.")
            return value.strip()
        try:
            with (self.directory / name).open("rb") as file:
                raw = file.read(MAX_SECRET_BYTES + 1)
        except (OSError, ValueError) as exc:
            raise Wrong(f"{name} cannot be read ({getattr(exc, 'strerror', exc)}).") from None
        if not raw.strip() or len(raw) > MAX_SECRET_BYTES:
            raise Wrong(f"{name} is empty." if not raw.strip() else f"{name} is too large for a secret.")
        try:
            return raw.decode().strip()
        except UnicodeDecodeError:
            raise Wrong(f"{name} is not UTF-8.") from None


class Missing(Wrong):
    """What is referred to is declared in the file, wrongly, and was complained of there."""

    def __init__(self) -> None:
        super().__init__("")
