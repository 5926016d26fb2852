"""Which engine counts: the shared one where Redis is set up and answers, else this process alone."""

import time
from collections.abc import Callable, Mapping, Sequence

from proxy.limits.connection import RedisAway
from proxy.limits.memory import MemoryLimits
from proxy.limits.redis import LEASE_SECONDS, PATIENCE, RedisLimits, SharedReservation
from proxy.limits.rules import Amounts, Reservation, Rule


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
        self.memory.recorded = recorded
        if self.shared is not None:
            self.shared.recorded = recorded

    @property
    def is_shared(self) -> bool:
        return self.shared is not None and self.shared.usable

    def reserve(self, call_id: str, rules: Sequence[Rule], model: str, address: str, estimate: Amounts) -> Reservation:
        """Holds the estimate in this process. Raises TooManyRequests."""
        return self.memory.reserve(call_id, rules, model, address, estimate)

    async def reserve_shared(
        self, call_id: str, rules: Sequence[Rule], model: str, address: str, estimate: Amounts
    ) -> Reservation:
        """Holds the estimate for all processes; in this one where Redis does not answer. Raises TooManyRequests."""
        assert self.shared is not None
        try:
            return await self.shared.reserve(call_id, rules, model, address, estimate)
        except RedisAway:
            return self.memory.reserve(call_id, rules, model, address, estimate)

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
