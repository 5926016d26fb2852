from typing import Any

from django.core.management.base import CommandParser

from tenants.announcements import rules_changed
from tenants.management.administration import AdministrationCommand, Refused, Result, key_with_prefix, tenant_named
from tenants.management.commands.add_ip_rule import canonical
from tenants.models import IPRule


class Command(AdministrationCommand):
    help = "Removes the rules of a network: the way back in for who has locked themselves out."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("cidr", help="The network as the rule has it, such as 10.0.0.0/8.")
        parser.add_argument("action", nargs="?", choices=IPRule.Action.values, help="Only rules that do this.")
        scope = parser.add_mutually_exclusive_group()
        scope.add_argument("--tenant", metavar="NAME")
        scope.add_argument("--key", metavar="PREFIX")
        scope.add_argument("--acts-as", metavar="PREFIX")

    def administer(
        self, *, cidr: str, action: str | None, tenant: str | None, key: str | None, acts_as: str | None, **_: Any
    ) -> Result:
        network = canonical(cidr)
        rules = IPRule.objects.filter(
            cidr=network,
            tenant=None if tenant is None else tenant_named(tenant, archived=True),
            key=None if key is None else key_with_prefix(key),
            acts_as=None if acts_as is None else key_with_prefix(acts_as),
        )
        if action is not None:
            rules = rules.filter(action=action)
        found = [f"{rule}" for rule in rules]
        if not found:
            if IPRule.objects.filter(cidr=network).exists():
                raise Refused(f"The rules of {network} are not for this scope. Add --tenant, --key or --acts-as.")
            return Result(f"There is no rule of {network}.", {"cidr": network, "removed": 0}, changed=False)
        rules.delete()
        rules_changed()
        return Result(f"Removed: {', '.join(found)}.", {"cidr": network, "removed": len(found)})
