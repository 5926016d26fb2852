from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tenants.management.administration import (
    AdministrationCommand,
    Refused,
    Result,
    moment,
    tenant_named,
    user_named,
)
from tenants.management_tokens import create_token
from tenants.models.management_tokens import SCOPES


class Command(AdministrationCommand):
    help = (
        "Creates a token for the management API and prints it, and nothing else. It cannot be shown again. It reaches "
        "as far as its user does, whenever it is used."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", required=True, metavar="NAME", help="Whose rights it has.")
        parser.add_argument("--name", required=True, help="What it is used for.")
        parser.add_argument(
            "--scopes", default="read", metavar="A,B", help=f"Of {', '.join(SCOPES)}; or: all. Default: read."
        )
        parser.add_argument("--tenant", metavar="NAME", help="It reaches this tenant alone.")
        parser.add_argument("--expires", type=moment, metavar="ISO", help="E.g. 2026-12-31 or 2026-12-31T18:00+01:00.")

    def administer(
        self, *, user: str, name: str, scopes: str, tenant: str | None, expires: datetime | None, **options: Any
    ) -> Result:
        owner = user_named(user)
        if not owner.is_active:
            raise Refused(f"{owner} is switched off, so the token would not work. Switch them on in the admin.")
        if expires and expires <= timezone.now():
            raise Refused("That moment has passed, the token would never work. Give a later one with --expires.")
        new = create_token(
            owner,
            name,
            list(SCOPES) if scopes == "all" else [scope.strip() for scope in scopes.split(",") if scope.strip()],
            tenant=None if tenant is None else tenant_named(tenant),
            expires_at=expires,
        )
        data = {"token": new.clear_text, "prefix": new.row.prefix, "name": name, "scopes": new.row.scopes}
        return Result(new.clear_text, {**data, "user": owner.username})
