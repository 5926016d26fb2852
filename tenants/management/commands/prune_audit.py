from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from tenants.audit_retention import oldest_to_keep, prune
from tenants.management.administration import AdministrationCommand, Result, WrongUsage, refusals


class Command(AdministrationCommand):
    help = "Deletes the audit's entries that are older than AUDIT_RETENTION_DAYS."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--days", type=int, metavar="N", help="Days to keep, instead of AUDIT_RETENTION_DAYS.")

    def handle(self, *args: Any, days: int | None = None, **options: Any) -> str:
        if days is not None and not 1 <= days <= 100_000:
            raise WrongUsage("--days: give a number of days from 1 to 100000.")
        days = settings.AUDIT_RETENTION_DAYS if days is None else days
        deleted = 0
        if days == 0:
            result = Result("Kept all: AUDIT_RETENTION_DAYS is 0.", {"deleted": 0, "before": None}, changed=False)
        else:
            before = oldest_to_keep(days)
            # Each batch is a transaction of its own; what is interrupted goes on where it stopped.
            with refusals():
                for deleted in prune(before):
                    if options["verbosity"] > 1:
                        self.stderr.write(f"{deleted} deleted")
            text = f"Deleted {deleted} entries of before {before:%Y-%m-%d %H:%M} UTC."
            result = Result(text, {"deleted": deleted, "before": before}, changed=deleted > 0)
        return result.as_json() if options["json"] else result.text
