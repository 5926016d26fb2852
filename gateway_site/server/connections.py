"""All connections of one process: how many there may be, and the one sweep a second that ends the slow."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from .options import ServerOptions

if TYPE_CHECKING:
    from .protocol import GatewayProtocol

try:
    import resource
except ImportError:  # Windows has no such limit.
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# Files, the spool, database connections, the loop itself.
RESERVED_DESCRIPTORS = 128
# Refused connections that are kept until their answer was read; more than these are closed at once.
MAX_REFUSED = 256
MAX_KNOWN_HOSTS = 1024


class Connections:
    def __init__(self, options: ServerOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.loop = loop
        self.open: set[GatewayProtocol] = set()
        self.admitted = 0
        self.capacity = capacity(options.max_connections)
        self.refused_room = min(MAX_REFUSED, self.capacity)
        self.refused = 0
        self.by_address: dict[str, int] = {}
        self.known_hosts: set[bytes | None] = set()
        self.counted_as = lru_cache(4096)(self._counted_as)
        # Seconds as of the last sweep. A process that was stopped, or a loop that hung, does not age its clients.
        self.now = 0.0
        self._swept_at = loop.time()
        self._turned_away = 0
        self._timer: asyncio.TimerHandle | None = None

    def remember_host(self, host: bytes) -> None:
        """A well-formed Host: checking it again costs more than looking it up."""
        if len(self.known_hosts) >= MAX_KNOWN_HOSTS:
            self.known_hosts.clear()
        self.known_hosts.add(host)

    # Caps

    def _counted_as(self, address: str) -> str | None:
        """The caller that a connection from `address` counts for; None for those without a cap."""
        ip = ip_address(address.partition("%")[0])
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if any(ip in network for network in self.options.trusted_proxies):
            return None
        if isinstance(ip, IPv6Address):
            return f"{int(ip) >> 64:x}::/64"
        return str(ip)

    def admit(self, caller: str | None) -> bool:
        if self.admitted >= self.capacity:
            self._turned_away += 1
            return False
        if caller is not None:
            count = self.by_address.get(caller, 0)
            if count >= self.options.max_connections_per_address:
                self._turned_away += 1
                return False
            self.by_address[caller] = count + 1
        self.admitted += 1
        return True

    def release(self, caller: str | None) -> None:
        self.admitted -= 1
        if caller is not None:
            count = self.by_address[caller] - 1
            if count:
                self.by_address[caller] = count
            else:
                del self.by_address[caller]

    # Time

    def start(self) -> None:
        self._timer = self.loop.call_later(self.options.sweep_seconds, self._sweep)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self.start()
        now = self.loop.time()
        elapsed = min(now - self._swept_at, 2 * self.options.sweep_seconds)
        self._swept_at = now
        self.now += elapsed
        for connection in list(self.open):
            try:
                connection.sweep(elapsed)
            except Exception:
                logger.exception("Could not look after a connection")
                connection.transport.abort()
        if self._turned_away:
            logger.warning("Turned away %d connections over the caps", self._turned_away)
            self._turned_away = 0


def capacity(wanted: int) -> int:
    """Client connections that the descriptors of this process allow; a call may need one to its backend, too."""
    if resource is None:
        return wanted
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (allowed - RESERVED_DESCRIPTORS) // 2))


def raise_descriptor_limit() -> None:
    """The soft limit exists for programs that use select(); this one does not."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
