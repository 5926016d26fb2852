from ipaddress import ip_network
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Q
from django.utils import timezone

from tenants.management.administration import AdministrationCommand, Refused, Result, tenant_named, usable_key
from tenants.models import IPRule


class Command(AdministrationCommand):
    help = "Adds a rule on where calls may come from: for all, for a tenant or for a key."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("cidr", help="A network such as 10.0.0.0/8, or one address.")
        parser.add_argument("action", choices=IPRule.Action.values)
        scope = parser.add_mutually_exclusive_group()
        scope.add_argument("--tenant", metavar="NAME")
        scope.add_argument("--key", metavar="PREFIX")
        scope.add_argument("--acts-as", metavar="PREFIX", help="Calls from there without a key are made with this one.")
        parser.add_argument("--note", default="")

    def administer(
        self, *, cidr: str, action: str, tenant: str | None, key: str | None, acts_as: str | None, note: str, **_: Any
    ) -> Result:
        rule = IPRule(
            cidr=canonical(cidr),
            action=action,
            tenant=None if tenant is None else tenant_named(tenant),
            key=None if key is None else usable_key(key),
            acts_as=None if acts_as is None else usable_key(acts_as),
            note=note,
        )
        rule.full_clean()
        found = existing(rule)
        if found is None:
            rule.save()
        elif note and found.note != note:
            found.note = note
            found.save(update_fields=["note"])
        whom = f"calls as {rule.acts_as}" if rule.acts_as else str(rule.tenant or rule.key or "all")
        data = {"cidr": rule.cidr, "action": action, "id": (found or rule).pk}
        return Result(f"{'It is a rule already' if found else 'Added'}: {rule} for {whom}.", data, changed=not found)


def canonical(cidr: str) -> str:
    try:
        return str(ip_network(cidr))
    except ValueError as exc:
        raise Refused(f"{exc}. Write {without_host_bits(cidr)}, or one address.") from None


def without_host_bits(cidr: str) -> str:
    """What was probably meant."""
    try:
        return f"the network {ip_network(cidr, strict=False)}"
    except ValueError:
        return "a network such as 10.0.0.0/8"


def existing(rule: IPRule) -> IPRule | None:
    """A rule that says the same and does not end. Those of tenants' owners are theirs to delete, and hold besides."""
    return (
        IPRule.objects.filter(Q(expires_at=None) | Q(expires_at__gt=timezone.now()))
        .filter(
            cidr=rule.cidr,
            action=rule.action,
            tenant=rule.tenant,
            key=rule.key,
            acts_as=rule.acts_as,
            by_owners=False,
        )
        .order_by("pk")
        .first()
    )
