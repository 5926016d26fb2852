from typing import Any

from django.core.management.base import CommandParser

from tenants.management.administration import AdministrationCommand, Result, one_line, tenant_named
from tenants.models import ApiKey


class Command(AdministrationCommand):
    help = "Lists API keys by their prefixes: tenant, name, state. Never a key itself: that is shown once, when made."
    several_lines = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", metavar="NAME")
        parser.add_argument("--all", action="store_true", help="Revoked ones, too.")

    def administer(self, *, tenant: str | None, all: bool, **options: Any) -> Result:
        keys = ApiKey.objects.select_related("tenant", "user").order_by("tenant__name", "name", "prefix")
        if tenant is not None:
            keys = keys.filter(tenant=tenant_named(tenant, archived=True))
        if not all:
            keys = keys.filter(revoked_at=None)
        found = [
            {
                "prefix": key.prefix,
                "tenant": key.tenant.name,
                "name": key.name,
                "user": key.user.username if key.user else None,
                "state": key.state,
                "expires_at": key.expires_at,
            }
            for key in keys.iterator()
        ]
        lines = [
            one_line(f"{key['prefix']} {key['state']} {key['tenant']}: {key['name']}")
            + (" " + one_line(f"({key['user']})") if key["user"] else "")
            for key in found
        ]
        text = "\n".join(lines) or "There are no keys. Make one with: create_key --tenant NAME --name WHAT-FOR"
        return Result(text, {"keys": found}, changed=False)
