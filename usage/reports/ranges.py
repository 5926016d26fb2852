"""Ranges of days of the reporting zone."""

import calendar
from dataclasses import dataclass
from datetime import date, timedelta

from django.utils import timezone

from usage.rollups import day_of, reporting_zone

# What the pages offer.
PRESETS = {
    "today": "Today",
    "yesterday": "Yesterday",
    "7d": "7 days",
    "30d": "30 days",
    "90d": "90 days",
    "month": "This month",
    "last-month": "Last month",
    "year": "This year",
}
CUSTOM = "custom"
# Ten years and the leap days in them.
MOST_DAYS = 3653
FIRST_YEAR, LAST_YEAR = 2000, 8999


@dataclass(frozen=True, slots=True)
class Range:
    """From the first to the last day, both included. `name`: of the preset it was, or "custom"."""

    first: date
    last: date
    name: str = CUSTOM

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    @property
    def previous(self) -> "Range":
        """As many days, right before."""
        return Range(self.first - timedelta(days=self.days), self.first - timedelta(days=1))

    @property
    def label(self) -> str:
        return PRESETS.get(self.name, f"{self.first} to {self.last}")


def today() -> date:
    """Of the reporting zone."""
    return day_of(timezone.now(), reporting_zone())


def preset(name: str, today: date) -> Range:
    """Raises KeyError for a name that is none. What runs still ends today."""
    month = today.replace(day=1)
    first, last = {
        "today": (today, today),
        "yesterday": (today - timedelta(days=1), today - timedelta(days=1)),
        "7d": (today - timedelta(days=6), today),
        "30d": (today - timedelta(days=29), today),
        "90d": (today - timedelta(days=89), today),
        "month": (month, today),
        "last-month": ((month - timedelta(days=1)).replace(day=1), month - timedelta(days=1)),
        "year": (today.replace(month=1, day=1), today),
    }[name]
    return Range(first, last, name)


def days_of(first: date, last: date) -> list[date]:
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def months_of(first: date, last: date) -> list[date]:
    """The first days of all months that the range touches."""
    found = [first.replace(day=1)]
    while (month := found[-1] + timedelta(days=31)).replace(day=1) <= last:
        found.append(month.replace(day=1))
    return found


def month_ends(month: date) -> date:
    return month.replace(day=calendar.monthrange(month.year, month.month)[1])
