from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tenants.keys import create_key
from tenants.management.administration import (
    AdministrationCommand,
    Refused,
    Result,
    moment,
    tenant_named,
    user_named,
)
from tenants.models import CachePolicy, Tenant, User


class Command(AdministrationCommand):
    help = "Creates an API key and prints it, and nothing else. It cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="NAME")
        parser.add_argument("--name", required=True, help="What it is used for.")
        parser.add_argument("--user", metavar="NAME", help="Whose key it is. Without: a service key of the tenant.")
        parser.add_argument("--models", default="", metavar="A,B", help="Names or patterns. Without: all models.")
        parser.add_argument("--manage", action="store_true", help="May pull, copy, create, delete and unload models.")
        parser.add_argument("--max-output-tokens", type=int, metavar="N", help="The most one call may generate.")
        parser.add_argument("--cache", choices=CachePolicy.values, default="", help="Which answers it is given again.")
        parser.add_argument("--expires", type=moment, metavar="ISO", help="E.g. 2026-12-31 or 2026-12-31T18:00+01:00.")

    def administer(
        self,
        *,
        tenant: str,
        name: str,
        user: str | None,
        models: str,
        manage: bool,
        max_output_tokens: int | None,
        cache: str,
        expires: datetime | None,
        **options: Any,
    ) -> Result:
        home = tenant_named(tenant)
        owner = None if user is None else member(user, home)
        if expires and expires <= timezone.now():
            raise Refused("That moment has passed, the key would never work. Give a later one with --expires.")
        new = create_key(
            home,
            name,
            user=owner,
            models_allowed=[model.strip() for model in models.split(",") if model.strip()],
            may_manage=manage,
            max_output_tokens=max_output_tokens,
            cache_policy=cache,
            expires_at=expires,
        )
        data = {"key": new.clear_text, "prefix": new.row.prefix, "name": name, "tenant": home.name}
        return Result(new.clear_text, data)


def member(name: str, tenant: Tenant) -> User:
    user = user_named(name)
    if not user.memberships.filter(tenant=tenant).exists():
        raise Refused(
            f"{user} is not in {tenant}. Add them with: manage.py create_user {user} --tenant {tenant} --role member"
        )
    if not user.is_active:
        raise Refused(f"{user} is switched off, so the key would not work. Switch them on in the admin.")
    return user
