"""What people see of their usage: sums of the daily roll-up, never of records. Numbers only; templates format them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from django.db.models import Q, Sum
from django.utils import timezone

from tenants.models import ApiKey, Role, User
from usage.models import DailyUsage
from usage.rollups import day_of, reporting_zone

MEASURES = ("requests", "failures", "estimated", "unpriced", "prompt_tokens", "completion_tokens", "cost_nano")


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose usage: one's own, or a whole tenant's for its owners and viewers."""

    slug: str
    label: str
    rows: Q


@dataclass(frozen=True, slots=True)
class Totals:
    """`cost_nano`: of the priced requests. `unpriced`: requests that had no price, which is not a price of 0."""

    requests: int = 0
    failures: int = 0
    estimated: int = 0
    unpriced: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def priced(self) -> int:
        return self.requests - self.unpriced


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table: a day, a model or a key. `prefix`: the public part of a key."""

    label: Any
    totals: Totals
    prefix: str = ""


def today() -> date:
    """Of the reporting zone."""
    return day_of(timezone.now(), reporting_zone())


def scopes(user: User) -> list[Scope]:
    """What a person may see, the widest first. Everything that follows is asked within one of these (T1, T2)."""
    memberships = list(user.memberships.filter(tenant__archived_at=None).select_related("tenant"))
    found = [
        Scope(f"tenant-{membership.tenant_id}", str(membership.tenant), Q(tenant=membership.tenant_id))
        for membership in memberships
        if membership.role in (Role.OWNER, Role.VIEWER)
    ]
    if any(membership.role != Role.VIEWER for membership in memberships):
        tenants = [membership.tenant_id for membership in memberships]
        found.append(Scope("mine", "My own keys", Q(user=user, tenant__in=tenants)))
    return found


def totals(rows: Q, first: date, last: date) -> Totals:
    return Totals(**_summed(_within(rows, first, last).aggregate(**_SUMS)))


def by_day(rows: Q, first: date, last: date) -> list[Line]:
    """Every day, also those without a request, the oldest first."""
    found = {
        row["day"]: Totals(**_summed(row))
        for row in _within(rows, first, last).order_by().values("day").annotate(**_SUMS)
    }
    days = (first + timedelta(days=number) for number in range((last - first).days + 1))
    return [Line(day, found.get(day, Totals())) for day in days]


def by_model(rows: Q, first: date, last: date) -> list[Line]:
    """The most tokens first."""
    grouped = _within(rows, first, last).order_by().values("model").annotate(**_SUMS)
    return _largest_first(Line(row["model"], Totals(**_summed(row))) for row in grouped)


def by_key(rows: Q, first: date, last: date) -> list[Line]:
    grouped = list(_within(rows, first, last).order_by().values("api_key_id").annotate(**_SUMS))
    keys = ApiKey.objects.in_bulk([row["api_key_id"] for row in grouped])
    return _largest_first(
        Line(key.name if key else "a key that is gone", Totals(**_summed(row)), key.prefix if key else "")
        for row in grouped
        for key in (keys.get(row["api_key_id"]),)
    )


_SUMS = {f"sum_{name}": Sum(name) for name in MEASURES}


def _within(rows: Q, first: date, last: date) -> Any:
    return DailyUsage.objects.filter(rows, day__gte=first, day__lte=last)


def _summed(row: dict[str, Any]) -> dict[str, int]:
    return {name: int(row[f"sum_{name}"] or 0) for name in MEASURES}


def _largest_first(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: (-line.totals.tokens, -line.totals.requests, str(line.label)))
