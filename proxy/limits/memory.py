"""Limits of one process. One reserve is one step of the loop, so it is atomic."""

import time
from collections.abc import Callable, Mapping

from proxy.limits.plans import Place, Plans
from proxy.limits.rules import METRICS, Amounts, Full, Held, Reservation, Rule, Window, has_room, held_of, refusal_by

# Counters beyond this are dropped when they have nothing in them; addresses come and go.
TIDY_ABOVE = 10_000
NOTHING = dict.fromkeys(METRICS, 0)


class Counter:
    """What one subject used and holds under one rule, in one window."""

    __slots__ = ("ends", "held", "parts", "total")

    def __init__(self, window: Window) -> None:
        self.total = 0  # used and held
        self.held = 0  # by calls that have not ended
        # part of a rolling window → what was counted in it
        self.parts: dict[int, int] = {}
        self.ends = window.ends

    def forget_before(self, oldest: int) -> None:
        """Drops the parts that lie wholly before the rolling window."""
        parts = self.parts
        # Not by their order: a clock that was set back adds older ones last.
        for part in [part for part in parts if part < oldest]:
            self.total -= parts.pop(part)

    def add_to(self, part: int, amount: int) -> None:
        """Changes what was counted in a part of a rolling window, as far as that is still in it."""
        if part in self.parts:
            self.parts[part] += amount
            self.total += amount

    def is_idle(self, now: float) -> bool:
        """Whether it could as well not be there."""
        return not self.held and (not self.total or 0 < self.ends <= now)


class MemoryLimits:
    """`clock` gives epoch seconds that never step: see Runtime.now."""

    def __init__(self, zone: str, clock: Callable[[], float] = time.time) -> None:
        self.zone = zone
        self.clock = clock
        self.counters: dict[str, Counter] = {}
        self._tidy_above = TIDY_ABOVE
        self.plans = Plans(zone, self._counters_of)

    def know(self, recorded: Mapping[str, int]) -> None:
        """What the roll-ups say was used in windows of the calendar, by key of the counter."""
        self.plans.recorded = recorded

    def reserve(
        self, call_id: str, rules: tuple[Rule, ...], model: str, address: str, estimate: Amounts
    ) -> Reservation:
        """Holds the estimate against all rules, or against none: raises the refusal by what is full for longest."""
        held: list[Held] = []
        if not rules:
            return Reservation(call_id, held)
        now = self.clock()
        plan = self.plans.of(rules, model, address, now)
        wanted = estimate.by_metric
        is_full = False
        for rule, window, counter in plan.details:
            needed = wanted[rule.metric]
            total = counter.total + needed
            if total > rule.amount and rule.enforced:  # as has_room
                is_full = True
            held.append(held_of((rule, window, needed, total)))
            counter.total = total
            counter.held += needed
            if window[1]:
                counter.parts[window[1]] = counter.parts.get(window[1], 0) + needed
        reservation = Reservation(call_id, held, is_varied=plan.is_varied)
        if is_full:
            # Against all, or against none.
            self.release(reservation)
            raise refusal_by(
                [
                    Full(rule, window, counter.parts, counter.total, needed)
                    for (rule, window, counter), (_, _, needed, _) in zip(plan.details, held, strict=True)
                    if not has_room(rule, counter.total, needed)
                ],
                now,
            )
        return reservation

    def _counters_of(self, places: list[Place], now: float) -> list[tuple[Rule, Window, Counter]]:
        if len(self.counters) >= self._tidy_above:
            self._tidy(now)  # not between two places: a new counter has nothing in it yet
        return [(rule, window, self._counter(rule, window, now)) for rule, window in places]

    def settle(self, reservation: Reservation, actual: Amounts) -> None:
        """Replaces what was held by what was used, in the window in which the call was admitted."""
        self._end(reservation, actual)

    def release(self, reservation: Reservation) -> None:
        """Gives everything back: the call was refused after all and counts as not made."""
        self._end(reservation, None)

    def _end(self, reservation: Reservation, actual: Amounts | None) -> None:
        if reservation.ended:
            return
        reservation.ended = True
        used_by = NOTHING if actual is None else actual.used
        for rule, window, needed, _ in reservation.held:
            key, part, _, _ = window
            used = used_by[rule.metric]
            counter = self.counters.get(key)
            if counter is None:
                # Tidied away with nothing in it: it was estimated to use nothing.
                counter = self.counters[key] = Counter(window)
                if part:
                    counter.parts[part] = 0
            counter.held -= needed
            if part:
                counter.add_to(part, used - needed)
            else:
                counter.total += used - needed

    def total(self, rule: Rule, address: str) -> int:
        """What is used and held of a rule now."""
        now = self.clock()
        return self._counter(rule, rule.window_at(now, address, self.zone), now).total

    @property
    def held(self) -> dict[str, int]:
        """What the calls in flight hold, by counter; those that hold nothing are left out."""
        return {key: counter.held for key, counter in self.counters.items() if counter.held}

    def _counter(self, rule: Rule, window: Window, now: float) -> Counter:
        counter = self.counters.get(window.key)
        is_new = counter is None
        if counter is None:
            counter = self.counters[window.key] = Counter(window)
        if window.part:
            counter.ends = window.ends
            counter.forget_before(window.oldest)
        elif self.plans.recorded and (is_new or rule.metric != "requests"):
            # Calls that were refused in the line have records, but are not counted as requests.
            known = self.plans.recorded.get(window.key, 0) + counter.held
            counter.total = max(counter.total, known)
        return counter

    def _tidy(self, now: float) -> None:
        self.plans.clear()
        for key in [key for key, counter in self.counters.items() if counter.is_idle(now)]:
            del self.counters[key]
        # With as many that are in use, not again for each newcomer.
        self._tidy_above = max(TIDY_ABOVE, 2 * len(self.counters))
