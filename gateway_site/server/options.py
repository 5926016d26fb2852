"""What an operator may set on the server; the caller reads it from wherever settings live."""

from __future__ import annotations

from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network

MAY_BE_ZERO = {"port", "drain_seconds", "body_min_rate"}


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Seconds are wall-clock seconds, sizes are bytes; caps hold per worker process."""

    host: str = "127.0.0.1"
    port: int = 8080
    # Of the same address; the application sees in the scope which one was called.
    further_ports: tuple[int, ...] = ()
    # Processes. One runs in this very process, more are supervised by it.
    workers: int = 1
    # Connections the kernel keeps waiting for accept().
    backlog: int = 2048
    # Paths of PEM files; both or neither. The certificate file may hold the chain.
    tls_certificate: str | None = None
    tls_key: str | None = None
    # How often the two are looked at, for a renewal.
    renewal_seconds: float = 10

    # Peers that many clients share: no cap per address for them.
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    # Lowered when the process may not open so many descriptors.
    max_connections: int = 4096
    # An IPv6 address counts as its /64.
    max_connections_per_address: int = 256

    # From connect, or from the first byte of a later request, to the blank line.
    header_seconds: float = 10
    # Silence between two requests.
    keepalive_seconds: float = 75
    # A body may take this long before its average rate is looked at, then must exceed the rate (bytes/s).
    body_grace_seconds: float = 10
    body_min_rate: float = 1024
    # A reader that takes nothing for so long has left.
    stall_seconds: float = 60
    # After an answer to a request that was not read to its end: what is still swallowed so that it is not lost.
    linger_seconds: float = 2
    linger_bytes: int = 64 * 1024

    # The request line, all header lines together, and their number.
    max_request_line: int = 8 * 1024
    max_header_bytes: int = 32 * 1024
    max_headers: int = 100
    websocket_max_bytes: int = 64 * 1024

    # After SIGTERM: for calls in flight to end, and then for `Drainable.close`.
    drain_seconds: float = 30
    close_seconds: float = 10
    # Deadlines are looked at this often; each may be passed by up to two sweeps.
    sweep_seconds: float = 1

    def __post_init__(self) -> None:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key: give both or neither")
        for port in (self.port, *self.further_ports):
            if not 0 <= port <= 65535:
                raise ValueError(f"port={port}: not a port")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in MAY_BE_ZERO else 1e-3
            if isinstance(value, int | float) and value < least:
                raise ValueError(f"{field.name}={value}: must be above zero")

    def url(self, port: int) -> str:
        scheme = "https" if self.tls_certificate else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{port}"
