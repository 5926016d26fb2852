from typing import Any

from django.core.management.base import CommandParser

from tenants.management.administration import AdministrationCommand, Result, WrongUsage, refusals
from usage import texts
from usage.retention import oldest_to_keep, prune


class Command(AdministrationCommand):
    help = "Deletes the records of calls that are older than some days. What they add up to stays in the roll-ups."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--days", type=int, required=True, metavar="N", help="Whole days to keep besides today.")

    def handle(self, *args: Any, days: int, **options: Any) -> str:
        if not 1 <= days <= 100_000:
            raise WrongUsage("--days: give a number of days from 1 to 100000.")
        deleted = 0
        # Each batch is a transaction of its own; what is interrupted goes on where it stopped.
        with refusals():
            before = oldest_to_keep(days)
            for deleted in prune(before):
                if options["verbosity"] > 0:
                    self.stderr.write(f"{deleted} deleted")
            forgotten = texts.forget()
        text = f"Deleted {deleted} records of before {before:%Y-%m-%d %H:%M} UTC."
        if forgotten:
            text = f"{text} And {forgotten} stored texts that were older than {texts.KEPT.days} days."
        said = {"deleted": deleted, "before": before, "texts": forgotten}
        result = Result(text, said, changed=bool(deleted or forgotten))
        return result.as_json() if options["json"] else result.text
