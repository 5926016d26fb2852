from typing import Any

from django.core.management.base import CommandParser

from tenants.management.administration import AdministrationCommand, Refused, Result
from tenants.models import Tenant


class Command(AdministrationCommand):
    help = "Creates a tenant: a team or customer that keys, limits and bills belong to."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")

    def administer(self, *, name: str, **options: Any) -> Result:
        tenant = Tenant.objects.filter(name=name).first()
        if tenant is None:
            tenant = Tenant(name=name)
            tenant.full_clean()
            tenant.save()
            return Result(f"Created the tenant {tenant}.", {"tenant": tenant.name, "id": tenant.pk})
        if tenant.archived_at:
            raise Refused(f"A tenant “{name}” was deleted. Restore it in the admin, or choose another name.")
        return Result(f"The tenant {tenant} exists.", {"tenant": tenant.name, "id": tenant.pk}, changed=False)
