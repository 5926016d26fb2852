"""Where webhooks may lead: tenants' owners write these addresses, and must not reach our own network by them."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError

from proxy.backend_url import carried_addresses, is_disguised, refuse_address
from proxy.client_address import Network, is_in
from proxy.resolution import addresses_of

Address = IPv4Address | IPv6Address


class NotAllowed(ValueError):
    """Its text says what to write instead."""


def check_url(text: str) -> str:
    """The address as it is kept. Raises NotAllowed."""
    url = text.strip()
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise NotAllowed("Begin with https:// or http://, e.g. https://hooks.example.com/gateway.")
    if parts.username is not None or parts.password is not None:
        raise NotAllowed("Leave out user and password: what is sent is signed instead.")
    if parts.fragment or not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
        raise NotAllowed("Write the address without a #fragment, in plain letters and without spaces.")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise NotAllowed("The port must be a number from 1 to 65535.")
    host = parts.hostname or ""
    if not host or "%" in host:
        raise NotAllowed("Give a host name or an address.")
    if _literal(host) is None and is_disguised(host):
        raise NotAllowed("Write the address in its usual form, e.g. 192.0.2.1.")
    return url


def addresses_for(url: str, allowed: Sequence[Network]) -> list[str]:
    """The addresses of its host that may be connected to. Raises NotAllowed if one is not public, or none is known.

    `allowed`: networks that may be led to though they are not public (WEBHOOK_NETWORKS).
    """
    found = addresses_of(urlsplit(url).hostname or "")
    if not found:
        raise NotAllowed("The name of its host is not known, or the name server does not answer.")
    for text in found:
        refuse_private(ip_address(text.partition("%")[0]), allowed)
    return found


def refuse_private(address: Address, allowed: Sequence[Network]) -> None:
    """Raises NotAllowed for what is not public: one's own network, this machine, what clouds say of it."""
    if is_in(address, allowed):
        return
    if not all(_is_public(meant) for meant in (address, *carried_addresses(address))):
        raise NotAllowed("It leads to a private address. An administrator can allow its network: WEBHOOK_NETWORKS.")


def _is_public(address: Address) -> bool:
    try:
        refuse_address(address)
    except ValueError:
        return False
    return address.is_global


def validate_target(value: str) -> str:
    """For forms: the address as it is kept. Raises ValidationError."""
    try:
        url = check_url(value)
        # A name that is not known yet is fine; it is asked again whenever something is sent.
        for text in addresses_of(urlsplit(url).hostname or ""):
            refuse_private(ip_address(text.partition("%")[0]), settings.WEBHOOK_NETWORKS)
    except NotAllowed as exc:
        raise ValidationError(str(exc)) from None
    return url


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
