"""Rows A2–A6 and A9: which credential is whose, and how little a wrong one costs or learns."""

import base64
import random
import re
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.admission import NOT_ACCEPTED, NOT_ACCEPTED_IN_PATH, Admission, credentials
from proxy.credential_failures import CredentialFailures
from proxy.errors import Forbidden, Refusal, Unauthorized
from proxy.routes import ROUTES
from proxy.snapshot import IPRuleRow
from tenants import keys
from tests.proxy.rules import ADMISSION, LOOPBACK, NOW, PEPPER, new_key, snapshot

CHAT = ROUTES[b"/api/chat"]["POST"]
TAGS = ROUTES[b"/api/tags"]["GET"]


def admit(rules, *headers, address=LOOPBACK, now=NOW, route=CHAT, admission=ADMISSION, path_key=None):
    return admission.admit(rules, route, headers, address, now, path_key)


def bearer(key):
    return (b"authorization", b"Bearer " + key)


def refusal(rules, *headers, **call):
    with pytest.raises(Refusal) as caught:
        admit(rules, *headers, **call)
    return caught.value


@pytest.fixture
def row_key_rules():
    row, key, digests = new_key()
    return row, key, snapshot(row, digests=digests)


# A2: the form of a key


def test_a2_every_key_has_the_documented_form_and_a_checksum():
    for _ in range(300):
        prefix, clear_text = keys.make_clear_text()
        assert re.fullmatch(keys.PATTERN, clear_text)
        assert clear_text.startswith(f"ogw_{prefix}_")
        assert keys.has_our_form(clear_text.encode())


def test_a2_one_changed_character_fails_the_checksum():
    _, clear_text = keys.make_clear_text()
    for position in range(len(clear_text)):
        for char in "0aZ_-é":
            changed = clear_text[:position] + char + clear_text[position + 1 :]
            assert keys.has_our_form(changed.encode()) is (changed == clear_text)


@pytest.mark.parametrize(
    "junk", [b"", b"ogw_", b"ogw_x_y", b"x" * 62, b"\xff" * 62, b"ogw_" + b"a" * 58, b"x" * 100_000]
)
def test_a2_junk_has_not_our_form(junk):
    assert not keys.has_our_form(junk)


# A3: guessing


class CountedDigests(dict):
    """Digests that count how often they were asked for one."""

    looked_up = 0

    def get(self, *args):
        self.looked_up += 1
        return super().get(*args)


def test_a3_junk_keys_cost_no_look_up(row_key_rules):
    rng = random.Random("A3")
    row, key, _ = row_key_rules
    digests = CountedDigests()
    rules = snapshot(row, digests=digests)
    alphabet = keys.ALPHABET.encode() + b"_-. "
    for number in range(10_000):
        junk = bytes(rng.choices(alphabet, k=rng.choice((5, 40, 61, 62, 63, 300))))
        if number % 3 == 0:
            junk = key[:-1] + bytes([key[-1] ^ 1])
        assert refusal(rules, bearer(junk)).status == 401
    assert digests.looked_up == 0
    refusal(rules, bearer(keys.make_clear_text()[1].encode()))
    assert digests.looked_up == 1


def test_a3_keys_that_are_not_accepted_are_answered_alike():
    """Unknown, revoked, disabled, expired, of a switched-off tenant or user, from a foreign address."""
    variants = {
        "revoked": {"revoked": True},
        "disabled": {"enabled": False},
        "expired": {"expires_at": NOW - 1},
        "just expired": {"expires_at": NOW},
        "tenant off": {"tenant_id": 3},
        "tenant gone": {"tenant_id": 99},
        "user off": {"user_id": 2},
        "user gone": {"user_id": 99},
    }
    said = {"unknown": refusal(snapshot(), bearer(keys.make_clear_text()[1].encode()))}
    for name, fields in variants.items():
        row, key, digests = new_key(**fields)
        said[name] = refusal(snapshot(row, digests=digests), bearer(key))
    row, key, digests = new_key()
    for name, scope in {"key": (None, 1), "tenant": (1, None)}.items():
        rules = [IPRuleRow("10.0.0.0/8", "allow", *scope)]
        said[f"foreign address, {name}"] = refusal(snapshot(row, digests=digests, ip_rules=rules), bearer(key))
    said["bad form"] = refusal(snapshot(), bearer(b"ogw_nobody"))
    answers = {(r.status, r.code, r.message, r.retry_after, tuple(r.headers)) for r in said.values()}
    assert answers == {(401, "invalid_key", NOT_ACCEPTED, None, ())}
    for cause in ("mistyped", "unknown", "expired", "revoked", "switched off", "address"):
        assert cause in NOT_ACCEPTED


