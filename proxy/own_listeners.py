"""Whether an address is the gateway's own: it must not become its own backend (threat B14)."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError

from proxy.backend_url import normalise_backend_url
from proxy.models import WorkerReport
from proxy.resolution import addresses_of, is_of_this_machine, refuse_where_it_leads

Address = IPv4Address | IPv6Address
WILDCARDS = frozenset(map(ip_address, ("0.0.0.0", "::")))  # noqa: S104 - compared, not bound


def address_of_a_backend(text: str) -> str:
    """The address as it is kept. Raises ValidationError for one that no backend may have, or that is our own."""
    try:
        url = normalise_backend_url(text)
        refuse_where_it_leads(url)
        refuse_own_listener(url)
    except ValueError as exc:
        raise ValidationError(str(exc)) from None
    return url


def refuse_own_listener(url: str) -> None:
    """Raises ValueError for an address that a running worker listens on. A worker that has not reported yet, or that
    is reached by a name nobody here knows, is recognised by its first probe (N11)."""
    parts = urlsplit(url)
    addresses = {_unmapped(ip_address(text.partition("%")[0])) for text in addresses_of(parts.hostname or "")}
    own_host = socket.gethostname()[:255]
    for worker in WorkerReport.objects.running():
        for place in worker.listens:
            host, _, port = place.rpartition(":")
            if port == str(parts.port) and _leads_there(
                addresses, ip_address(host.strip("[]")), worker.host == own_host
            ):
                raise ValueError(
                    f"This is the gateway itself, which listens on {place}. Give the address of an Ollama server, "
                    "e.g. http://127.0.0.1:11434."
                )


def _leads_there(addresses: set[Address], listener: Address, on_this_machine: bool) -> bool:
    listener = _unmapped(listener)
    if listener in WILDCARDS:
        return on_this_machine and any(is_of_this_machine(address) for address in addresses)
    # Each machine has a loopback of its own.
    return listener in addresses and (on_this_machine or not listener.is_loopback)


def _unmapped(address: Address) -> Address:
    return (address.version == 6 and address.ipv4_mapped) or address
