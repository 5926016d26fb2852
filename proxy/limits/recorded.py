"""What the roll-ups say was used in the windows of the calendar that run now: budgets outlive a process, and Redis."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import F, QuerySet, Sum

from proxy.limits.rules import Rule, calendar_window
from usage.models import DailyUsage, UsageBucket

# (scope, tenant id, user id, key id, rule), as in snapshot.Tables.
LimitRow = tuple[str, int | None, int | None, int | None, Rule]

# Minutes are over before it matters; calls at a time and rolling windows are not in the roll-ups.
_WINDOWS = ("hour", "day", "month")
_SUBJECT = {"tenant": "tenant_id", "user": "user_id", "key": "api_key_id", "default": "api_key__prefix"}


def read(limits: Iterable[LimitRow], zone: str, now: float, using: str) -> dict[str, int]:
    """What was used, by key of the counter (Rule.window_at). One query for each scope and window that has limits."""
    wanted: dict[tuple[str, str], list[LimitRow]] = {}
    for row in limits:
        scope, rule = row[0], row[4]
        if rule.window in _WINDOWS and scope in _SUBJECT:
            wanted.setdefault((scope, rule.window), []).append(row)
    found: dict[str, int] = {}
    for (scope, window), rows in wanted.items():
        sums = _sums(_SUBJECT[scope], window, zone, now, using, by_model=any(row[4].model for row in rows))
        for row in rows:
            for key, used in _counted(row, sums, zone, now):
                found[key] = used
    return found


Sums = dict[tuple[object, str], dict[str, int]]


def _sums(column: str, window: str, zone: str, now: float, using: str, *, by_model: bool) -> Sums:
    """(subject, model) → metric → amount since the window began. Without `by_model` the model is ""."""
    start = datetime.fromtimestamp(calendar_window(window, zone, int(now // 60))[0], UTC)
    rows: QuerySet[Any, Any]
    if window == "hour":
        rows = UsageBucket.objects.using(using).filter(start__gte=start)
    else:
        rows = DailyUsage.objects.using(using).filter(day__gte=start.astimezone(ZoneInfo(zone)).date())
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
    subject = tenant or user or key
    totals: dict[object, int] = {}
    for (owner, model), amounts in sums.items():
        if (scope == "default" or owner == subject) and (not rule.model or model == rule.model):
            totals[owner] = totals.get(owner, 0) + amounts.get(rule.metric, 0)
    for owner, used in totals.items():
        counted_for = str(owner) if scope == "default" else f"{scope} {owner}"
        yield rule.window_at(now, "", zone, counted_for=counted_for).key, used