def test_a3_keys_in_the_path_are_answered_alike_too_and_told_of_the_switch_that_it_takes():
    in_path = {"rights": (True, True, False, False, True)}
    variants = {
        "not switched on for it": {},
        "revoked": {**in_path, "revoked": True},
        "expired": {**in_path, "expires_at": NOW - 1},
        "tenant off": {**in_path, "tenant_id": 3},
    }
    unknown = keys.make_clear_text()[1].encode()
    said = {
        "unknown": refusal(snapshot(), path_key=unknown),
        "bad form": refusal(snapshot(), path_key=b"nope"),
    }
    for name, fields in variants.items():
        row, key, digests = new_key(**fields)
        said[name] = refusal(snapshot(row, digests=digests), path_key=key)
    row, key, digests = new_key(**in_path)
    rules = [IPRuleRow("10.0.0.0/8", "allow", None, 1)]
    said["foreign address"] = refusal(snapshot(row, digests=digests, ip_rules=rules), path_key=key)
    answers = {(r.status, r.code, r.message, r.retry_after, tuple(r.headers)) for r in said.values()}
    assert answers == {(401, "invalid_key", NOT_ACCEPTED_IN_PATH, None, ())}
    assert "'Accept it in the address'" in NOT_ACCEPTED_IN_PATH


def test_a3_a_rule_for_all_is_told_before_the_key_is_read(row_key_rules):
    row, key, _ = row_key_rules
    rules = snapshot(row, ip_rules=[IPRuleRow("127.0.0.0/8", "deny")])
    for headers in ([bearer(key)], [bearer(b"junk")], []):
        refused = refusal(rules, *headers)
        assert (type(refused), refused.code) == (Forbidden, "ip_denied")


def test_a3_failures_are_throttled_per_address_and_by_time(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("proxy.credential_failures.time.monotonic", lambda: now[0])
    failures = CredentialFailures(per_minute=30)
    here, there = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    assert [failures.count(here) for _ in range(30)] == [0.0] * 30
    wait = failures.count(here)
    assert 0 < wait <= 2
    assert failures.count(there) == 0
    now[0] += wait
    assert failures.count(here) == 0
    assert failures.count(here) > 0


def test_a3_a_whole_64_of_ipv6_is_one_source():
    failures = CredentialFailures(per_minute=5)
    for number in range(5):
        assert failures.count(ip_address(f"2001:db8::{number + 1:x}")) == 0
    assert failures.count(ip_address("2001:db8::ffff")) > 0
    assert failures.count(ip_address("2001:db8:0:1::1")) == 0


def test_a3_what_is_remembered_of_failures_is_bounded():
    failures = CredentialFailures(per_minute=5)
    for number in range(30_000):
        failures.count(ip_address(number))
    assert len(failures._buckets) <= 10_000


# A4: whole keys only


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 61), st.binary(min_size=1, max_size=10))
def test_a4_keys_that_share_any_prefix_never_meet(length, rest):
    row, key, digests = new_key()
    rules = snapshot(row, digests=digests)
    body = key[:-6]
    forged = body[: min(length, len(body) - 1)]
    alphabet = keys.ALPHABET.encode()
    while len(forged) < len(body):
        position = len(forged)
        forged += b"_" if position in (3, 12) else bytes([alphabet[rest[position % len(rest)] % 62]])
    forged += keys.checksum(forged)
    if forged == key:
        return
    assert refusal(rules, bearer(forged)).code == "invalid_key"
    assert refusal(rules, bearer(key[:length])).code == "invalid_key"
    assert admit(rules, bearer(key)).id == row.id


