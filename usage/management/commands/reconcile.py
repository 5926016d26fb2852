from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from tenants.management.administration import AdministrationCommand, Refused, Result, refusals
from usage.rollups import Difference, day_of, rebuild, reconcile, reporting_zone

SHOWN = 50


class Command(AdministrationCommand):
    help = "Compares the roll-ups with the records they sum: exit 0 when equal, 1 with the differences when not."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--fix", action="store_true", help="Make the roll-ups of the differing days anew.")

    def handle(self, *args: Any, fix: bool, **options: Any) -> str:
        # Not in one transaction: that would keep calls from being recorded while all of them are read.
        with refusals():
            found = reconcile()
            fixed = fix and bool(found)
            if fixed:
                rebuild(days=sorted({day(difference) for difference in found}))
        result = Result(
            f"Fixed {len(found)} differences." if fixed else "Records and roll-ups are equal.",
            {"differences": [asdict(difference) for difference in found], "fixed": fixed},
            changed=fixed,
        )
        if found and not fix:
            self.stdout.write(result.as_json() if options["json"] else listed(found))
            raise Refused(f"{len(found)} sums differ from the records. Correct them with: manage.py reconcile --fix")
        return result.as_json() if options["json"] else result.text


def listed(differences: list[Difference]) -> str:
    lines = [
        f"{found.table} {found.period} {whose(found)}: "
        f"{found.measure} is {found.rolled_up}, records say {found.records}"
        for found in differences[:SHOWN]
    ]
    rest = len(differences) - SHOWN
    return "\n".join([*lines, f"… and {rest} more; --json lists all."] if rest > 0 else lines)


def whose(found: Difference) -> str:
    if found.table == "DailyTotal":
        return f"{found.dimension} {found.value!r}" if found.dimension else "all calls"
    label = f" end user {found.end_user!r}" if found.end_user else ""
    key = f"tenant {found.tenant_id} key {found.api_key_id} user {found.user_id}"
    return f"{key} {found.model!r} {found.backend!r}{label}"


def day(difference: Difference) -> Any:
    if difference.table == "UsageBucket":
        return day_of(difference.period, reporting_zone())  # type: ignore[arg-type]
    return difference.period
