"""IP rules of one scope (threats I3, I4). Pure."""

from collections.abc import Iterable, Sequence
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


class Entry:
    """One rule, or what holds where none fits; and how often it decided since that was last asked."""

    __slots__ = ("allows", "hits", "id", "network")

    def __init__(self, network: Network | None, *, allows: bool, rule_id: int = 0) -> None:
        self.network = network
        self.allows = allows
        self.id = rule_id  # 0: not a row of the table
        self.hits = 0

    def count(self, tally: "list[Entry]") -> None:
        if not self.hits:
            tally.append(self)
        self.hits += 1

    def __str__(self) -> str:
        return f"{'allow' if self.allows else 'deny'} {self.network}"


class IPRules:
    """Longest prefix wins, deny on a tie; with any allow rule the rest is denied, otherwise allowed."""

    def __init__(
        self, rules: Iterable[tuple[str, str] | tuple[str, str, int]], tally: list[Entry] | None = None
    ) -> None:
        """`rules`: (network, "allow" | "deny", number of the rule). `tally`: where those that decided are put."""
        entries = [
            Entry(normalised(cidr), allows=action == "allow", rule_id=number[0] if number else 0)
            for cidr, action, *number in rules
        ]
        # Longest first, and deny before allow at the same length: the first that matches decides.
        self.rules: Sequence[tuple[Network, Entry]] = [
            (entry.network, entry)
            for entry in sorted(entries, key=lambda entry: (-_length(entry), entry.allows))
            if entry.network is not None
        ]
        self.allows_others = not any(entry.allows for entry in entries)
        self._others = Entry(None, allows=self.allows_others)
        self._tally = [] if tally is None else tally
        self._verdicts: dict[Address, Entry] = {}

    def allow(self, address: Address | None) -> bool:
        """Counts nothing: for all that is no call or page."""
        entry = self.decide(address)
        return entry is None or entry.allows

    def admits(self, address: Address | None) -> bool:
        """As `allow`, and counts it for the rule that decided."""
        if not self.rules:
            return True
        if address is None:
            return False
        entry = self._verdicts.get(address)
        if entry is None:
            entry = self._remember(address)
        entry.count(self._tally)
        return entry.allows

    def decide(self, address: Address | None) -> Entry | None:
        """What decides about an address; None where there are no rules. A caller without one fits none of them."""
        if not self.rules:
            return None
        if address is None:
            return NO_ADDRESS
        return self._verdicts.get(address) or self._remember(address)

    def _remember(self, address: Address) -> Entry:
        if len(self._verdicts) >= REMEMBERED:
            self._verdicts.clear()
        entry = self._verdicts[address] = self._find(address)
        return entry

    def _find(self, address: Address) -> Entry:
        for network, entry in self.rules:
            if network.version == address.version and address in network:
                return entry
        return self._others


class RulesOfBoth:
    """Those of administrators and those of a tenant's owners for the same subject: an address must pass both."""

    def __init__(self, first: IPRules, second: IPRules) -> None:
        self.first, self.second = first, second

    @property
    def rules(self) -> Sequence[tuple[Network, Entry]]:
        return [*self.first.rules, *self.second.rules]

    @property
    def allows_others(self) -> bool:
        return self.first.allows_others and self.second.allows_others

    def allow(self, address: Address | None) -> bool:
        return self.first.allow(address) and self.second.allow(address)

    def admits(self, address: Address | None) -> bool:
        return self.first.admits(address) and self.second.admits(address)

    def decide(self, address: Address | None) -> Entry | None:
        """What shuts an address out, if anything does, else what the owners' rules say."""
        entry = self.first.decide(address)
        return self.second.decide(address) if entry is None or entry.allows else entry


def _length(entry: Entry) -> int:
    return entry.network.prefixlen if entry.network is not None else -1


NO_ADDRESS = Entry(None, allows=False)
NO_RULES = IPRules(())
