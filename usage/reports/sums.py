"""Sums by day, model or key within some rows: for small tables beside something else."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from django.db.models import Q

from tenants.models import ApiKey
from usage.models import DailyUsage
from usage.reports.ranges import days_of
from usage.reports.totals import SUMS, Totals


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table: a day, a model or a key. `prefix`: the public part of a key."""

    label: Any
    totals: Totals
    prefix: str = ""


def totals(rows: Q, first: date, last: date) -> Totals:
    return Totals.of(_within(rows, first, last).aggregate(**SUMS))


def by_day(rows: Q, first: date, last: date) -> list[Line]:
    """Every day, also those without a request, the oldest first."""
    summed = _within(rows, first, last).values("day").annotate(**SUMS)
    found = {row["day"]: Totals.of(row) for row in summed}
    return [Line(day, found.get(day, Totals())) for day in days_of(first, last)]


def by_model(rows: Q, first: date, last: date) -> list[Line]:
    """The most tokens first."""
    grouped = _within(rows, first, last).values("model").annotate(**SUMS)
    return _largest_first(Line(row["model"], Totals.of(row)) for row in grouped)


def by_key(rows: Q, first: date, last: date) -> list[Line]:
    grouped = list(_within(rows, first, last).values("api_key_id").annotate(**SUMS))
    keys = ApiKey.objects.in_bulk([row["api_key_id"] for row in grouped])
    return _largest_first(
        Line(key.name if key else "a key that is gone", Totals.of(row), key.prefix if key else "")
        for row in grouped
        for key in (keys.get(row["api_key_id"]),)
    )


def _within(rows: Q, first: date, last: date) -> Any:
    return DailyUsage.objects.filter(rows, day__gte=first, day__lte=last).order_by()


def _largest_first(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: (-line.totals.tokens, -line.totals.requests, str(line.label)))
