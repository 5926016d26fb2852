"""A question answered from the roll-ups: hours from the quarters, all else from days. Never from records."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any

from django.db.models import Case, IntegerField, Q, QuerySet, Value, When
from django.utils import timezone

from tenants.models import ApiKey, Tenant, User
from usage.models import DailyTotal, DailyUsage, EndUserUsage, UsageBucket
from usage.reports.hours import hour_of, hours_of
from usage.reports.questions import DAY, HOUR, MONTH, NOBODY, PERIODS, Question
from usage.reports.ranges import Range, days_of, month_ends, months_of
from usage.reports.scopes import Scope
from usage.reports.totals import SUMS, Totals, added
from usage.rollups import END_USER, day_begins, reporting_zone

_COLUMN = {
    "model": "model", "key": "api_key_id", "user": "user_id", "backend": "backend", "end_user": "end_user",
    "tenant": "tenant_id",
}  # fmt: skip
OTHER = "Other"
NO_LABEL = ""
SERVICE_KEYS = "Service keys"
GONE = "One that is gone"

Start = date | datetime
ByStart = Mapping[Start, Totals]
Rows = QuerySet[Any, Any]
# What a group is told by: a name, or the number of a row; None where a call has no user.
Key = str | int | None


@dataclass(frozen=True, slots=True)
class Period:
    """`start`: a day, the first day of a month, or the beginning of an hour. `label`: as pages write it."""

    start: Start
    label: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class Group:
    """What one model, key, … has of the sums. `value`: what a filter takes for it; None where nothing can be asked
    for. `prefix`: the public part of a key. `periods`: a sum for each period of the report."""

    label: str
    value: str | None
    totals: Totals
    previous: Totals
    periods: tuple[Totals, ...]
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """`groups`: the largest first, then "Other", which stands for so many `others`; empty if asked by a period.
    `zone`: whose days and hours. `as_of`: a finished call is in it within a second."""

    question: Question
    scope: Scope
    zone: str
    as_of: datetime
    totals: Totals
    previous: Totals
    periods: tuple[Period, ...]
    groups: tuple[Group, ...] = ()
    others: int = 0

    @property
    def range(self) -> Range:
        return self.question.range


def report(scope: Scope, question: Question) -> Report:
    zone, as_of = reporting_zone(), timezone.now()
    source = _source(scope, question)
    if question.by in PERIODS:
        sums, groups, others = source.by_start(), (), 0
        previous = source.total(question.range.previous)
    else:
        groups, others = _groups(source)
        parts = zip(*(group.periods for group in groups), strict=True)
        sums = dict(zip(_starts(question), map(added, parts), strict=False))
        previous = added(group.previous for group in groups)
    periods = tuple(Period(start, _written(start, question), sums.get(start, Totals())) for start in _starts(question))
    totals = added(period.totals for period in periods)
    return Report(question, scope, zone.key, as_of, totals, previous, periods, groups, others)


def _groups(source: "_Source") -> tuple[tuple[Group, ...], int]:
    """The groups that are named, then Other; and how many others there are."""
    question = source.question
    found, before = source.by_key(question.range), source.by_key(question.range.previous)
    ranked = sorted(found, key=lambda key: (-_rank(found[key], question), str(key)))
    # A single other one is as short as "Other".
    named = ranked if len(ranked) <= question.top + 1 else ranked[: question.top]
    rest = ranked[len(named) :]
    *sums, others = source.by_key_and_start(named)
    label_of, starts = _labels(question.by, named), _starts(question)
    groups = [
        Group(label, value, found[key], before.pop(key, Totals()), _in_order(by_start, starts), prefix)
        for key, by_start in zip(named, sums, strict=True)
        for label, value, prefix in (label_of(key),)
    ]
    # With what there was before and is no more: its sum belongs to the previous one all the same.
    previous = added(before.values())
    if rest or previous.requests:
        total = added(found[key] for key in rest)
        groups.append(Group(OTHER, None, total, previous, _in_order(others, starts)))
    return tuple(groups), len(rest)


def _rank(totals: Totals, question: Question) -> float:
    """Of a mean or a share the most is not what matters most: those are ranked by how many calls they are of."""
    return (question.measure.of(totals) or 0) if question.measure.additive else totals.requests


def _in_order(sums: ByStart, starts: Iterable[Start]) -> tuple[Totals, ...]:
    return tuple(sums.get(start, Totals()) for start in starts)


# The questions to the database.


def _source(scope: Scope, question: Question) -> "_Source":
    rows = scope.rows & question.filters.rows()
    if question.by == END_USER and not rows:
        return _OfAllEndUsers(question, rows)
    if question.by == END_USER or question.filters.end_user:
        return _OfEndUsers(question, rows)
    return _OfAllTenants(question, rows) if not rows and question.per != HOUR else _Source(question, rows)


class _Source:
    """The roll-ups of quarters and days. What is asked of a range as a whole is asked of the days."""

    def __init__(self, question: Question, rows: Q) -> None:
        self.question = question
        self.rows = rows

    @property
    def column(self) -> str:
        return _COLUMN[self.question.by]

    def key(self, value: Any) -> Key:
        """Of what stands in the column."""
        return value

    def everything(self, asked: Range) -> Rows:
        return DailyUsage.objects.filter(self.rows, **_between(asked)).order_by()

    def grouped(self, asked: Range) -> Rows:
        """What has the column."""
        return self.everything(asked)

    def in_periods(self) -> Rows:
        asked = self.question.range
        if self.question.per != HOUR:
            return self.grouped(asked)
        zone = reporting_zone()
        begin, end = day_begins(asked.first, zone), day_begins(asked.last + timedelta(days=1), zone)
        return UsageBucket.objects.filter(self.rows, start__gte=begin, start__lt=end).order_by()

    def total(self, asked: Range) -> Totals:
        return Totals.of(self.everything(asked).aggregate(**SUMS))

    def by_start(self) -> ByStart:
        hours = self.question.per == HOUR
        rows = self.in_periods() if hours else self.everything(self.question.range)
        name = "start" if hours else "day"
        return _folded(((row[name], Totals.of(row)) for row in rows.values(name).annotate(**SUMS)), self.question)

    def by_key(self, asked: Range) -> dict[Key, Totals]:
        column = self.column
        return {self.key(row[column]): Totals.of(row) for row in self.grouped(asked).values(column).annotate(**SUMS)}

    def by_key_and_start(self, named: list[Key]) -> list[ByStart]:
        """One for each of the named keys, and one for all others."""
        name = "start" if self.question.per == HOUR else "day"
        # Numbered by the database, so that it does not send one by one what is only added up.
        number = Case(
            *(When(_is(self.column, key), then=Value(position)) for position, key in enumerate(named)),
            default=Value(len(named)),
            output_field=IntegerField(),
        )
        summed = self.in_periods().annotate(number=number).values("number", name).annotate(**SUMS)
        found: list[list[tuple[Start, Totals]]] = [[] for _ in range(len(named) + 1)]
        for row in summed:
            found[row["number"]].append((row[name], Totals.of(row)))
        return [_folded(sums, self.question) for sums in found]


class _OfEndUsers(_Source):
    """Their roll-up has no row for calls without a label: those are what is left of all calls."""

    def everything(self, asked: Range) -> Rows:
        return self.grouped(asked) if self.question.filters.end_user else super().everything(asked)

    def grouped(self, asked: Range) -> Rows:
        return EndUserUsage.objects.filter(self.rows, **_between(asked)).order_by()

    def by_key(self, asked: Range) -> dict[Key, Totals]:
        found = super().by_key(asked)
        if not self.question.filters.end_user and (unlabelled := self.total(asked) - added(found.values())).requests:
            found[NO_LABEL] = unlabelled
        return found

    def by_key_and_start(self, named: list[Key]) -> list[ByStart]:
        found = super().by_key_and_start(named)
        if not self.question.filters.end_user:
            place = named.index(NO_LABEL) if NO_LABEL in named else len(named)
            found[place] = _plus(found[place], _less(self.by_start(), found))
        return found


class _OfAllTenants(_Source):
    """Days of all tenants, by one thing: a roll-up of its own, since their rows are too many to be added up."""

    column = "value"

    def key(self, value: Any) -> Key:
        return value if self.question.by in ("model", "backend") else int(value) if value else None

    def everything(self, asked: Range) -> Rows:
        return DailyTotal.objects.filter(dimension="", **_between(asked)).order_by()

    def grouped(self, asked: Range) -> Rows:
        return DailyTotal.objects.filter(dimension=self.question.by, **_between(asked)).order_by()

    def by_key_and_start(self, named: list[Key]) -> list[ByStart]:
        place = {"" if key is None else str(key): number for number, key in enumerate(named)}
        rows = self.grouped(self.question.range).filter(value__in=place)
        found: list[list[tuple[Start, Totals]]] = [[] for _ in named]
        for row in rows.values("value", "day").annotate(**SUMS):
            found[place[row["value"]]].append((row["day"], Totals.of(row)))
        sums = [_folded(parts, self.question) for parts in found]
        return [*sums, _less(self.by_start(), sums)]


class _OfAllEndUsers(_OfAllTenants):
    """As those, with what is left of all calls for those without a label."""

    def key(self, value: Any) -> Key:
        return value

    def by_key(self, asked: Range) -> dict[Key, Totals]:
        found = super().by_key(asked)
        if (unlabelled := self.total(asked) - added(found.values())).requests:
            found[NO_LABEL] = unlabelled
        return found

    def by_key_and_start(self, named: list[Key]) -> list[ByStart]:
        *sums, others = super().by_key_and_start(named)
        if NO_LABEL not in named:
            return [*sums, others]
        rows = self.grouped(self.question.range).values("day").annotate(**SUMS)
        labelled = _folded(((row["day"], Totals.of(row)) for row in rows), self.question)
        sums[named.index(NO_LABEL)] = unlabelled = _less(self.by_start(), [labelled])
        return [*sums, _less(others, [unlabelled])]


def _between(asked: Range) -> dict[str, date]:
    return {"day__gte": asked.first, "day__lte": asked.last}


def _is(column: str, key: Key) -> Q:
    return Q(**{f"{column}__isnull": True}) if key is None else Q(**{column: key})


def _less(sums: ByStart, parts: Iterable[ByStart]) -> ByStart:
    """What is left of sums without their parts."""
    left = dict(sums)
    for part in parts:
        for start, totals in part.items():
            left[start] = left.get(start, Totals()) - totals
    return left


def _plus(sums: ByStart, more: ByStart) -> ByStart:
    return {start: sums.get(start, Totals()) + more.get(start, Totals()) for start in {*sums, *more}}


# Periods.


def _folded(sums: Iterable[tuple[Any, Totals]], question: Question) -> ByStart:
    """Sums of quarters or days as those of the question's periods."""
    period_of, found = _period_of(question), {}
    for start, totals in sums:
        period = period_of(start)
        found[period] = found[period] + totals if period in found else totals
    return found