def test_a4_a_digest_is_keyed_by_the_pepper():
    row, key, digests = new_key()
    rules = snapshot(row, digests=digests)
    assert refusal(rules, bearer(key), admission=Admission(b"authorization", b"another")).status == 401
    rotated = Admission(b"authorization", b"another", (PEPPER,))
    assert admit(rules, bearer(key), admission=rotated).id == row.id


# A5: ambiguity


def basic(user, password):
    return (b"authorization", b"Basic " + base64.b64encode(user + b":" + password))


ACCEPTED = {
    "bearer": lambda key: [bearer(key)],
    "bearer in capitals": lambda key: [(b"authorization", b"BEARER " + key)],
    "bearer, blanks": lambda key: [(b"authorization", b"  Bearer   " + key + b"  ")],
    "bare": lambda key: [(b"authorization", key)],
    "x-api-key": lambda key: [(b"x-api-key", key)],
    "x-api-key, blanks": lambda key: [(b"x-api-key", b" " + key + b" ")],
    "basic, as password": lambda key: [basic(b"user", key)],
    "basic, no user": lambda key: [basic(b"", key)],
    "twice the same": lambda key: [bearer(key), bearer(key)],
    "the same in both": lambda key: [bearer(key), (b"x-api-key", key)],
    "the same in all": lambda key: [bearer(key), (b"x-api-key", key), basic(b"u", key), (b"authorization", key)],
    "beside other headers": lambda key: [(b"cookie", b"sessionid=x"), bearer(key), (b"x-api-key2", b"z")],
}
REFUSED = {
    "none": lambda key, other: [],
    "two in authorization": lambda key, other: [bearer(key), bearer(other)],
    "two valid ones": lambda key, other: [bearer(key), (b"x-api-key", other)],
    "valid first, junk second": lambda key, other: [bearer(key), (b"x-api-key", b"not-needed")],
    "junk first, valid second": lambda key, other: [bearer(b"junk"), (b"x-api-key", key)],
    "valid beside an empty one": lambda key, other: [bearer(key), (b"x-api-key", b"")],
    "valid beside an empty authorization": lambda key, other: [(b"x-api-key", key), (b"authorization", b"")],
    "comma": lambda key, other: [bearer(key + b", Bearer " + other)],
    "comma, the same": lambda key, other: [bearer(key + b"," + key)],
    "trailing comma": lambda key, other: [bearer(key + b",")],
    "two words": lambda key, other: [bearer(key + b" " + other)],
    "bearer twice": lambda key, other: [bearer(b"Bearer " + key)],
    "empty": lambda key, other: [(b"authorization", b"")],
    "scheme alone": lambda key, other: [(b"authorization", b"Bearer")],
    "tab": lambda key, other: [(b"authorization", b"Bearer\t" + key)],
    "token": lambda key, other: [(b"authorization", b"Token " + key)],
    "digest": lambda key, other: [(b"authorization", b'Digest username="' + key + b'"')],
    "valid beside digest": lambda key, other: [(b"x-api-key", key), (b"authorization", b"Digest x")],
    "basic, as user": lambda key, other: [basic(key, b"")],
    "basic, no base64": lambda key, other: [(b"authorization", b"Basic " + key + b"!")],
    "basic, no colon": lambda key, other: [(b"authorization", b"Basic " + base64.b64encode(key))],
    "basic, not ASCII": lambda key, other: [(b"authorization", b"Basic \xff\xfe")],
    "not ASCII": lambda key, other: [bearer(b"\xff" + key)],
    "fullwidth": lambda key, other: [bearer("ｏｇｗ_".encode() + key[4:])],
    "quoted": lambda key, other: [bearer(b'"' + key + b'"')],
    "NUL": lambda key, other: [bearer(key + b"\x00")],
    "another case": lambda key, other: [bearer(key.swapcase())],
    "cookie": lambda key, other: [(b"cookie", b"key=" + key)],
    "proxy-authorization": lambda key, other: [(b"proxy-authorization", b"Bearer " + key)],
    "underscores": lambda key, other: [(b"x_api_key", key)],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a5_a_credential_is_read_in_all_its_places(row_key_rules, name):
    row, key, rules = row_key_rules
    assert admit(rules, *ACCEPTED[name](key)).id == row.id


@pytest.mark.parametrize("name", REFUSED)
def test_a5_what_is_ambiguous_or_unreadable_is_401(name):
    row, key, digests = new_key()
    other_row, other, other_digests = new_key(key_id=2)
    rules = snapshot(row, other_row, digests=digests | other_digests)
    refused = refusal(rules, *REFUSED[name](key, other))
    assert isinstance(refused, Unauthorized)
    assert key.decode() not in refused.message


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"authorization", b"x-api-key", b"accept"]),
            st.binary(max_size=30)
            | st.sampled_from([b"Basic ", b"Basic :", b"Bearer x", b"Basic eDp5", b"basic \xff"]),
        ),
        max_size=4,
    )
)
def test_a5_any_header_is_a_credential_or_a_refusal(headers):
    try:
        found = credentials(headers, b"authorization")
    except Unauthorized:
        return
    assert len(found) == len(set(found))


