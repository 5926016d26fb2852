"""In proxy, although prices are usage's: only here is it known how the gateway reads the names of models."""

import argparse
from datetime import date
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils.dateparse import parse_date

from proxy.model_names import canonical_pattern
from proxy.rules_watch import price_rows
from tenants import money
from tenants.management.administration import AdministrationCommand, Result, WrongUsage, one_line, refusals
from tenants.models import Tenant
from usage.models import Rerating
from usage.rerating import Effect, Outcome, preview, rerate


class Command(AdministrationCommand):
    help = (
        "Prices the records of some days anew, by the prices as they now stand, and corrects the sums with them. "
        "--dry-run shows what it would do."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--from", dest="first", type=day, required=True, metavar="DAY", help="The first day.")
        parser.add_argument("--to", dest="last", type=day, required=True, metavar="DAY", help="The last day.")
        parser.add_argument("--model", default="", metavar="M", help="Only calls of this model.")
        parser.add_argument("--dry-run", action="store_true", help="Change nothing.")

    def handle(self, *args: Any, first: date, last: date, model: str, dry_run: bool, **options: Any) -> str:
        if first > last:
            raise WrongUsage("--from: give a day that is not after that of --to.")
        rerating = Rerating(first=first, last=last, model=canonical_pattern(model))
        outcome = Outcome()
        # Each batch is a transaction of its own; what is interrupted is run again.
        with refusals():
            if dry_run:
                outcome = preview(rerating, price_rows())
            else:
                for outcome in rerate(rerating, price_rows()):
                    if options["verbosity"] > 0:
                        self.stderr.write(f"{outcome.total.records} records")
            names = dict(Tenant.objects.filter(pk__in=list(outcome.tenants)).values_list("pk", "name"))
        tenants = {names.get(pk, f"number {pk}"): effect for pk, effect in outcome.tenants.items()}
        data = {
            **written(outcome.total),
            "tenants": {name: written(effect) for name, effect in sorted(tenants.items())},
            "currency": settings.GATEWAY.currency,
            "dry_run": dry_run,
        }
        result = Result(
            "\n".join([
                sentence(outcome.total, dry_run=dry_run),
                *(f"{one_line(name)}: {difference(effect)}" for name, effect in sorted(tenants.items())),
            ]),
            data,
            changed=not dry_run and outcome.total.changed > 0,
        )  # fmt: skip
        return result.as_json() if options["json"] else result.text


def day(text: str) -> date:
    """An argparse type."""
    try:
        found = parse_date(text)
    except ValueError:
        found = None
    if found is None or not 2000 <= found.year < 9000:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: write 2026-12-31")
    return found


def sentence(effect: Effect, *, dry_run: bool) -> str:
    done = "Would price" if dry_run else "Priced"
    return f"{done} {effect.changed} of {effect.records} records anew: {difference(effect)}."


def difference(effect: Effect) -> str:
    before, after = money.shown(effect.before_nano), money.shown(effect.after_nano)
    cost = f"{before} → {after} {settings.GATEWAY.currency}"
    if not effect.unpriced_before and not effect.unpriced_after:
        return cost
    return f"{cost}, without a price {effect.unpriced_before} → {effect.unpriced_after}"


def written(effect: Effect) -> dict[str, Any]:
    return {
        "records": effect.records,
        "repriced": effect.changed,
        "cost_before": money.shown(effect.before_nano),
        "cost_after": money.shown(effect.after_nano),
        "unpriced_before": effect.unpriced_before,
        "unpriced_after": effect.unpriced_after,
    }
