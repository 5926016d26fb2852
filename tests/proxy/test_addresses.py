"""Rows I1–I4: whose call it is, and whether that address may call."""

import random
from ipaddress import ip_address, ip_network

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.client_address import MAX_HOPS, client_address, parse_address
from proxy.ip_rules import IPRules, normalised
from tenants.models import IPRule

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def caller(peer, *lines, trusted=PROXIES):
    return str(client_address(peer, lines, trusted))


# I1: who is believed


@pytest.mark.parametrize(
    ("peer", "lines", "expected"),
    [
        ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),  # not a proxy of ours: nothing it says counts
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),  # the left is what the client sent
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["1.2.3.4", "10.0.0.3", "10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", ["10.0.0.3,10.0.0.2"], "10.0.0.3"),  # a call from one of the proxies
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["::ffff:1.2.3.4"], "1.2.3.4"),
    ],
)
def test_i1_the_nearest_address_that_is_no_proxy_of_ours(peer, lines, expected):
    assert caller(peer, *lines) == expected


def test_i1_without_listed_proxies_the_peer_it_is():
    assert caller("10.0.0.1", "1.2.3.4", trusted=()) == "10.0.0.1"


def test_i5_a_peer_without_an_address_has_none():
    assert client_address("", ["1.2.3.4"], PROXIES) is None


def slowly(peer, lines, trusted):
    """What client_address does, in the words of the threat model."""
    address = parse_address(peer)
    entries = [entry.strip() for line in lines for entry in line.split(",")]
    for _ in range(MAX_HOPS):
        listed = address is not None and any(address in net for net in trusted if net.version == address.version)
        if not listed or not entries:
            return address
        hop = parse_address(entries.pop())
        if hop is None:
            return address
        address = hop
    return address


ENTRY = st.sampled_from(
    ["1.2.3.4", "10.0.0.2", "10.9.9.9", "::ffff:10.0.0.5", "::ffff:1.2.3.4", "2001:db8::1", "fd00::2", "", " ", "x"]
) | st.sampled_from(["1.2.3.4:80", "[fd00::2]", "fd00::2%eth0", '"10.0.0.2"', "10.0.0", "010.0.0.1", "unknown", "_h"])


@settings(max_examples=3000, deadline=None, derandomize=True)
@given(
    st.sampled_from(["10.0.0.1", "203.0.113.9", "fd00::1", "::ffff:10.0.0.1", "", "unix:"]),
    st.lists(st.lists(ENTRY, max_size=5).map(", ".join), max_size=4),
)
def test_i1_agrees_with_the_slow_and_obvious_version(peer, lines):
    assert client_address(peer, lines, PROXIES) == slowly(peer, lines, PROXIES)


# I2: what is no address


