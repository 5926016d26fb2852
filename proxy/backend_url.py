"""Which addresses may be a backend (threat B14)."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError


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
    if not host or not host.isascii() or any(char in host for char in "%\\ \t\r\n"):
        raise ValueError("Give a host name or an address.")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("The port must be a number from 1 to 65535.") from None
    if port == 0:
        raise ValueError("The port must be a number from 1 to 65535.")
    if _is_disguised_address(host):
        raise ValueError("Write the address in its usual form, e.g. 127.0.0.1.")
    try:
        refuse_address(ip_address(host))
    except ValueError as exc:
        if "backend" in str(exc):
            raise
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or (443 if parts.scheme == 'https' else 80)}"


def refuse_address(address: IPv4Address | IPv6Address) -> None:
    """Raises ValueError for addresses no Ollama lives at; asked at save and again at each connect."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_link_local or address.is_multicast or address.is_unspecified or str(address) == "fd00:ec2::254":
        raise ValueError(f"{address} cannot be a backend: link-local, metadata and multicast addresses are refused.")


def validate_backend_url(value: str) -> None:
    try:
        normalise_backend_url(value)
    except ValueError as exc:
        raise ValidationError(str(exc)) from None


def _is_disguised_address(host: str) -> bool:
    """Decimal, octal, hex or short forms (2130706433, 0x7f.1, 127.1) that resolvers turn into addresses."""
    labels = host.rstrip(".").split(".")
    last = labels[-1]
    if not (last.isdigit() or last.lower().startswith("0x")):
        return False
    return not (len(labels) == 4 and all(label.isdigit() and str(int(label)) == label for label in labels))
