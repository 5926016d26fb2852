"""Where webhooks may not lead: owners of tenants write these addresses."""

from ipaddress import ip_address, ip_network

import pytest

from proxy.alerts import targets
from proxy.alerts.targets import NotAllowed, addresses_for, check_url, refuse_private


@pytest.mark.parametrize("url", [
    "ftp://hooks.example.com/", "file:///etc/passwd", "hooks.example.com", "https://user:pass@hooks.example.com/",
    "https://hooks.example.com/#x", "https://hooks.example.com:0/", "https://hooks.example.com:99999/",
    "https:///path", "http://2130706433/", "http://0x7f.1/", "http://127.1/", "https://hooks.example.com/a b",
    "https://[fe80::1%25eth0]/", "https://hööks.example.com/", "gopher://hooks.example.com/",
])  # fmt: skip
def test_an_address_of_another_form_is_refused_with_advice(url):
    with pytest.raises(NotAllowed):
        check_url(url)


@pytest.mark.parametrize("url", [
    "https://hooks.example.com", "http://hooks.example.com:8443/a/b?c=d", "https://203.0.114.7/x",
    "https://[2001:4860:4860::8888]/x",
])  # fmt: skip
def test_ordinary_addresses_pass(url):
    assert check_url(f" {url} ") == url


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.8.9.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.2.1", "198.18.0.1", "::1",
    "::",
    "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a00:1", "2002:7f00:1::", "2001:db8::1", "::127.0.0.1",
])  # fmt: skip
def test_what_is_not_public_is_refused(address):
    with pytest.raises(NotAllowed, match="WEBHOOK_NETWORKS"):
        refuse_private(ip_address(address), ())


@pytest.mark.parametrize("address", ["8.8.8.8", "203.0.114.7", "2001:4860:4860::8888"])
def test_what_is_public_is_not(address):
    refuse_private(ip_address(address), ())


def test_a_network_that_is_allowed_opens_itself_alone():
    allowed = (ip_network("10.0.0.0/8"),)
    refuse_private(ip_address("10.1.2.3"), allowed)
    for other in ("127.0.0.1", "192.168.1.1", "::1"):
        with pytest.raises(NotAllowed):
            refuse_private(ip_address(other), allowed)


def test_one_private_address_among_public_ones_is_enough_to_refuse_a_name(monkeypatch):
    monkeypatch.setattr(targets, "addresses_of", lambda host: ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(NotAllowed):
        addresses_for("https://both.example.com/", ())


def test_a_name_that_nobody_knows_is_said():
    with pytest.raises(NotAllowed, match="not known"):
        addresses_for("https://there-is-none.invalid/", ())
