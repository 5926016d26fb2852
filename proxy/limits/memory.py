"""Limits of one process. One reserve is one step of the loop, so it is atomic."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from proxy.errors import Refusal, TooManyRequests
from proxy.limits.rules import PARTS, Amounts, Rule, calendar_window

# Counters beyond this are dropped when they have nothing in them; addresses come and go.
TIDY_ABOVE = 10_000


@dataclass(slots=True)
class Counter:
    """What one subject used and reserved under one rule."""

    seconds: int = 0  # of a rolling window, else 0
    used: int = 0
    # part of the window → what was used in it (rolling), or its start (calendar)
    parts: dict[int, int] = field(default_factory=dict)
    window_start: float = 0.0
    window_end: float = 0.0

    def forget(self, now: float) -> None:
        """Drops the parts that lie wholly before the rolling window."""
        oldest = (now - self.seconds) * PARTS / self.seconds - 1
        while self.parts and (first := next(iter(self.parts))) <= oldest:
            self.used -= self.parts.pop(first)

    def is_idle(self, now: float) -> bool:
        """Whether it could as well not be there."""
        if self.seconds:
            self.forget(now)
        return not self.used or 0 < self.window_end < now

    def room_at(self, rule: Rule, needed: int, now: float) -> float:
        """Seconds until `needed` will fit, if nothing else is reserved meanwhile."""
        if rule.window != "seconds":
            return max(self.window_end - now, 1.0)
        part, left = rule.seconds / PARTS, self.used
        for number in sorted(self.parts):
            left -= self.parts[number]
            if left + needed <= rule.amount:
                return max((number + 1) * part + rule.seconds - now, 1.0)
        return float(rule.seconds)


@dataclass(slots=True)
class Reservation:
    """What a call holds. Settled exactly once; a second time does nothing."""

    held: list[tuple[Rule, Counter, int, float]]
    settled: bool = False


class MemoryLimits:
    """`clock` gives epoch seconds that never step: see Runtime.now."""

    def __init__(self, zone: str, clock: Callable[[], float] = time.time) -> None:
        self.zone = zone
        self.clock = clock
        self.counters: dict[tuple[int, str, str, int, str], Counter] = {}
        self._tidy_above = TIDY_ABOVE

    def reserve(self, rules: Iterable[Rule], model: str, address: str, estimate: Amounts) -> Reservation:
        """Holds the estimate against all rules, or against none and raises the refusal of the first that is full."""
        now = self.clock()
        held: list[tuple[Rule, Counter, int, float]] = []
        for rule in rules:
            if rule.model and rule.model != model:
                continue
            counter = self._counter(rule, address, now)
            needed = estimate.of(rule.metric)
            if counter.used + needed > rule.amount and rule.enforced:
                raise self._refusal(rule, counter, needed, now)
            held.append((rule, counter, needed, self._part(rule, now)))
        for rule, counter, needed, part in held:
            if rule.window == "seconds":
                counter.parts.setdefault(int(part), 0)
            self._add(rule, counter, needed, part)
        return Reservation(held)

    def settle(self, reservation: Reservation, actual: Amounts) -> None:
        """Replaces what was held by what was used, in the window in which the call was admitted."""
        if reservation.settled:
            return
        reservation.settled = True
        for rule, counter, held, part in reservation.held:
            used = 0 if rule.metric == "concurrent" else actual.of(rule.metric)
            if used != held:
                self._add(rule, counter, used - held, part)

    def release(self, reservation: Reservation) -> None:
        """Gives everything back: the call was refused after all and counts as not made."""
        if reservation.settled:
            return
        reservation.settled = True
        for rule, counter, held, part in reservation.held:
            self._add(rule, counter, -held, part)

    def left(self, rule: Rule, address: str) -> tuple[int, float]:
        """(what is left of a rule, seconds until its window turns)."""
        now = self.clock()
        counter = self._counter(rule, address, now)
        end = counter.window_end - now if rule.window not in ("seconds", "none") else float(rule.seconds)
        return max(rule.amount - counter.used, 0), end

    def _counter(self, rule: Rule, address: str, now: float) -> Counter:
        who = address if rule.per_address else rule.counted_for
        # What was counted in other units, or in windows of another kind, says nothing about a changed rule.
        identity = (rule.id, rule.metric, rule.window, rule.seconds, who)
        counter = self.counters.get(identity)
        if counter is None:
            if len(self.counters) >= self._tidy_above:
                self._tidy(now)
            counter = self.counters[identity] = Counter(rule.seconds if rule.window == "seconds" else 0)
        if rule.window == "seconds":
            counter.forget(now)
        elif rule.window != "none" and not counter.window_start <= now < counter.window_end:
            counter.window_start, counter.window_end = calendar_window(rule.window, self.zone, int(now // 60))
            counter.used = 0
        return counter

    @staticmethod
    def _part(rule: Rule, now: float) -> float:
        return now * PARTS // rule.seconds if rule.window == "seconds" else now

    @staticmethod
    def _add(rule: Rule, counter: Counter, amount: int, part: float) -> None:
        if rule.window == "seconds":
            number = int(part)
            if number not in counter.parts:
                return  # that part has left the window, and what was held in it
            counter.parts[number] += amount
        elif rule.window != "none" and part < counter.window_start:
            return  # the window turned; it began at 0 without us
        counter.used += amount

    def _tidy(self, now: float) -> None:
        for identity in [identity for identity, counter in self.counters.items() if counter.is_idle(now)]:
            del self.counters[identity]
        # With as many that are in use, not again for each newcomer.
        self._tidy_above = max(TIDY_ABOVE, 2 * len(self.counters))

    def _refusal(self, rule: Rule, counter: Counter, needed: int, now: float) -> Refusal:
        left = max(rule.amount - counter.used, 0)
        never = needed > rule.amount
        wait = 1.0 if rule.metric == "concurrent" else counter.room_at(rule, needed, now)
        advice = "It can never fit." if never else f"Try again in {int(wait + 0.999)} s."
        refusal = TooManyRequests(
            f"budget_{rule.metric}" if rule.metric == "cost" else f"limit_{rule.metric}",
            f"The limit of {rule.describe()} is reached: {left} left, this call needs {needed}. {advice}",
            retry_after=wait,
        )
        if never:
            refusal.headers[b"x-should-retry"] = b"false"
        return refusal
