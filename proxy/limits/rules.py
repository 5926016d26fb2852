"""Limits as the data plane knows them, and the arithmetic of their windows. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

# A rolling window is counted in this many parts; what was used leaves it up to one part late, never early.
PARTS = 60


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

    def describe(self) -> str:
        """`25 requests per 30 s for this key`."""
        what = {"cost": "nano-units of cost", "concurrent": "calls at a time"}.get(self.metric, self.metric)
        each = {"seconds": f" per {self.seconds} s", "none": ""}.get(self.window, f" per {self.window}")
        model = f" of {self.model}" if self.model else ""
        return f"{self.amount} {what}{each}{model} for {self.subject}"


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a call takes of each metric: estimated when it is reserved, true when it is settled."""

    tokens: int = 0
    cost: int = 0

    def of(self, metric: str) -> int:
        if metric == "tokens":
            return self.tokens
        return self.cost if metric == "cost" else 1


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
