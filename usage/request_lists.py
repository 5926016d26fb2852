"""Lists of requests, the newest first, a page at a time, of however many there are.

Pages are asked for by key (started_at, id), not by number: the millionth row is as near as the first. What has an
index is found by it; for what has none (a status, a slow call, …) a page looks through a bounded number of rows, says
how far it has come, and the next one goes on from there. So no question reads more than that, whatever it filters by.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils.dateparse import parse_date, parse_datetime

from tenants.models import ApiKey
from usage.models import Outcome, UsageRecord
from usage.models.records import FAILED, SUCCESSES
from usage.reports.questions import FIRST_YEAR, LAST_YEAR, NOBODY, BadQuestion, check_numbers, number, text
from usage.reports.scopes import Scope
from usage.rollups import day_begins, reporting_zone

PAGE = 50
# How many rows one page looks through, in two steps: most pages are full after the first. Rows of one key lie scattered
# over the table, and PostgreSQL reads some 40 of them a millisecond.
LOOKED_THROUGH = (1_000, 5_000)
# Rows that lie together.
NEWEST = 20_000

# Outcomes that can be asked for at once.
FAILURES = "failures"
STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = re.compile(r"(newer|older)-([0-9]{1,17})-([0-9a-f]{32})")  # up to the year 5138


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the list: right after a row, towards `newer` or older ones."""

    at: datetime
    id: UUID
    newer: bool = False

    def __str__(self) -> str:
        microseconds = (self.at - _EPOCH) // timedelta(microseconds=1)
        return f"{'newer' if self.newer else 'older'}-{microseconds}-{self.id.hex}"

    @classmethod
    def read(cls, value: str) -> Self:
        """Raises BadQuestion."""
        found = _CURSOR.fullmatch(value)
        if found is None:
            raise BadQuestion("page", "page: this is no place in the list. Start from its first page.")
        direction, microseconds, pk = found.groups()
        return cls(_EPOCH + timedelta(microseconds=int(microseconds)), UUID(pk), direction == "newer")

    def rows(self) -> Q:
        # The first half is what the index is entered by.
        if self.newer:
            return Q(started_at__gte=self.at) & ~Q(started_at=self.at, id__lte=self.id)
        return Q(started_at__lte=self.at) & ~Q(started_at=self.at, id__gte=self.id)


