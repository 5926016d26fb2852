"""IP rules of one scope (threats I3, I4). Pure."""

from collections.abc import Iterable
from ipaddress import IPv6Network, ip_network

from proxy.client_address import Address, Network

# Verdicts kept per scope: a table of junk addresses must not grow without bound.
REMEMBERED = 10_000


def normalised(cidr: str) -> Network:
    """A network, with IPv4-mapped IPv6 as the IPv4 it stands for. Raises ValueError."""
    network = ip_network(cidr)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return ip_network(f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}")
    return network


class IPRules:
    """Longest prefix wins, deny on a tie; with any allow rule the rest is denied, otherwise allowed."""

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        """`rules`: (network, "allow" | "deny")."""
        pairs = [(normalised(cidr), action == "allow") for cidr, action in rules]
        # Longest first, and deny before allow at the same length: the first that matches decides.
        self.rules = sorted(pairs, key=lambda pair: (-pair[0].prefixlen, pair[1]))
        self.allows_others = not any(allow for _, allow in pairs)
        self._verdicts: dict[Address, bool] = {}

    def allow(self, address: Address | None) -> bool:
        if not self.rules:
            return True
        if address is None:
            return False
        verdict = self._verdicts.get(address)
        if verdict is None:
            if len(self._verdicts) >= REMEMBERED:
                self._verdicts.clear()
            verdict = self._verdicts[address] = self._decide(address)
        return verdict

    def _decide(self, address: Address) -> bool:
        for network, allow in self.rules:
            if network.version == address.version and address in network:
                return allow
        return self.allows_others


NO_RULES = IPRules(())
