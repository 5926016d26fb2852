"""Which addresses may be a backend (threat B14)."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError

_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_.])?\Z", re.IGNORECASE)


def normalise_backend_url(url: str) -> str:
    """`scheme://host:port` as we connect to it. Raises ValueError saying what to write instead."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https"):
        raise ValueError("Begin with http:// or https://, e.g. http://10.0.0.5:11434.")
    if parts.username is not None or parts.password is not None:
        raise ValueError("Leave out user and password; a backend's credential has a field of its own.")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("Give only scheme, host and port, e.g. http://10.0.0.5:11434.")
    host = parts.hostname or ""
    address = _address(host)
    if address is None and not _NAME.match(host):
        raise ValueError("Give a host name or an address.")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("The port must be a number from 1 to 65535.") from None
    if port == 0:
        raise ValueError("The port must be a number from 1 to 65535.")
    if address is None and is_disguised(host):
        raise ValueError("Write the address in its usual form, e.g. 127.0.0.1.")
    if address is not None:
        refuse_address(address)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or (443 if parts.scheme == 'https' else 80)}"


# Where clouds answer questions about the machine, outside the link-local range.
_METADATA = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")))
# IPv6 addresses that carry an IPv4 address in their last bits (NAT64, IPv4-compatible).
_CARRIERS = (ip_network("64:ff9b::/96"), ip_network("::/96"))
_LOOPBACK = ip_address("::1")


def refuse_address(address: IPv4Address | IPv6Address) -> None:
    """Raises ValueError for addresses no Ollama lives at; asked at save and again whenever a name is resolved."""
    for meant in (address, *carried_addresses(address)):
        if (
            meant.is_link_local
            or meant.is_multicast
            or meant.is_unspecified
            or meant in _METADATA
            or meant == IPv4Address("255.255.255.255")
        ):
            raise ValueError(
                f"{address} cannot be a backend: link-local, metadata and multicast addresses are refused."
            )


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return None if "%" in host else address


def carried_addresses(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that a packet to an IPv6 address may end at."""
    if isinstance(address, IPv4Address) or address == _LOOPBACK:
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _CARRIERS):
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [carried for carried in found if carried is not None]


def validate_backend_url(value: str) -> None:
    try:
        normalise_backend_url(value)
    except ValueError as exc:
        raise ValidationError(str(exc)) from None


def is_disguised(host: str) -> bool:
    """Decimal, octal, hex or short forms (2130706433, 0x7f.1, 127.1) that resolvers turn into addresses."""
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last.lower().startswith("0x")
