"""The kept answers and the flights of one process, behind one door."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from proxy.cache.coalescing import Flights
from proxy.cache.entries import Entry
from proxy.cache.policy import SHARED, Purges, Rule
from proxy.cache.shared import SharedStore
from proxy.cache.store import Counts, MemoryStore
from proxy.configuration import Configuration
from proxy.errors import Interruption

T = TypeVar("T")


class Place(NamedTuple):
    """Where an answer is kept."""

    key: bytes
    scope: str
    model: str  # canonical


# What the pages are told of one tenant: hits, misses, coalesced, bypassed, saved GPU microseconds, saved tokens.
Use = list[int]
HITS, MISSES, COALESCED, BYPASSED, GPU_US, TOKENS = range(6)


class ResponseCache:
    """`start` and `close` in the loop of the calls. `counts` may be read by anybody."""

    def __init__(self, configuration: Configuration) -> None:
        self.secret = hmac.digest(configuration.key_pepper, b"kept answers", hashlib.sha256)
        self.counts = Counts()
        self.memory = MemoryStore(configuration.cache_max_bytes, self.counts)
        self.shared: SharedStore | None = None
        if configuration.redis_url and configuration.cache_in_redis:
            self.shared = SharedStore(configuration.redis_url, self.secret, configuration.redis_patience_seconds)
        self.flights = Flights()
        self._purges: Purges | None = None
        self._use: dict[int, Use] = {}

    def start(self) -> None:
        if self.shared is not None:
            self.shared.start()

    async def close(self) -> None:
        for flight in self.flights:
            if flight.task is not None:
                flight.task.cancel()
        if self.shared is not None:
            await self.shared.close()

    # Answers

    async def get(self, places: Sequence[Place], rule: Rule, now: float) -> list[Entry | None]:
        """What is kept and young enough; waits for Redis no longer than a call may."""
        ttl = rule.ttl_seconds
        found = [self.memory.get(place.key, now, ttl) for place in places]
        if self.shared is None or not self.shared.usable or None not in found:
            return found
        missing = [number for number, entry in enumerate(found) if entry is None]
        names = [self.shared.name(places[at].scope, places[at].model, places[at].key) for at in missing]
        for at, entry in zip(missing, await self.shared.get(names), strict=True):
            if entry is not None and now - entry.kept_at < ttl:
                # The clocks of two machines may differ: nothing is younger than new.
                entry = entry if entry.kept_at <= now else replace(entry, kept_at=now)
                self.memory.put(places[at].key, entry)
                found[at] = entry
        return found

    def put(self, place: Place, entry: Entry, rule: Rule) -> None:
        self.memory.put(place.key, entry)
        if self.shared is not None and entry.size <= self.memory.max_entry:
            self.shared.put(self.shared.name(place.scope, place.model, place.key), entry, rule.ttl_seconds)

    def use_purges(self, purges: Purges) -> None:
        """Drops what the purges since the last time are about."""
        before, self._purges = self._purges, purges
        if before is None or before == purges:
            return
        if purges.all != before.all:
            self._drop()
            return
        tenants = _newer(purges.tenants, before.tenants)
        # Those of a key alone and those that are shared may be of these tenants, too, but do not say so: they all go.
        for scope in (*(f"t{tenant}" for tenant in tenants), *(("k", SHARED) if tenants else ())):
            self._drop(scope=scope)
        for model in _newer(purges.models, before.models):
            self._drop(model=model)

    def _drop(self, scope: str = "", model: str = "") -> None:
        self.memory.drop_those(
            lambda entry: (
                (not scope or entry.scope == scope or (scope == "k" and entry.scope.startswith("k")))
                and (not model or entry.model == model)
            )
        )
        if self.shared is not None:
            self.shared.purge("k*" if scope == "k" else scope, model)

    # Flights

    def sweep(self, moment: float) -> None:
        """Once a second: ends the work that takes too long. `moment`: monotonic."""
        for flight in self.flights:
            call = flight.made
            if call is None:
                continue
            if 0 < call.deadline < moment:
                call.interrupt(call.deadline_reason)
            elif 0 < call.total_deadline < moment:
                call.interrupt(Interruption.TOTAL)

    def room_for_flight(self, most: int) -> int:
        """Bytes up to which a new flight may keep its beginning."""
        kept = sum(flight.size for flight in self.flights if flight.whole)
        return most if kept < self.memory.max_bytes else 0

    # Counts

    def count(self, tenant_id: int, what: int, *, gpu_us: int = 0, tokens: int = 0) -> None:
        counts = self.counts
        if what == HITS:
            counts.hits += 1
        elif what == MISSES:
            counts.misses += 1
        elif what == COALESCED:
            counts.coalesced += 1
        else:
            counts.bypassed += 1
        self._use_of(tenant_id)[what] += 1
        self.save(tenant_id, gpu_us, tokens)

    def save(self, tenant_id: int, gpu_us: int, tokens: int) -> None:
        """What need not be generated."""
        self.counts.saved_gpu_us += gpu_us
        self.counts.saved_tokens += tokens
        use = self._use_of(tenant_id)
        use[GPU_US] += gpu_us
        use[TOKENS] += tokens

    def _use_of(self, tenant_id: int) -> Use:
        use = self._use.get(tenant_id)
        if use is None:
            use = self._use[tenant_id] = [0] * 6
        return use

    def take_use(self) -> dict[int, Use]:
        """By tenant, since this was last asked."""
        use, self._use = self._use, {}
        return use

    def state(self) -> dict[str, int | bool | str]:
        """For the page."""
        return {
            "entries": self.counts.entries,
            "bytes": self.counts.bytes,
            "max_bytes": self.memory.max_bytes,
            "evictions": self.counts.evictions,
            "flights": len(self.flights),
            "redis": "" if self.shared is None else "shared" if self.shared.usable else "away",
        }


def _newer(now: Mapping[T, int], before: Mapping[T, int]) -> list[T]:
    return [what for what, number in now.items() if number > before.get(what, 0)]