@dataclass(frozen=True, slots=True)
class RequestFilters:
    """Each narrows what the scope allows; "" and None do not. `id`: ours; `client_id`: what the client sent as
    x-request-id; `key`: the prefix; `tenant`, `user`: the number of the row; `outcome`: one of Outcome, or "failures";
    `status`: "404", or "4xx"; `slower_ms`: took at least so many milliseconds."""

    id: str = ""
    client_id: str = ""
    tenant: str = ""
    key: str = ""
    user: str = ""
    model: str = ""
    backend: str = ""
    outcome: str = ""
    status: str = ""
    end_user: str = ""
    since: datetime | None = None
    until: datetime | None = None
    slower_ms: int | None = None

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Self:
        """Of the parameters of an address, by the names of the fields. Raises BadQuestion."""
        texts = {name: text(query, name, 500).strip() for name in _TEXTS}
        check_numbers(texts)
        if texts["outcome"] and texts["outcome"] not in (FAILURES, *Outcome.values):
            raise BadQuestion("outcome", f"outcome: one of {FAILURES}, {', '.join(Outcome.values)}.")
        status = texts["status"]
        if status and status not in STATUS_CLASSES and not (len(status) == 3 and number(status)):
            raise BadQuestion("status", f"status: a number such as 404, or one of {', '.join(STATUS_CLASSES)}.")
        slower = text(query, "slower_ms", 12).strip()
        if slower and not number(slower):
            raise BadQuestion("slower_ms", "slower_ms: a number of milliseconds, 1 or more.")
        return cls(
            **texts,
            since=_moment(query, "since"),
            until=_moment(query, "until"),
            slower_ms=number(slower) if slower else None,
        )

    def query(self) -> dict[str, str]:
        """What read() makes these filters of."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        written = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
        return {name: str(value) for name, value in written.items() if value}

    def conditions(self, scope: Scope) -> dict[str, Q]:
        """By the names of the fields. What is not there, and what is another's, alike find nothing (T1)."""
        found = {name: Q(**{name: value}) for name in ("model", "backend") if (value := getattr(self, name))}
        if self.id:
            found["id"] = Q(pk=_uuid(self.id))
        if self.client_id:
            # The first half is the condition of the index, which SQLite does not conclude by itself; so below.
            found["client_id"] = ~Q(client_request_id="") & Q(client_request_id=self.client_id)
        if self.end_user:
            found["end_user"] = ~Q(end_user="") & Q(end_user=self.end_user)
        # A key and a user of the scope, so that not even the time it takes tells of others.
        if self.key:
            found["key"] = _of_key(scope, "api_key", prefix=self.key)
        if self.user:
            found["user"] = Q(user=None) if self.user == NOBODY else _of_key(scope, "user", user=number(self.user))
        if self.tenant:
            found["tenant"] = Q(tenant=number(self.tenant))
        if self.outcome:
            if self.outcome not in SUCCESSES:
                found["failures"] = FAILED
            if self.outcome != FAILURES:
                found["outcome"] = Q(outcome=self.outcome)
        if self.status:
            first, last = self._statuses()
            found["status"] = Q(status__gte=first, status__lte=last)
        if self.slower_ms:
            found["slower_ms"] = Q(total_us__gte=self.slower_ms * 1000)
        return found

    def _statuses(self) -> tuple[int, int]:
        if self.status in STATUS_CLASSES:
            return int(self.status[0]) * 100, int(self.status[0]) * 100 + 99
        return int(self.status), int(self.status)

    def split(self, scope: Scope) -> tuple[Q, Q]:
        """What an index serves, in the order of time; and what is left to be looked through."""
        conditions, served = self.conditions(scope), scope.rows & self._times()
        served &= conditions.pop("tenant", Q())
        by_tenant = self.tenant or scope.slug.startswith("tenant-")
        for name in ("id", "client_id", "key", *(["end_user"] if by_tenant else []), "user", "failures"):
            if name in conditions and not (name == "user" and self.user == NOBODY):
                served &= conditions.pop(name)
                break
        others = Q()
        for condition in conditions.values():
            others &= condition
        return served, others

    def _times(self) -> Q:
        found = Q()
        if self.since:
            found &= Q(started_at__gte=self.since)
        if self.until:
            found &= Q(started_at__lt=self.until)
        return found


_TEXTS = tuple(field.name for field in fields(RequestFilters) if field.type is str or field.type == "str")


@dataclass(frozen=True, slots=True)
class Page:
    """`records`: the newest first. `newer`, `older`: where the list goes on, None at its ends. `searched_to`: the page
    is not full because it has looked through as many rows as it may, back (or forth) to this moment."""

    records: list[UsageRecord]
    newer: Cursor | None
    older: Cursor | None
    searched_to: datetime | None = None


def page(scope: Scope, filters: RequestFilters, cursor: Cursor | None = None, size: int = PAGE) -> Page:
    newer = cursor is not None and cursor.newer
    found, paused = _found(scope, filters, cursor, size)
    full = len(found) > size
    found = found[:size]
    beyond = Cursor(found[-1].started_at, found[-1].pk, newer) if full else paused
    back = None
    if cursor is not None:
        # Where there is nothing before, the page before is empty, and says so.
        first = found[0] if found else None
        back = Cursor(first.started_at, first.pk, not newer) if first else replace(cursor, newer=not newer)
    searched_to = paused.at if paused and not full else None
    if newer:
        return Page(found[::-1], beyond, back, searched_to)
    return Page(found, back, beyond, searched_to)


