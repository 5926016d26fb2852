"""How often an address may present credentials that are not accepted (threat A3). Valid ones are never counted."""

import time
from collections import OrderedDict
from ipaddress import IPv6Address

from proxy.client_address import Address

REMEMBERED = 10_000


class CredentialFailures:
    """A token bucket per address, of this process; one per /64 of IPv6, where each host has as many as it likes."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()  # → (tokens, when)

    def count(self, address: Address | None) -> float:
        """Counts one failure; returns for how many seconds further ones are answered with 429, 0 = not yet."""
        now = time.monotonic()
        source = _source(address)
        tokens = self._tokens(source, now)
        self._buckets.pop(source, None)
        if len(self._buckets) >= REMEMBERED:
            self._buckets.popitem(last=False)
        if tokens < 1:
            self._buckets[source] = (tokens, now)
            return self._wait(tokens)
        self._buckets[source] = (tokens - 1, now)
        return 0.0

    def expected(self, address: Address | None) -> float:
        """What `count` would return for one more failure; counts nothing."""
        tokens = self._tokens(_source(address), time.monotonic())
        return self._wait(tokens) if tokens < 1 else 0.0

    def _tokens(self, source: object, now: float) -> float:
        tokens, when = self._buckets.get(source, (float(self.per_minute), now))
        return min(tokens + (now - when) * self.per_minute / 60, float(self.per_minute))

    def _wait(self, tokens: float) -> float:
        return (1 - tokens) * 60 / self.per_minute


def _source(address: Address | None) -> object:
    return int(address) >> 64 if isinstance(address, IPv6Address) else address