@pytest.mark.parametrize(
    "entry",
    [
        *(
            "",
            " ",
            "unknown",
            "_hidden",
            "1.2.3.4:5678",
            "[2001:db8::1]",
            "[2001:db8::1]:443",
            '"1.2.3.4"',
            "'1.2.3.4'",
        ),
        *("1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "0x7f.1", "2130706433", "1.2.3.4/32", "for=1.2.3.4", "::g"),
        *("1.2.3.4\x00", "١.٢.٣.٤", "1" * 100, "1.2.3.4 " * 50, "::1::", "fe80::1%" + "x" * 100),
    ],
)
def test_i2_behind_an_entry_that_is_no_address_nothing_is_believed(entry):
    """The call counts as the proxy's own: the last hop that can be trusted."""
    assert caller("10.0.0.1", f"6.6.6.6, {entry}") == "10.0.0.1"
    assert caller("10.0.0.1", f"6.6.6.6, {entry}, 10.0.0.2") == "10.0.0.2"


def test_i2_zones_do_not_make_another_address():
    assert parse_address("fe80::1%eth0") == parse_address("fe80::1") == ip_address("fe80::1")


def test_i2_a_thousand_entries_are_work_for_32():
    honest = ", ".join(["6.6.6.6"] * 999 + ["1.2.3.4"])
    assert caller("10.0.0.1", honest) == "1.2.3.4"
    endless = ", ".join(["6.6.6.6"] + ["10.0.0.2"] * 1000)
    assert caller("10.0.0.1", endless) == "10.0.0.2"


def test_i2_any_text_is_read_without_an_error():
    rng = random.Random("I2")
    for _ in range(3000):
        line = "".join(rng.choices("0123456789abcdef.:,[]%\"' \x00é", k=rng.randint(0, 60)))
        found = client_address("10.0.0.1", [line], PROXIES)
        assert found == slowly("10.0.0.1", [line], PROXIES)


# I3: IPv4 in IPv6


@pytest.mark.parametrize(
    ("cidr", "address", "inside"),
    [
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("::ffff:10.0.0.0/104", "10.0.0.1", True),
        ("::ffff:10.0.0.0/104", "::ffff:10.9.0.1", True),
        ("::ffff:10.0.0.1/128", "10.0.0.1", True),
        ("::ffff:0:0/96", "203.0.113.1", True),
        ("::ffff:10.0.0.0/104", "11.0.0.1", False),
        ("10.0.0.0/8", "::10.0.0.1", False),
        ("::/0", "10.0.0.1", False),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
    ],
)
def test_i3_mapped_addresses_and_networks_are_ipv4(cidr, address, inside):
    assert IPRules([(cidr, "deny")]).allow(parse_address(address)) is not inside


# I4: which rule counts


@pytest.mark.parametrize(
    ("rules", "address", "allowed"),
    [
        ([], "1.2.3.4", True),
        ([("10.0.0.0/8", "deny")], "1.2.3.4", True),
        ([("10.0.0.0/8", "deny")], "10.1.1.1", False),
        ([("10.0.0.0/8", "allow")], "10.1.1.1", True),
        ([("10.0.0.0/8", "allow")], "1.2.3.4", False),  # any allow rule denies the rest
        ([("10.0.0.0/8", "allow"), ("10.1.0.0/16", "deny")], "10.1.1.1", False),
        ([("10.0.0.0/8", "allow"), ("10.1.0.0/16", "deny")], "10.2.1.1", True),
        ([("10.0.0.0/8", "deny"), ("10.1.1.1/32", "allow")], "10.1.1.1", True),
        ([("10.0.0.0/8", "allow"), ("10.0.0.0/8", "deny")], "10.1.1.1", False),  # a tie
        ([("10.0.0.0/8", "deny"), ("::ffff:10.0.0.0/104", "allow")], "10.1.1.1", False),  # the same tie
        ([("10.0.0.0/8", "allow")], "2001:db8::1", False),
        ([("2001:db8::/32", "deny")], "1.2.3.4", True),
    ],
)
def test_i4_the_longest_prefix_wins_and_deny_on_a_tie(rules, address, allowed):
    assert IPRules(rules).allow(parse_address(address)) is allowed
    assert IPRules(reversed(rules)).allow(parse_address(address)) is allowed


def obvious(rules, address):
    matching = [(net.prefixlen, action) for net, action in rules if net.version == address.version and address in net]
    if not matching:
        return not any(action == "allow" for _, action in rules)
    longest = max(length for length, _ in matching)
    return all(action == "allow" for length, action in matching if length == longest)


NETWORKS = st.builds(
    lambda number, length: ip_network((number << 24 | number << 8 | number, length), strict=False),
    st.integers(0, 3),
    st.sampled_from([0, 6, 7, 8, 24, 31, 32]),
)


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(st.lists(st.tuples(NETWORKS, st.sampled_from(["allow", "deny"])), max_size=6), st.integers(0, 3))
def test_i4_agrees_with_the_obvious_version(rules, number):
    address = ip_address(number << 24 | number << 8 | number)
    compiled = IPRules([(str(network), action) for network, action in rules])
    assert compiled.allow(address) is obvious(rules, address)
    assert compiled.allow(address) is obvious(rules, address)  # as remembered


def test_i4_i5_no_address_passes_no_rules_only():
    assert IPRules([]).allow(None)
    assert not IPRules([("10.0.0.0/8", "deny")]).allow(None)


@pytest.mark.parametrize(
    "cidr", ["10.0.0.1/8", "10.0.0.0/33", "x", "", "10.0.0.0/8/8", "10.0.0.0-10.0.0.9", "fd00::1/64"]
)
def test_i4_host_bits_and_other_slips_are_refused_in_the_form(cidr):
    with pytest.raises(ValidationError) as caught:
        IPRule(cidr=cidr, action="allow").full_clean(validate_constraints=False)
    assert "cidr" in caught.value.message_dict
    if cidr:
        with pytest.raises(ValueError, match=r"\S"):
            normalised(cidr)


@pytest.mark.parametrize("cidr", ["10.0.0.0/8", "10.0.0.1", "fd00::/8", "2001:DB8::1"])
def test_i4_networks_and_single_addresses_are_taken(cidr):
    rule = IPRule(cidr=cidr, action="allow")
    rule.full_clean(validate_constraints=False)
    assert rule.cidr == str(ip_network(cidr))
