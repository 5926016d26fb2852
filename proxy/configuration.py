"""What the data plane is told once, at start. Everything that changes while it runs is in the snapshot."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """Durations in seconds, sizes in bytes. Built by gateway_site/settings.py, which says what each is for."""

    spool_dir: Path
    key_pepper: bytes
    key_pepper_fallbacks: tuple[bytes, ...] = ()
    spool_max_bytes: int = 1 << 30
    auth_header: bytes = b"authorization"
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    trusts_unix: bool = False  # a peer without an address, on a Unix socket, is a proxy too
    time_zone: str = "UTC"
    # Limits are shared by all processes that name the same one; "" = each counts alone.
    redis_url: str = ""
    limit_lease_seconds: float = 30
    redis_patience_seconds: float = 0.05
    currency: str = "EUR"
    max_body_bytes: int = 20 << 20
    # Written into calls that name no output cap, and what they reserve.
    default_output_tokens: int = 4096
    # The most a call may ask for unless its key says otherwise.
    max_output_tokens: int = 32768
    connect_seconds: float = 5
    first_byte_seconds: float = 600
    gap_seconds: float = 300
    total_seconds: float = 3600
    # How many calls may wait for a slot in this process, and how long each.
    line_length: int = 1000
    line_seconds: float = 60
    probe_seconds: float = 2
    # How long the rules are served from memory while the database does not answer; 0 = for ever.
    db_grace_seconds: float = 600
    drain_seconds: float = 30
    failed_credentials_per_minute: int = 30
    access_log: bool = False
    metrics_enabled: bool = True
    # Where the processes of a host tell each other what they have counted; None: each is asked for its own.
    metrics_dir: Path | None = None
    metrics_namespace: str = "gateway"
    # Where traces are sent: an OpenTelemetry collector; "" = nowhere. Its headers may hold a token.
    otel_endpoint: str = ""
    otel_headers: tuple[tuple[str, str], ...] = field(repr=False, default=())
    otel_service: str = "ollama-gateway"
    otel_ratio: float = 1.0
    # The address people use; and whose web pages may call besides its own (proxy/cors.py).
    site_url: str = ""
    cors_origins: tuple[str, ...] = ()
    # What callers without a key may call us (proxy/host_names.py).
    host_names: tuple[str, ...] = ()
    cache_policy: str = "off"
    cache_ttl_seconds: int = 3600
    # Of the answers that this process keeps in memory; and whether Redis keeps them, too.
    cache_max_bytes: int = 64 << 20
    cache_in_redis: bool = True