def test_a5_a_header_of_ones_own_is_read_beside_the_usual_ones(row_key_rules):
    row, key, rules = row_key_rules
    admission = Admission(b"x-gateway-key", PEPPER)
    assert admit(rules, (b"x-gateway-key", b"Bearer " + key), admission=admission).id == row.id
    assert admit(rules, (b"x-gateway-key", key), bearer(key), admission=admission).id == row.id
    assert refusal(rules, (b"x-gateway-key", key), bearer(b"other"), admission=admission).status == 401


# A9: rights


@pytest.mark.parametrize("rights", [(True, True, True, True, True), (True, True, False, False, False)])
@pytest.mark.parametrize("fields", [{"revoked": True}, {"expires_at": NOW - 1}, {"enabled": False}, {"tenant_id": 3}])
def test_a9_no_right_outlives_its_key(rights, fields):
    row, key, digests = new_key(rights=rights, **fields)
    assert refusal(snapshot(row, digests=digests), bearer(key)).code == "invalid_key"


@pytest.mark.parametrize(
    ("rights", "route", "allowed"),
    [
        ((True, False, False, False, False), CHAT, True),
        ((True, False, False, False, False), TAGS, False),
        ((False, True, False, False, False), CHAT, False),
        ((False, True, False, False, False), TAGS, True),
        ((False, False, True, True, True), CHAT, False),
    ],
)
def test_p2_a_key_may_do_what_it_has_the_right_to(rights, route, allowed):
    row, key, digests = new_key(rights=rights)
    rules = snapshot(row, digests=digests)
    if allowed:
        assert admit(rules, bearer(key), route=route).id == row.id
    else:
        assert refusal(rules, bearer(key), route=route).code == "endpoint_not_allowed"


# Networks that act as a key


ACTING = [IPRuleRow("10.0.0.0/8", "allow", acts_as_id=1)]


@pytest.mark.parametrize("headers", [[], [bearer(b"not-needed")], [(b"authorization", b"ssh-ed25519:signature")]])
def test_a6_a_network_may_act_as_a_key(headers):
    row, _, digests = new_key()
    rules = snapshot(row, digests=digests, ip_rules=ACTING)
    assert admit(rules, *headers, address=ip_address("10.1.2.3")).id == row.id
    assert refusal(rules, *headers, address=ip_address("192.0.2.1")).status == 401


def test_a6_a_network_that_acts_as_a_key_shuts_out_nobody_else():
    row, _, digests = new_key()
    own, own_key, own_digests = new_key(key_id=2)
    rules = snapshot(row, own, digests=digests | own_digests, ip_rules=ACTING)
    assert admit(rules, bearer(own_key), address=ip_address("192.0.2.1")).id == own.id


def test_a9_an_acting_key_is_subject_to_everything_as_well():
    row, key, digests = new_key(revoked=True)
    own, own_key, own_digests = new_key(key_id=2)
    rules = snapshot(row, own, digests=digests | own_digests, ip_rules=ACTING)
    here = ip_address("10.1.2.3")
    assert refusal(rules, address=here).status == 401
    assert refusal(rules, bearer(key), address=here).status == 401
    assert admit(rules, bearer(own_key), address=here).id == own.id
