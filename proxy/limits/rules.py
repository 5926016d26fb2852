"""Limits as the data plane knows them, and the arithmetic of their windows. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from math import ceil
from typing import NamedTuple
from zoneinfo import ZoneInfo

from proxy.errors import TooManyRequests

METRICS = ("requests", "tokens", "cost", "concurrent")
# A rolling window is counted in this many parts; what was used leaves it up to one part late, never early.
PARTS = 60


class Window(NamedTuple):
    """Where a call is counted."""

    key: str  # of the counter; each window of the calendar has one of its own
    part: int = 0  # of a rolling window: what is counted now leaves it together
    oldest: int = 0  # the oldest part that is still in the window
    ends: float = 0.0  # epoch seconds; 0 = never


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of tenants.Limit, for the calls of one subject."""

    id: int
    metric: str  # requests, tokens, cost (nano-units), concurrent
    window: str  # seconds, minute, hour, day, month, none
    seconds: int  # of a rolling window, else 0
    amount: int
    enforced: bool
    model: str  # canonical name, or "" for all
    per_address: bool
    subject: str  # whose it is, for the text of a refusal: "key x1Y2z3A4", "the tenant acme", …
    counted_for: str = ""  # who shares a counter: "tenant 3", or the prefix of a key under a default
    override_amount: int | None = None  # in place of the amount, until a moment (epoch seconds)
    override_until: float = 0.0
    usual_amount: int | None = None  # while an override holds: the amount that it stands in place of
    alerts: bool = False  # whether somebody is told when much of it is used
    by_owner: bool = False  # made by a tenant's owners, who may only tighten: it replaces no default
    # What the keys of its counters begin with. What was counted in other units, or in windows of another kind, says
    # nothing about a changed rule.
    prefix: str = field(init=False, repr=False, compare=False)
    # The header that tells the amount, and the names of those that tell what is left, and until when.
    told: tuple[bytes, bytes] = field(init=False, repr=False, compare=False)
    left_header: bytes = field(init=False, repr=False, compare=False)
    reset_header: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = self.metric.encode()
        object.__setattr__(self, "prefix", f"{self.id}:{self.metric}:{self.window}{self.seconds or ''}:")
        object.__setattr__(self, "told", (b"x-ratelimit-limit-%b" % name, b"%d" % self.amount))
        object.__setattr__(self, "left_header", b"x-ratelimit-remaining-%b" % name)
        object.__setattr__(self, "reset_header", b"x-ratelimit-reset-%b" % name)

    def in_force(self, now: float) -> "Rule":
        """With the amount of its override, while that holds."""
        if self.override_amount is None or self.override_until <= now:
            return self
        return replace(self, amount=self.override_amount, usual_amount=self.amount)

    def describe(self) -> str:
        """`25 requests per 30 s for this key`."""
        what = {"cost": "nano-units of cost", "concurrent": "calls at a time"}.get(self.metric, self.metric)
        each = {"seconds": f" per {self.seconds} s", "none": ""}.get(self.window, f" per {self.window}")
        model = f" of {self.model}" if self.model else ""
        raised = ""
        if self.usual_amount is not None:
            until = datetime.fromtimestamp(self.override_until, UTC)
            raised = f" (raised from {self.usual_amount} until {until:%Y-%m-%d %H:%M} UTC)"
        return f"{self.amount} {what}{each}{model} for {self.subject}{raised}"

    @property
    def rolls(self) -> bool:
        return self.window == "seconds"

    def window_at(self, now: float, address: str, zone: str, *, counted_for: str = "") -> Window:
        """The window that holds a moment (epoch seconds), for the calls of an address. `counted_for`: of another."""
        key = self.prefix + (address if self.per_address else counted_for or self.counted_for)
        if self.window == "seconds":
            part = int(now * PARTS // self.seconds)
            return Window(key, part, part - PARTS, now + 2 * self.seconds)
        return _window_of(key, self.window, zone, int(now // 60) if self.window != "none" else 0)

    def turns_after(self, window: Window) -> float:
        """Until when (epoch seconds) calls are counted in this window, and in the same part of it."""
        if self.window == "seconds":
            return (window.part + 1) * self.seconds / PARTS
        return window.ends or float("inf")


class Amounts(NamedTuple):
    """What a call takes of each metric: estimated when it is reserved, true when it is settled."""

    tokens: int = 0
    cost: int = 0

    @property
    def by_metric(self) -> dict[str, int]:
        return {"requests": 1, "tokens": self.tokens, "cost": self.cost, "concurrent": 1}

    @property
    def used(self) -> dict[str, int]:
        """What stays counted when the call has ended, by metric."""
        return {"requests": 1, "tokens": self.tokens, "cost": self.cost, "concurrent": 0}


class Held(NamedTuple):
    """What one rule holds for one call."""

    rule: Rule
    window: Window
    amount: int
    total: int  # used and held by all, this call included, when it was reserved


held_of: Callable[[tuple[Rule, Window, int, int]], Held] = partial(tuple.__new__, Held)
"""Held, twice as fast as by its name: made for each limit of each call."""


class Reservation:
    """What a call holds until it is settled or released, once: a second time does nothing."""

    __slots__ = ("ended", "held", "id", "is_varied")

    def __init__(self, reservation_id: str, held: list[Held], *, is_varied: bool = False) -> None:
        """`is_varied`: known to be of rules that are all enforced, each for another metric."""
        self.id = reservation_id
        self.held = held
        self.is_varied = is_varied
        self.ended = False

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """What the client is told of its limits."""
        return headers(self.held if self.is_varied else _tightest(self.held), now)


def seconds_until_room(
    rule: Rule, window: Window, parts: Mapping[int, int], total: int, needed: int, now: float
) -> float:
    """When `needed` will fit, if nothing else is reserved meanwhile; at least 1."""
    if rule.metric == "concurrent":
        return 1.0
    if not rule.rolls:
        return max(window.ends - now, 1.0)
    length = rule.seconds / PARTS
    for part in sorted(parts):
        total -= parts[part]
        if total + needed <= rule.amount:
            return max((part + 1) * length + rule.seconds - now, 1.0)
    return float(rule.seconds)


def seconds_until_reset(rule: Rule, window: Window, now: float) -> float | None:
    """Until the window turns, or until what is counted now has left it; None for calls at a time."""
    if rule.metric == "concurrent":
        return None
    return rule.seconds if rule.rolls else window.ends - now


def headers(held: Iterable[Held], now: float) -> list[tuple[bytes, bytes]]:
    """`x-ratelimit-limit-…`, `-remaining-…` and `-reset-…` (as OpenAI names them), of one limit for each metric.

    Reset: seconds until the window turns, or until what is counted now has left it.
    """
    told: list[tuple[bytes, bytes]] = []
    for rule, window, _, total in held:
        left = rule.amount - total
        told += rule.told, (rule.left_header, b"%d" % left if left > 0 else b"0")
        if rule.metric != "concurrent":
            seconds = rule.seconds if rule.window == "seconds" else window[3] - now  # as seconds_until_reset
            told.append((rule.reset_header, b"%ds" % ceil(seconds) if seconds > 1 else b"1s"))
    return told


def _tightest(held: Iterable[Held]) -> Iterable[Held]:
    """Of those that are enforced, one for each metric: the one of which the least is left."""
    tightest: dict[str, Held] = {}
    for one in held:
        if not one[0].enforced:
            continue
        other = tightest.get(one[0].metric)
        if other is None or _share_left(one) < _share_left(other):
            tightest[one[0].metric] = one
    return tightest.values()


def _share_left(held: Held) -> float:
    rule, _, _, total = held
    return max(rule.amount - total, 0) / rule.amount if rule.amount else 0.0


def has_room(rule: Rule, total: int, needed: int) -> bool:
    """Whether a call is let through by a rule of which `total` is used and held."""
    return total + needed <= rule.amount or not rule.enforced


class Full(NamedTuple):
    """A limit that a call does not fit into."""

    rule: Rule
    window: Window
    parts: Mapping[int, int]  # what was counted in each part of a rolling window
    total: int  # used and held
    needed: int


def refusal_by(full: Sequence[Full], now: float) -> TooManyRequests:
    """By the limit for which the call has to wait longest: to wait for the others would be in vain."""

    def wait(one: Full) -> float:
        return seconds_until_room(one.rule, one.window, one.parts, one.total, one.needed, now)

    worst = max(full, key=lambda one: (one.needed > one.rule.amount, wait(one)))
    return refusal(worst.rule, worst.window, worst.total, worst.needed, wait(worst), now)


def refusal(rule: Rule, window: Window, total: int, needed: int, wait: float, now: float) -> TooManyRequests:
    """Says which limit is reached, what is left of it and when it will do. `wait`: seconds."""
    left = max(rule.amount - total, 0)
    never = needed > rule.amount
    advice = "It can never fit." if never else f"Try again in {ceil(max(wait, 1))} s."
    made = TooManyRequests(
        f"budget_{rule.metric}" if rule.metric == "cost" else f"limit_{rule.metric}",
        f"The limit of {rule.describe()} is reached: {left} left, this call needs {needed}. {advice}",
        retry_after=wait,
        headers=dict(headers([Held(rule, window, needed, total)], now)),
    )
    if never:
        made.headers[b"x-should-retry"] = b"false"
    elif rule.alerts:
        made.ran_out = rule.id, window.key
    return made


@lru_cache(maxsize=16384)
def _window_of(key: str, window: str, zone: str, minute: int) -> Window:
    """The window of the calendar that holds a minute of the epoch; that of calls at a time, which has no end."""
    if window == "none":
        return Window(key)
    start, end = calendar_window(window, zone, minute)
    return Window(f"{key}:{int(start)}", ends=end)


@lru_cache(maxsize=4096)
def calendar_window(window: str, zone: str, minute: int) -> tuple[float, float]:
    """(start, end) in epoch seconds of the calendar window that holds a minute of the epoch, in a zone's own days.

    Days have 23 or 25 hours where the zone says so: both ends are local midnights.
    """
    local = datetime.fromtimestamp(minute * 60, ZoneInfo(zone))
    if window == "minute":
        return minute * 60.0, minute * 60.0 + 60
    if window == "hour":
        # An hour of the epoch shifted by the zone's offset: half-hour zones begin theirs at :30 UTC.
        offset = int((local.utcoffset() or timedelta()).total_seconds())
        hour = float((minute * 60 + offset) // 3600 * 3600 - offset)
        return hour, hour + 3600
    start = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if window == "day":
        end = start + timedelta(days=1)
    else:
        start = start.replace(day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    return start.timestamp(), end.timestamp()
