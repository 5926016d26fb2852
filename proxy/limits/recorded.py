"""What the roll-ups say was used in the windows of the calendar that run now: budgets outlive a process, and Redis."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import F, QuerySet, Sum

from proxy.limits.rules import Rule, calendar_window
from proxy.limits.subjects import LimitRow, counted_for
from usage.models import DailyUsage, UsageBucket

# Minutes are over before it matters; calls at a time and rolling windows are not in the roll-ups.
_WINDOWS = ("hour", "day", "month")
_SUBJECT = {"tenant": "tenant_id", "user": "user_id", "key": "api_key_id", "default": "api_key__prefix"}


def covers(scope: str, rule: Rule) -> bool:
    """Whether the roll-ups can say what was used of a limit."""
    return rule.window in _WINDOWS and scope in _SUBJECT


def read(limits: Iterable[LimitRow], zone: str, now: float, using: str) -> dict[str, int]:
    """What was used in the windows that hold a moment, by key of the counter (Rule.window_at). One query for each
    scope and window that has limits, and for each tenant whose owners limit a user."""
    wanted: dict[tuple[str, str, int | None], list[LimitRow]] = {}
    for row in limits:
        scope, tenant, _, _, rule = row
        if covers(scope, rule):
            wanted.setdefault((scope, rule.window, tenant if scope == "user" else None), []).append(row)
    found: dict[str, int] = {}
    for (scope, window, tenant), rows in wanted.items():
        by_model = any(row[4].model for row in rows)
        sums = _sums(_SUBJECT[scope], window, zone, now, using, by_model=by_model, tenant=tenant)
        for row in rows:
            for key, used in _counted(row, sums, zone, now):
                found[key] = used
    return found


Sums = dict[tuple[object, str], dict[str, int]]


def _sums(column: str, window: str, zone: str, now: float, using: str, *, by_model: bool, tenant: int | None) -> Sums:
    """(subject, model) → metric → amount in the window. Without `by_model` the model is ""."""
    start, end = (datetime.fromtimestamp(at, UTC) for at in calendar_window(window, zone, int(now // 60)))
    rows: QuerySet[Any, Any]
    if window == "hour":
        rows = UsageBucket.objects.using(using).filter(start__gte=start, start__lt=end)
    else:
        first, after = (at.astimezone(ZoneInfo(zone)).date() for at in (start, end))
        rows = DailyUsage.objects.using(using).filter(day__gte=first, day__lt=after)
    if tenant is not None:
        rows = rows.filter(tenant=tenant)
    names = (column, "model") if by_model else (column,)
    summed = rows.order_by().values(*names).annotate(
        n=Sum("requests"), t=Sum(F("prompt_tokens") + F("completion_tokens")), c=Sum("cost_nano")
    )  # fmt: skip
    return {
        (row[column], row.get("model", "")): {"requests": row["n"], "tokens": row["t"], "cost": row["c"]}
        for row in summed
    }


def _counted(row: LimitRow, sums: Sums, zone: str, now: float) -> Iterable[tuple[str, int]]:
    scope, tenant, user, key, rule = row
    subject = user or tenant or key
    totals: dict[object, int] = {}
    for (owner, model), amounts in sums.items():
        if (scope == "default" or owner == subject) and (not rule.model or model == rule.model):
            totals[owner] = totals.get(owner, 0) + amounts.get(rule.metric, 0)
    for owner, used in totals.items():
        whose = str(owner) if scope == "default" else counted_for(scope, tenant, user, key)
        yield rule.window_at(now, "", zone, counted_for=whose).key, used
