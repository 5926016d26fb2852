from typing import Any

from django.core.management.base import CommandParser

from proxy.models import CachePurge
from tenants.management.administration import AdministrationCommand, Result, WrongUsage, tenant_named


class Command(AdministrationCommand):
    help = "Throws away kept answers: of a tenant, of a model, or all. Holds for every worker within a second."

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--tenant", help="Those of this tenant; what tenants share goes for all that share it.")
        which.add_argument("--model", help="Those of this model, e.g. qwen3:8b.")
        which.add_argument("--all", action="store_true", help="All of them.")

    def administer(self, *, tenant: str | None, model: str | None, all: bool, **options: Any) -> Result:
        if not (tenant or model or all):
            raise WrongUsage("Say what to throw away: --tenant NAME, --model NAME or --all.")
        purge = CachePurge(
            tenant=tenant_named(tenant, archived=True) if tenant else None, model=model or "", by="shell"
        )
        purge.full_clean()
        purge.save()
        data = {"id": purge.pk, "tenant": tenant, "model": purge.model or None}
        return Result(f"Purged the answers {purge.what}.", data)