def _period_of(question: Question) -> Callable[[Any], Start]:
    if question.per == HOUR:
        zone = reporting_zone()
        return cache(lambda start: hour_of(start, zone))
    if question.per == DAY:
        return lambda day: day
    return lambda day: day.replace(day=1)


def _starts(question: Question) -> list[Any]:
    """Of every period, also of those without a call."""
    first, last = question.range.first, question.range.last
    if question.per == HOUR:
        return hours_of(first, last, reporting_zone())
    return days_of(first, last) if question.per == DAY else months_of(first, last)


def _written(start: Any, question: Question) -> str:
    if question.per == DAY:
        return f"{start:%Y-%m-%d}"
    if question.per == MONTH:
        whole = start >= question.range.first and month_ends(start) <= question.range.last
        return f"{start:%Y-%m}" if whole else f"{start:%Y-%m} (in part)"
    # With its offset, where the clocks show it twice.
    twice = hour_of(start.replace(tzinfo=reporting_zone(), fold=1 - start.fold), reporting_zone()) != start
    return f"{start:%Y-%m-%d %H:%M}{f' {start:%z}' if twice else ''}"


# Names.


def _labels(by: str, keys: Iterable[Key]) -> Callable[[Any], tuple[str, str | None, str]]:
    """How to get the label of a key, what a filter takes for it, and the prefix of an API key."""
    numbers = [key for key in keys if isinstance(key, int)]
    if by == "key":
        rows = ApiKey.objects.in_bulk(numbers)
        return lambda key: (rows[key].name, rows[key].prefix, rows[key].prefix) if key in rows else (GONE, None, "")
    if by in ("user", "tenant"):
        named = {row.pk: str(row) for row in (User if by == "user" else Tenant).objects.filter(pk__in=numbers)}
        return lambda key: (SERVICE_KEYS, NOBODY, "") if key is None else (named.get(key, GONE), str(key), "")
    nothing = "No label" if by == "end_user" else "None"
    return lambda key: (key or nothing, key or None, "")
