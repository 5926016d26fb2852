"""Row P11: which web origins are let in by which patterns, and what is granted to them."""

import pytest

from proxy.cors import Origins, check_patterns, granted, preflight
from proxy.host_names import HostNames

OWN = b"http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("patterns", "origin", "allowed"),
    [
        ([], b"https://app.example.com", False),
        ([], b"null", False),
        ([], OWN, True),
        ([], b"HTTP://127.0.0.1:8080", True),
        ([], b"https://127.0.0.1:8080", False),
        ([], b"http://127.0.0.1:8081", False),
        ([], b"http://127.0.0.1", False),
        (["https://app.example.com"], b"https://app.example.com", True),
        (["https://app.example.com/"], b"https://APP.example.com", True),
        (["https://app.example.com"], b"http://app.example.com", False),
        (["https://app.example.com"], b"https://app.example.com:8443", False),
        (["https://app.example.com"], b"https://app.example.com.evil.org", False),
        (["https://app.example.com"], b"https://evil.org/https://app.example.com", False),
        (["https://app.example.com"], b"https://appXexample.com", False),
        (["https://*.example.com"], b"https://a.b.example.com", True),
        (["https://*.example.com"], b"https://example.com", False),
        (["https://*.example.com"], b"https://evil.org/.example.com", False),
        (["http://localhost:*"], b"http://localhost:3000", True),
        (["http://localhost:*"], b"http://localhost.evil.org:3000", False),
        (["chrome-extension://*"], b"chrome-extension://abcdefgh", True),
        (["*://app.local"], b"tauri://app.local", True),
        (["*"], b"https://anything.example", True),
        (["*"], b"null", True),
        (["https://a.example", "https://b.example"], b"https://b.example", True),
        (["https://a.example"], b"https://a.example\xff", False),
    ],
)
def test_p11_an_origin_is_allowed_by_a_pattern_or_by_being_ours(patterns, origin, allowed):
    check_patterns(patterns)
    origins = Origins(patterns)
    assert origins.allow(origin, OWN) is allowed
    assert origins.allow(origin, OWN) is allowed  # now from memory


def test_p11_ten_thousand_origins_are_not_remembered():
    origins = Origins(["https://*.example.com"])
    for number in range(10_000):
        assert not origins.allow(b"https://%d.example.org" % number, OWN)
    assert len(origins._verdicts) <= 1000


@pytest.mark.parametrize("pattern", ["app.example.com", "https://", "", "https://a b", "https://a/path", "ftp:x"])
def test_p11_what_can_match_no_origin_is_refused(pattern):
    with pytest.raises(ValueError, match="no web origin"):
        check_patterns([pattern])


def test_p11_credentials_mode_is_never_granted():
    names = {name for name, _ in [*granted(b"https://a.example"), *preflight(["POST"], b"", b"authorization")]}
    assert b"access-control-allow-credentials" not in names


def test_p11_a_preflight_grants_what_the_libraries_send_and_no_more():
    headers = dict(
        preflight(["GET", "HEAD"], b"x-stainless-os, X-Stainless-Lang,cookie, x-evil, x-stainless-\r\n", b"x-key")
    )
    assert headers[b"access-control-allow-methods"] == b"GET, HEAD, OPTIONS"
    names = headers[b"access-control-allow-headers"].decode().split(", ")
    assert {"authorization", "content-type", "x-api-key", "anthropic-version", "x-key"} <= set(names)
    assert names[-3:] == ["x-stainless-os", "x-stainless-lang", "x-key"]
    assert not {"cookie", "x-evil"} & set(names)
    assert "*" not in names


@pytest.mark.parametrize(
    ("host", "known"),
    [
        (b"127.0.0.1:8080", True),
        (b"192.168.1.7", True),
        (b"[::1]:8080", True),
        (b"[fd00::1]", True),
        (b"localhost", True),
        (b"LOCALHOST:1", True),
        (b"app.localhost", True),
        (b"gpu.local:8080", True),
        (b"gateway.internal.", True),
        (b"gateway.example.com", True),
        (b"a.team.example", True),
        (b"team.example", True),
        (b"evil.example", False),
        (b"evil.gateway.example.com", False),
        (b"gateway.example.com.evil.org", False),
        (b"127.0.0.1.evil.org", False),
        (b"local", False),
        (b"", False),
        (b"\xff", False),
    ],
)
def test_p11_a_name_that_anybody_could_lead_here_is_not_ours(host, known):
    names = HostNames(["gateway.example.com", ".team.example", "*"])
    assert names.know(host) is known


def test_p11_the_name_of_the_site_is_ours():
    assert HostNames([], "https://gw.example.org:8443").know(b"gw.example.org:8443")
