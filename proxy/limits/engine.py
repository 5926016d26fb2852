"""Which engine counts: the shared one where Redis is set up and answers, else this process alone."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import hiredis

from proxy.limits.connection import RedisAway
from proxy.limits.memory import MemoryLimits
from proxy.limits.redis import LEASE_SECONDS, PATIENCE, RedisLimits, SharedReservation
from proxy.limits.rules import Amounts, Reservation, Rule

Source = Literal["shared", "process", "recorded"]


@dataclass(frozen=True, slots=True)
class Counted:
    """What is used and held, in the order of the rules that were asked for, and who counted it."""

    totals: list[int]
    source: Source


class Limits:
    """`clock` gives epoch seconds that never step. With Redis: `start` and `close` in the loop of the calls."""

    def __init__(
        self,
        zone: str,
        clock: Callable[[], float] = time.time,
        redis_url: str = "",
        *,
        lease_seconds: float = LEASE_SECONDS,
        patience: float = PATIENCE,
    ) -> None:
        self.memory = MemoryLimits(zone, clock)
        self.shared: RedisLimits | None = None
        if redis_url:
            self.shared = RedisLimits(redis_url, zone, clock, lease_seconds=lease_seconds, patience=patience)

    def start(self) -> None:
        if self.shared is not None:
            self.shared.start()

    async def close(self) -> None:
        if self.shared is not None:
            await self.shared.close()

    def know(self, recorded: Mapping[str, int]) -> None:
        """What the roll-ups say was used in windows of the calendar, by key of the counter."""
        self.memory.know(recorded)
        if self.shared is not None:
            self.shared.know(recorded)

    @property
    def is_shared(self) -> bool:
        return self.shared is not None and self.shared.usable

    def reserve(
        self, call_id: str, rules: tuple[Rule, ...], model: str, address: str, estimate: Amounts
    ) -> Reservation:
        """Holds the estimate in this process. Raises TooManyRequests."""
        return self.memory.reserve(call_id, rules, model, address, estimate)

    async def reserve_shared(
        self, call_id: str, rules: tuple[Rule, ...], model: str, address: str, estimate: Amounts
    ) -> Reservation:
        """Holds the estimate for all processes; in this one where Redis does not answer. Raises TooManyRequests."""
        assert self.shared is not None
        try:
            return await self.shared.reserve(call_id, rules, model, address, estimate)
        except RedisAway:
            return self.memory.reserve(call_id, rules, model, address, estimate)

    async def count(self, rules: Sequence[Rule], address: str) -> Counted:
        """What is used and held of each rule now, as the next call would be judged by it."""
        if self.is_shared:
            try:
                return Counted(await self._shared_totals(rules, address), "shared")
            except (RedisAway, hiredis.HiredisError):
                pass
        return Counted([self.memory.total(rule, address) for rule in rules], "process")

    async def _shared_totals(self, rules: Sequence[Rule], address: str) -> list[int]:
        assert self.shared is not None
        found = await asyncio.gather(*(self.shared.total(rule, address) for rule in rules))
        now = self.shared.clock()
        totals = []
        for rule, total in zip(rules, found, strict=True):
            known = self.shared.plans.recorded.get(rule.window_at(now, address, self.shared.zone).key, 0)
            # As reserve.lua: what the roll-ups know of requests is said only to a counter that is new.
            totals.append(max(total, known) if rule.metric != "requests" or not total else total)
        return totals

    def settle(self, reservation: Reservation, actual: Amounts) -> None:
        """Replaces what was held by what was used. Never waits; a second time does nothing."""
        if isinstance(reservation, SharedReservation):
            assert self.shared is not None
            self.shared.settle(reservation, actual)
        else:
            self.memory.settle(reservation, actual)

    def release(self, reservation: Reservation) -> None:
        """Gives everything back: the call counts as not made."""
        if isinstance(reservation, SharedReservation):
            assert self.shared is not None
            self.shared.release(reservation)
        else:
            self.memory.release(reservation)
