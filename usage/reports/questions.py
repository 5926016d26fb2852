"""What is asked of the roll-ups, as the address of a page says it. Only what is listed here can be asked (T2)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from typing import Any, Self

from django.db.models import Q

from tenants.models import ApiKey
from usage.reports.ranges import CUSTOM, FIRST_YEAR, LAST_YEAR, MOST_DAYS, PRESETS, Range, preset
from usage.reports.totals import MEASURES, Measure

HOUR, DAY, MONTH = "hour", "day", "month"
# What the lines of a report are of → its name on pages.
PERIODS = {HOUR: "Hour", DAY: "Day", MONTH: "Month"}
GROUPS = {
    "model": "Model",
    "key": "Key",
    "user": "User",
    "backend": "Backend",
    "end_user": "End user",
    "tenant": "Tenant",
}
BY = {**PERIODS, **GROUPS}
# The longest range that is told by the hour, and by the day; both come from roll-ups, but nobody reads so many lines.
MOST_DAYS_BY_HOUR = 31
MOST_DAYS_BY_DAY = 800
TOP = 8
MOST_TOP = 500

# Written where a filter asks for calls of no user (keys of the tenant itself).
NOBODY = "none"


class BadQuestion(ValueError):
    """`parameter`: of the address. The text says what to write instead."""

    def __init__(self, parameter: str, text: str) -> None:
        super().__init__(text)
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Filters:
    """Each narrows what the scope allows; "" does not. `key`: the prefix. `user`, `tenant`: the number of the row."""

    model: str = ""
    key: str = ""
    user: str = ""
    backend: str = ""
    tenant: str = ""
    end_user: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Self:
        texts = {name: text(query, name, 500) for name in FILTERS}
        check_numbers(texts)
        return cls(**texts)

    def rows(self) -> Q:
        """A key that is not there, and one that is another's, alike find nothing: the scope comes first."""
        found = Q()
        for name in ("model", "backend", "end_user"):
            if value := getattr(self, name):
                found &= Q(**{name: value})
        if self.key:
            found &= Q(api_key=ApiKey.objects.filter(prefix=self.key).values_list("pk", flat=True).first() or 0)
        if self.user:
            found &= Q(user=None) if self.user == NOBODY else Q(user=number(self.user))
        if self.tenant:
            found &= Q(tenant=number(self.tenant))
        return found

    def query(self) -> dict[str, str]:
        return {name: value for name in FILTERS if (value := getattr(self, name))}


FILTERS = tuple(found.name for found in fields(Filters))


@dataclass(frozen=True, slots=True)
class Question:
    """`by`: of BY. `per`: of PERIODS, what the chart has on its axis. `top`: how many groups are named, the others
    are one. `measure`: what ranks them, and what the chart shows."""

    range: Range
    by: str = DAY
    per: str = DAY
    measure: Measure = MEASURES["tokens"]
    top: int = TOP
    filters: Filters = field(default_factory=Filters)

    @classmethod
    def read(cls, query: Mapping[str, str], today: date, default: str = "30d") -> Self:
        """Of `range` (or `first` and `last`), `by`, `per`, `measure`, `top` and the filters. Raises BadQuestion."""
        asked = _range(query, today, default)
        by = _one_of(query, "by", BY, DAY)
        filters = Filters.read(query)
        labelled = by == "end_user" or bool(filters.end_user)
        shortest = HOUR if asked.days <= 2 and not labelled else DAY
        per = by if by in PERIODS else _one_of(query, "per", PERIODS, shortest if asked.days <= 92 else MONTH)
        if per == HOUR and labelled:
            raise BadQuestion("per", "End users are summed by the day, not by the hour. Ask by day.")
        if per == HOUR and asked.days > MOST_DAYS_BY_HOUR:
            raise BadQuestion("per", f"Hours are told of at most {MOST_DAYS_BY_HOUR} days. Ask by day, or for fewer.")
        if per == DAY and asked.days > MOST_DAYS_BY_DAY:
            raise BadQuestion("per", f"Days are told of at most {MOST_DAYS_BY_DAY} days. Ask by month, or for fewer.")
        measure = MEASURES[_one_of(query, "measure", MEASURES, "tokens")]
        return cls(asked, by, per, measure, _top(query), filters)

    def query(self) -> dict[str, str]:
        """What read() makes this question of: the state of the page, for its address."""
        asked = self.range
        named = {"range": asked.name} if asked.name != CUSTOM else {"first": str(asked.first), "last": str(asked.last)}
        per = {} if self.by in PERIODS else {"per": self.per}
        top = {} if self.top == TOP else {"top": str(self.top)}
        return {**named, "by": self.by, **per, "measure": self.measure.name, **top, **self.filters.query()}


def text(query: Mapping[str, str], name: str, longest: int) -> str:
    """Without what no column holds."""
    value = query.get(name, "")
    if len(value) > longest or "\0" in value:
        raise BadQuestion(name, f"{name}: at most {longest} characters, none of them NUL.")
    return value


def check_numbers(texts: Mapping[str, str]) -> None:
    """Raises BadQuestion where the number of a row is something else. A name of somebody is not said again."""
    for name in ("user", "tenant"):
        value = texts[name]
        if value and not (value.isascii() and value.isdigit()) and not (name == "user" and value == NOBODY):
            raise BadQuestion(name, f"{name}: its number{f', or {NOBODY}' if name == 'user' else ''}.")


def day(query: Mapping[str, str], name: str) -> date | None:
    value = query.get(name, "")
    if not value:
        return None
    try:
        found = date.fromisoformat(value)
    except ValueError:
        raise BadQuestion(name, f"{name}: write a day such as 2026-12-31.") from None
    if not FIRST_YEAR <= found.year <= LAST_YEAR:
        raise BadQuestion(name, f"{name}: write a day of the years {FIRST_YEAR} to {LAST_YEAR}.")
    return found


def _range(query: Mapping[str, str], today: date, default: str) -> Range:
    first, last = day(query, "first"), day(query, "last")
    if first is None and last is None:
        return preset(_one_of(query, "range", PRESETS, default), today)
    last = last or max(today, first or today)
    asked = Range(first or last, last)
    if not 1 <= asked.days <= MOST_DAYS:
        raise BadQuestion("first", f"Ask for at most {MOST_DAYS} days, the first before the last.")
    return asked


def _one_of(query: Mapping[str, str], name: str, known: Mapping[str, Any], default: str) -> str:
    value = query.get(name) or default
    if value not in known:
        raise BadQuestion(name, f"{name}: one of {', '.join(known)}.")
    return value


def _top(query: Mapping[str, str]) -> int:
    value = query.get("top") or str(TOP)
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= MOST_TOP):
        raise BadQuestion("top", f"top: a number from 1 to {MOST_TOP}.")
    return int(value)


def number(value: str) -> int:
    """0, which no row has, of what is none."""
    return int(value) if value.isascii() and value.isdigit() and len(value) <= 18 else 0
