"""The caller's address behind trusted proxies (threats I1-I3, I5). Pure."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# With one of these, a request says that it did not come straight from the caller.
SAID_BY_PROXIES = frozenset((b"x-forwarded-for", b"forwarded", b"x-real-ip"))
# A list that is longer was not written by honest proxies.
MAX_HOPS = 32


@lru_cache(maxsize=16384)
def parse_address(text: str) -> Address | None:
    """None where it is no plain address: with a port, brackets, quotes or blanks it is not read as one."""
    if len(text) > 64:
        return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def client_address(
    peer: str, forwarded_for: Iterable[str], trusted: Sequence[Network], *, trusts_unix: bool = False
) -> Address | None:
    """The nearest address that is not one of our own proxies; None for a peer without one (a Unix socket).

    `forwarded_for` holds the values of all X-Forwarded-For lines in the order they were received. `trusts_unix`: who
    connects to a Unix socket is a proxy of ours.
    """
    address = parse_address(peer)
    if not is_proxy(peer, trusted, trusts_unix=trusts_unix):
        return address
    # Proxies append: only the right end is trustworthy, the left is what the client chose to send.
    hops = ",".join(forwarded_for).rsplit(",", MAX_HOPS)
    for hop in reversed(hops[-MAX_HOPS:]):
        parsed = parse_address(hop.strip())
        if parsed is None:
            break
        address = parsed
        if not is_in(address, trusted):
            break
    return address


def is_proxy(peer: str, trusted: Sequence[Network], *, trusts_unix: bool) -> bool:
    """Whether what a peer says of the caller's address is believed."""
    if not peer:
        return trusts_unix
    if not trusted:
        return False
    address = parse_address(peer)
    return address is not None and is_in(address, trusted)


def is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
