"""How often a sign-in may be tried (threat A11)."""

import pytest
from django.core.cache.backends.locmem import LocMemCache
from django.urls import reverse

from tenants.rate_limits import SIGN_IN, client_address, network_of
from tests.factories import PASSWORD, make_admin

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("one_window")]
ATTEMPTS = SIGN_IN.attempts


class DeadCache(LocMemCache):
    def __init__(self, *args):
        super().__init__("dead", {})

    def add(self, *args, **kwargs):
        raise ConnectionError("Error 111 connecting to localhost:6379. Connection refused.")

    get = incr = add


class ForgetfulCache(LocMemCache):
    """Neither adds nor counts, without an exception: as memcached does when it is away."""

    def __init__(self, *args):
        super().__init__("forgetful", {})

    def add(self, *args, **kwargs):
        return False

    def incr(self, *args, **kwargs):
        raise ValueError("Key not found")


@pytest.fixture(params=["alive", "dead", "forgetful"])
def cache(request, settings):
    backends = {"dead": "DeadCache", "forgetful": "ForgetfulCache"}
    if request.param in backends:
        settings.CACHES = {
            **settings.CACHES,
            "ratelimit": {"BACKEND": f"{__name__}.{backends[request.param]}"},
        }
    return request.param


def attempt(client, name="root", password="wrong", address="198.51.100.7", **headers):
    return client.post(
        reverse("account_login"), {"login": name, "password": password}, REMOTE_ADDR=address, headers=headers
    )


def test_a11_one_address_may_try_ten_names_a_minute(client, cache):
    for number in range(ATTEMPTS):
        assert attempt(client, f"user-{number}").status_code == 200
    answer = attempt(client, "another")
    assert answer.status_code == 429
    assert 0 < int(answer["Retry-After"]) <= 60
    assert attempt(client, "another", address="198.51.100.8").status_code == 200


def test_a11_one_name_may_be_tried_ten_times_a_minute_from_anywhere(client, cache):
    make_admin("root", password=PASSWORD)
    for number in range(ATTEMPTS):
        assert attempt(client, "root ", address=f"198.51.100.{number}").status_code == 200
    assert attempt(client, "ROOT", PASSWORD, address="203.0.113.1").status_code == 429
    assert attempt(client, "alice", address="203.0.113.1").status_code == 200


def test_a11_whoever_knows_the_password_gets_in(client, cache):
    make_admin("root", password=PASSWORD)
    assert attempt(client, "root", PASSWORD).status_code == 302


def test_a11_a_minute_later_it_may_be_tried_again(client, cache, monkeypatch):
    for _ in range(ATTEMPTS + 1):
        last = attempt(client)
    assert last.status_code == 429
    monkeypatch.setattr("time.time", lambda: 1_800_000_061.0)
    assert attempt(client).status_code == 200


def test_looking_at_the_form_is_no_attempt(client, cache):
    for _ in range(3 * ATTEMPTS):
        assert client.get(reverse("account_login")).status_code == 200


def test_without_the_limit_nothing_stops_it(client, settings):
    """What the tests above would see if the view were not limited."""
    settings.RATELIMIT_ENABLE = False
    assert {attempt(client).status_code for _ in range(2 * ATTEMPTS)} == {200}


def test_what_a_client_writes_into_forwarded_for_does_not_give_it_more(client, cache):
    for number in range(ATTEMPTS):
        attempt(client, f"user-{number}", **{"x-forwarded-for": f"203.0.113.{number}"})
    assert attempt(client, "another", **{"x-forwarded-for": "203.0.113.99"}).status_code == 429


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.0.0.1", "junk, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "junk", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("", "198.51.100.7", ""),
    ],
)
def test_behind_trusted_proxies_the_nearest_other_address_counts(rf, settings, peer, forwarded_for, expected):
    from ipaddress import ip_network

    settings.TRUSTED_PROXIES = (ip_network("10.0.0.0/8"),)
    request = rf.post("/", REMOTE_ADDR=peer, headers={"x-forwarded-for": forwarded_for})
    assert client_address(request) == expected


def test_an_ipv6_network_counts_as_one():
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::1") == "2001:db8:1:2::"
    assert network_of("::ffff:198.51.100.7") == "198.51.100.7"
    assert network_of("") == ""
