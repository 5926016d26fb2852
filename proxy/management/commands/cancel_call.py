import getpass
import time
from typing import Any
from uuid import UUID

from django.core.management.base import CommandParser

from proxy import cancellation
from tenants.management.administration import AdministrationCommand, Refused, Result, WrongUsage, one_line, refusals
from usage.models import UsageRecord
from usage.models.records import Outcome

# Seconds. Workers hear of it within a quarter of one, and store the record within another.
WAIT = 10.0
PAUSE = 0.1


class Command(AdministrationCommand):
    help = "Ends a running call, in whichever process it runs, and says what became of it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("call", help="Its id: the x-request-id of its answer, or from the live page.")
        parser.add_argument(
            "--wait", type=float, default=WAIT, metavar="SECONDS", help="For it to end (default: %(default).0f)."
        )

    def handle(self, *args: Any, **options: Any) -> str:
        # Not in a transaction: the workers must see the request while this waits for what they make of it.
        with refusals():
            result = self.administer(**options)
        return result.as_json() if options["json"] else one_line(result.text)

    def administer(self, *, call: str, wait: float = WAIT, **options: Any) -> Result:
        try:
            number = UUID(call)
        except ValueError:
            raise WrongUsage(f"“{call[:64]}” is no id of a call. It has 32 hexadecimal digits.") from None
        if ended := UsageRecord.objects.filter(pk=number).first():
            return _told(ended, changed=False)
        cancellation.request(number.hex, f"{_person()} at the shell")
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if ended := UsageRecord.objects.filter(pk=number).first():
                return _told(ended, changed=ended.outcome == Outcome.CANCELLED)
            time.sleep(PAUSE)
        raise Refused(
            f"No call {number.hex} has ended within {wait:g} s: it does not exist, or the gateway does not run "
            "or has lost its database. The live page lists the calls that run."
        )


def _told(record: UsageRecord, *, changed: bool) -> Result:
    data = {"call": record.pk.hex, "outcome": record.outcome}
    text = f"Cancelled {record.pk.hex}." if changed else f"The call {record.pk.hex} had ended: {record.outcome}."
    return Result(text, data, changed=changed)


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
