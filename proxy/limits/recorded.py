"""What the roll-ups say was used in the windows of the calendar that run now: budgets outlive a process, and Redis."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.db.models import F, QuerySet, Sum

from proxy.limits.rules import Rule, Window, calendar_window
from proxy.limits.subjects import LimitRow, counted_for
from usage.models import DailyUsage, UsageBucket

# Minutes are over before it matters; calls at a time and rolling windows are not in the roll-ups.
_WINDOWS = ("hour", "day", "month")
_SUBJECT = {"tenant": "tenant_id", "user": "user_id", "key": "api_key_id", "default": "api_key__prefix"}


# Beyond so many subjects the sums of all are cheaper than a list of them.
MOST_NAMED = 500


def covers(scope: str, rule: Rule) -> bool:
    """Whether the roll-ups can say what was used of a limit."""
    return rule.window in _WINDOWS and scope in _SUBJECT


class Used(NamedTuple):
    """What one subject used of one limit, in one window."""

    limit: LimitRow
    counted_for: str
    window: Window
    amount: int


def read(limits: Iterable[LimitRow], zone: str, now: float, using: str) -> dict[str, int]:
    """What was used in the windows that hold a moment, by key of the counter (Rule.window_at)."""
    return {used.window.key: used.amount for used in by_subject(limits, zone, now, using)}


def by_subject(limits: Iterable[LimitRow], zone: str, now: float, using: str) -> Iterator[Used]:
    """The same, one by one. One query for each scope and window that has limits, and for each tenant whose owners
    limit a user."""
    wanted: dict[tuple[str, str, int | None], list[LimitRow]] = {}
    for row in limits:
        scope, tenant, _, _, rule = row
        if covers(scope, rule):
            wanted.setdefault((scope, rule.window, tenant if scope == "user" else None), []).append(row)
    for (scope, window, tenant), rows in wanted.items():
        summed = _rows(window, zone, now, using)
        if tenant is not None:
            summed = summed.filter(tenant=tenant)
        subjects = {_subject(row) for row in rows}
        if scope != "default" and len(subjects) <= MOST_NAMED:
            summed = summed.filter(**{f"{_SUBJECT[scope]}__in": subjects})
        sums = _sums(summed, _SUBJECT[scope], by_model=any(row[4].model for row in rows))
        for row in rows:
            yield from _counted(row, sums, zone, now)


def _subject(row: LimitRow) -> int | None:
    _, tenant, user, key, _ = row
    return user or tenant or key


Sums = dict[object, dict[str, dict[str, int]]]
"""subject → model → metric → amount"""


def _rows(window: str, zone: str, now: float, using: str) -> "QuerySet[Any, Any]":
    start, end = (datetime.fromtimestamp(at, UTC) for at in calendar_window(window, zone, int(now // 60)))
    if window == "hour":
        return UsageBucket.objects.using(using).filter(start__gte=start, start__lt=end)
    first, after = (at.astimezone(ZoneInfo(zone)).date() for at in (start, end))
    return DailyUsage.objects.using(using).filter(day__gte=first, day__lt=after)


def _sums(rows: "QuerySet[Any, Any]", column: str, *, by_model: bool) -> Sums:
    """Without `by_model` the model is ""."""
    names = (column, "model") if by_model else (column,)
    summed = rows.order_by().values(*names).annotate(
        n=Sum("requests"), t=Sum(F("prompt_tokens") + F("completion_tokens")), c=Sum("cost_nano")
    )  # fmt: skip
    sums: Sums = {}
    for row in summed:
        amounts = {"requests": row["n"], "tokens": row["t"], "cost": row["c"]}
        sums.setdefault(row[column], {})[row.get("model", "")] = amounts
    return sums


def _counted(row: LimitRow, sums: Sums, zone: str, now: float) -> Iterator[Used]:
    scope, tenant, user, key, rule = row
    for owner in sums if scope == "default" else {_subject(row)} & sums.keys():
        models = sums[owner]
        counted = models.values() if not rule.model else [models[rule.model]] if rule.model in models else []
        if not counted:
            continue
        used = sum(amounts.get(rule.metric, 0) for amounts in counted)
        whose = str(owner) if scope == "default" else counted_for(scope, tenant, user, key)
        yield Used(row, whose, rule.window_at(now, "", zone, counted_for=whose), used)