def parts(scope: Scope, filters: RequestFilters, names: Sequence[str], size: int = 2000) -> Iterator[list[Any]]:
    """All of the list, the newest first, as values of the named columns (the first "id", the third "started_at"):
    for exports. Memory holds one part."""
    cursor = None
    while True:
        found, paused = _found(scope, filters, cursor, size, names)
        full = len(found) > size
        yield found[:size]
        if full:
            cursor = Cursor(found[size - 1][2], found[size - 1][0])
        elif paused is None:
            return
        else:
            cursor = paused


def newest(rows: "QuerySet[UsageRecord]") -> "QuerySet[UsageRecord]":
    """As many of the newest as one page looks through; `rows` has an index in the order of time."""
    end = _row_at(rows.order_by("-started_at", "-id"), NEWEST)
    return rows if end is None else rows.filter(started_at__gte=end.at)


def one(scope: Scope, pk: str) -> UsageRecord | None:
    """A request by our id, if the scope has it."""
    return UsageRecord.objects.filter(scope.rows, pk=_uuid(pk)).first()


def _found(
    scope: Scope, filters: RequestFilters, cursor: Cursor | None, size: int, names: Sequence[str] = ()
) -> tuple[list[Any], Cursor | None]:
    """Up to one more than `size` rows in the direction of the cursor; and where the search paused, if it did."""
    newer = cursor is not None and cursor.newer
    order = ("started_at", "id") if newer else ("-started_at", "-id")
    served, others = filters.split(scope)
    indexed = UsageRecord.objects.filter(served).order_by(*order)
    if not others:
        return list(_columns(_after(indexed, cursor), names)[: size + 1]), None
    found: list[Any] = []
    for many in LOOKED_THROUGH:
        part = _after(indexed, cursor)
        end = _row_at(part, many)
        if end is not None:
            last = Q(started_at__lte=end.at) if newer else Q(started_at__gte=end.at)
            # Those of the same microsecond as the last one, but behind it, belong to the next part.
            part = part.filter(last).exclude(Cursor(end.at, end.id, newer).rows())
        found += _columns(part.filter(others), names)[: size + 1 - len(found)]
        cursor = Cursor(end.at, end.id, newer) if end else None
        if cursor is None or len(found) > size:
            break
    return found, cursor


def _columns(rows: "QuerySet[UsageRecord]", names: Sequence[str]) -> Any:
    return rows.values_list(*names) if names else rows


def _after(rows: "QuerySet[UsageRecord]", cursor: Cursor | None) -> "QuerySet[UsageRecord]":
    return rows if cursor is None else rows.filter(cursor.rows())


def _row_at(rows: "QuerySet[UsageRecord]", number: int) -> Cursor | None:
    """The place of so manieth row, from an index alone; None if there are fewer."""
    found = rows.values_list("started_at", "id")[number - 1 : number]
    return next((Cursor(at, pk) for at, pk in found), None)


def _of_key(scope: Scope, column: str, **wanted: object) -> Q:
    """The records that have a column as a key of the scope has it; if it has none such, none, and nothing is looked
    through for them."""
    of_key = "pk" if column == "api_key" else column
    keys = scope.rows if scope.keys is None else scope.keys
    value = ApiKey.objects.filter(keys, **wanted).values_list(of_key, flat=True).first()
    return Q(**{column: value}) if value else Q(pk__in=())


def _moment(query: Mapping[str, str], name: str) -> datetime | None:
    """ISO 8601; without an offset in the reporting zone; a day alone is its beginning."""
    value = text(query, name, 40).strip()
    try:
        # In an address a plus sign is a blank.
        at = _parsed(value.replace(" ", "+") if "T" in value else value)
    except (ValueError, OverflowError):
        at = None
    if value and (at is None or not FIRST_YEAR <= at.year <= LAST_YEAR):
        raise BadQuestion(name, f"{name}: write 2026-12-31 or 2026-12-31T23:59:00+01:00.")
    return at


def _parsed(value: str) -> datetime | None:
    if day := parse_date(value):
        return day_begins(day, reporting_zone())
    at = parse_datetime(value)
    return at if at is None or at.tzinfo else at.replace(tzinfo=reporting_zone())


def _uuid(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        return UUID(int=0)
