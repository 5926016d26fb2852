"""How limits stand: amount, used, left, when they reset. What pages, the API and the headers of a call agree on.

What is used comes from the engine of this process, as it is what calls are judged by: with Redis that is one count for
all processes. A process that serves no calls knows only what the roll-ups say.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings

from proxy.limits import recorded
from proxy.limits.compiling import compiled
from proxy.limits.engine import Counted, Source
from proxy.limits.rules import Rule, seconds_until_reset
from proxy.limits.subjects import LimitTable
from proxy.models import WorkerReport
from tenants.models import ApiKey, Limit

# How a default is counted before it is anybody's (LimitTable).
EACH_KEY = "default 0"
# (rules, address) → what is used and held of each; None where this process does not count. See Runtime.counted.
Count = Callable[[Sequence[Rule], str], Counted | None]


def nobody_counts(rules: Sequence[Rule], address: str) -> Counted | None:
    return None


@dataclass(frozen=True, slots=True)
class LimitState:
    """Amounts in the unit of the metric: requests, tokens, nano-units of money, calls at a time."""

    limit: Limit
    rule: Rule
    used: int | None  # with what running calls hold; None: not known here
    resets_at: datetime | None  # None: concurrent calls, which have no window

    @property
    def amount(self) -> int:
        return self.rule.amount

    @property
    def left(self) -> int | None:
        return None if self.used is None else max(self.rule.amount - self.used, 0)

    @property
    def percent(self) -> int:
        """Of the amount, for a bar: 0 to 100."""
        if not self.used:
            return 0 if self.rule.amount else 100
        return min(100 * self.used // self.rule.amount, 100) if self.rule.amount else 100

    @property
    def tone(self) -> str:
        """ok, warn from 80 % on, bad when nothing is left."""
        if self.used is None or self.percent < 80:
            return "ok"
        return "bad" if self.percent >= 100 else "warn"

    def as_json(self) -> dict[str, Any]:
        """For the management API. Money in nano-units, as everywhere in it."""
        limit, rule = self.limit, self.rule
        return {
            "id": limit.pk,
            "scope": limit.scope,
            "for": rule.subject,
            "metric": rule.metric,
            "window": rule.window,
            "window_seconds": rule.seconds or None,
            "model": rule.model or None,
            "amount": rule.amount,
            "usual_amount": rule.usual_amount,
            "raised_until": limit.override_until if rule.usual_amount is not None else None,
            "mode": limit.mode,
            "used": self.used,
            "left": self.left,
            "resets_at": self.resets_at,
        }


@dataclass(frozen=True, slots=True)
class LimitStates:
    """`source`: shared (one count for all processes), process (this one alone), recorded (the roll-ups)."""

    limits: list[LimitState]
    source: Source
    workers: int  # that count each for itself, where the source is a process

    @property
    def note(self) -> str:
        """What a reader must know about the numbers; empty where they are the whole truth."""
        if self.source == "recorded":
            return "As the finished calls say: what runs now, and limits of seconds and minutes, are not known here."
        if self.source == "process" and self.workers > 1:
            return (
                f"Each of {self.workers} workers counts for itself (no Redis, or it does not answer): this is what "
                "one of them knows."
            )
        return ""


def limits_of_key(key: ApiKey, count: Count, address: str = "") -> LimitStates:
    """All limits that hold for the calls of a key, those of others first replaced by its own left out.

    `address`: of the caller, for limits of each client address; without it what they have left is not known.
    """
    rows = {row.pk: row for row in Limit.objects.of_key(key).select_related("tenant", "user", "key").order_by("id")}
    now = time.time()
    rules = LimitTable(map(compiled, rows.values()), now).of_key(key.pk, key.prefix, key.tenant_id, key.user_id)
    return _states([(rows[rule.id], rule) for rule in rules], count, now, address)


def states_of(limits: Iterable[Limit], count: Count) -> LimitStates:
    """How limits of tenants, users and keys stand. Of those that each key or address has a counter of its own for,
    nothing is known here."""
    rows = {row.pk: row for row in limits}
    now = time.time()
    rules = {rule.id: rule for rule in LimitTable(map(compiled, rows.values()), now).all()}
    return _states([(row, rules[pk]) for pk, row in rows.items()], count, now, "")


def _states(pairs: list[tuple[Limit, Rule]], count: Count, now: float, address: str) -> LimitStates:
    countable = [rule for _, rule in pairs if (address or not rule.per_address) and rule.counted_for != EACH_KEY]
    found = count(countable, address)
    if found is None:
        used = _recorded(pairs, now)
        source: Source = "recorded"
    else:
        used = dict(zip((rule.id for rule in countable), found.totals, strict=True))
        source = found.source
    states = [LimitState(row, rule, used.get(rule.id), _reset(rule, now)) for row, rule in pairs]
    workers = WorkerReport.objects.running().count() if source == "process" else 0
    return LimitStates(states, source, workers)


def _recorded(pairs: list[tuple[Limit, Rule]], now: float) -> dict[int, int | None]:
    zone = settings.TIME_ZONE
    known = recorded.read([compiled(row) for row, _ in pairs], zone, now, "default") if pairs else {}
    return {
        rule.id: known.get(rule.window_at(now, "", zone).key, 0) if recorded.covers(row.scope, rule) else None
        for row, rule in pairs
        if rule.counted_for != EACH_KEY
    }


def _reset(rule: Rule, now: float) -> datetime | None:
    seconds = seconds_until_reset(rule, rule.window_at(now, "", settings.TIME_ZONE), now)
    return None if seconds is None else datetime.fromtimestamp(now + seconds, UTC)
