from typing import Any

from django.core.management.base import CommandParser

from tenants.management.administration import AdministrationCommand, Result, key_with_prefix


class Command(AdministrationCommand):
    help = "Ends a key for good. Calls that are being made with it are cut within a second."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prefix", help="The part of the key between the underscores.")

    def administer(self, *, prefix: str, **options: Any) -> Result:
        key = key_with_prefix(prefix)
        changed = key.revoked_at is None
        key.revoke()
        verb = "Revoked" if changed else "Already revoked:"
        data = {"prefix": key.prefix, "name": key.name, "revoked_at": key.revoked_at}
        return Result(f"{verb} {key}.", data, changed=changed)
