import argparse
from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser

from tenants import money
from tenants.management.administration import (
    AdministrationCommand,
    Refused,
    Result,
    moment,
    save_changes,
    tenant_named,
    usable_key,
    user_named,
)
from tenants.models import Limit

CALENDAR = (Limit.Window.MINUTE, Limit.Window.HOUR, Limit.Window.DAY, Limit.Window.MONTH)


class Command(AdministrationCommand):
    help = "Sets how much may be used in a window. A limit of the same scope, metric, window and model is changed."

    def add_arguments(self, parser: CommandParser) -> None:
        scope = parser.add_mutually_exclusive_group(required=True)
        scope.add_argument("--tenant", metavar="NAME")
        scope.add_argument("--user", metavar="NAME")
        scope.add_argument("--key", metavar="PREFIX")
        scope.add_argument("--default", action="store_true", help="Each key that has no such limit of its own.")
        scope.add_argument("--address", action="store_true", help="Each client address.")
        parser.add_argument("--metric", required=True, choices=Limit.Metric.values)
        parser.add_argument(
            "--window", type=window, metavar="SECONDS|minute|hour|day|month", help="Not for concurrent calls."
        )
        parser.add_argument(
            "--amount", required=True, metavar="N", help="0 refuses everything. Cost: in units of the currency."
        )
        parser.add_argument("--model", default="", help="Only calls of this model.")
        parser.add_argument("--shadow", action="store_true", help="Count, but never refuse.")
        parser.add_argument(
            "--alert", action=argparse.BooleanOptionalAction, help="Tell people and webhooks at 80 and 100 %%."
        )
        parser.add_argument("--raise-to", metavar="N", help="More, until a moment; then the amount holds again.")
        parser.add_argument("--until", type=moment, metavar="ISO", help="When that ends, e.g. 2026-12-31T18:00+01:00.")

    def administer(
        self,
        *,
        metric: str,
        window: tuple[str, int | None] | None,
        amount: str,
        model: str,
        shadow: bool,
        alert: bool | None,
        raise_to: str | None,
        until: datetime | None,
        **options: Any,
    ) -> Result:
        if (raise_to is None) != (until is None):
            raise Refused("Give --raise-to and --until together: what is raised comes to an end.")
        name, seconds = window or (Limit.Window.NONE, None)
        row = the_one(
            Limit(metric=metric, window=name, window_seconds=seconds, model=model.strip(), **self.subject(**options))
        )
        mode = Limit.Mode.SHADOW if shadow else Limit.Mode.ENFORCE
        # What is not said stays as it is.
        more: dict[str, Any] = {} if alert is None else {"alert": alert}
        if raise_to is not None:
            more |= {"override_amount": quantity(metric, raise_to), "override_until": until}
        changed = save_changes(row, amount=quantity(metric, amount), mode=mode, **more)
        data = {
            "id": row.pk,
            "scope": row.scope,
            "metric": metric,
            "window": seconds or name,
            "amount": amount if metric == Limit.Metric.COST else row.amount,
            "mode": mode,
        }
        shadowed = ", without refusing" if shadow else ""
        return Result(f"{'Set' if changed else 'Already set'}: {row}{shadowed}.", data, changed=changed)

    def subject(
        self, *, tenant: str | None, user: str | None, key: str | None, address: bool, **_: Any
    ) -> dict[str, Any]:
        if tenant is not None:
            return {"scope": Limit.Scope.TENANT, "tenant": tenant_named(tenant)}
        if user is not None:
            return {"scope": Limit.Scope.USER, "user": user_named(user)}
        if key is not None:
            return {"scope": Limit.Scope.KEY, "key": usable_key(key)}
        return {"scope": Limit.Scope.ADDRESS if address else Limit.Scope.DEFAULT}


def the_one(limit: Limit) -> Limit:
    """The saved limit that is about the same, else this new one."""
    same = ("scope", "tenant", "user", "key", "metric", "window", "window_seconds", "model")
    # Those of tenants' owners hold besides, and are theirs.
    found = list(Limit.objects.filter(managed_by=None, **{name: getattr(limit, name) for name in same})[:2])
    if len(found) > 1:
        raise Refused("There are several limits of this kind. Delete all but one of them in the admin.")
    return found[0] if found else limit


def window(text: str) -> tuple[str, int | None]:
    """An argparse type: (window, its seconds)."""
    if text in CALENDAR:
        return text, None
    if text.isascii() and text.isdigit() and 0 < int(text) <= 2**31 - 1:
        return Limit.Window.SECONDS, int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: use a number of seconds, or one of {', '.join(CALENDAR)}")


def quantity(metric: str, text: str) -> int:
    try:
        return money.to_nano(text) if metric == Limit.Metric.COST else int(text)
    except ValueError as exc:
        hint = exc if metric == Limit.Metric.COST else f"{text!r} is not a whole number."
        raise Refused(f"amount: {hint}") from None
