"""What a key and a name mean under the rules: states, limits, models (rows A7, A10, I4, M1)."""

import random

import pytest

from proxy import snapshot as snapshot_module
from proxy.model_names import InvalidModelName, canonical_pattern
from proxy.snapshot import IPRuleRow, Policy, Snapshot, ordered_policies
from tenants.keys import digest
from tests.proxy.rules import LOOPBACK, NOW, PEPPER, key_row, limit, new_key, snapshot

SPELLINGS = [
    "llama3.2",
    "LLAMA3.2:latest",
    "library/llama3.2",
    " llama3.2 ",
    "llama3.2:local",
    "registry.ollama.ai/library/llama3.2",
]


def key_of(rules, row, now=NOW):
    return rules.key(row.id, now)


# A7: states


@pytest.mark.parametrize(
    ("fields", "usable"),
    [
        ({}, True),
        ({"expires_at": NOW + 1}, True),
        ({"user_id": 1}, True),
        ({"expires_at": NOW}, False),
        ({"revoked": True}, False),
        ({"enabled": False}, False),
        ({"tenant_id": 3}, False),
        ({"user_id": 2}, False),
    ],
)
def test_a7_the_state_of_a_key(fields, usable):
    row = key_row(**fields)
    assert (key_of(snapshot(row), row) is not None) is usable


def test_a7_a_key_expires_without_any_change_of_the_rules():
    row, key, digests = new_key(expires_at=NOW + 10)
    rules = snapshot(row, digests=digests)
    secret = digest(key, PEPPER)
    assert rules.key_by_digest(secret, NOW + 9.9) is not None
    assert rules.key_by_digest(secret, NOW + 10) is None


def test_a10_the_secret_before_the_last_rotation_works_until_the_overlap_ends():
    row = key_row(previous_expires_at=NOW + 10)
    rules = snapshot(row, digests={b"new": (1, False), b"old": (1, True)})
    assert rules.key_by_digest(b"old", NOW + 9) is rules.key_by_digest(b"new", NOW + 9) is not None
    assert rules.key_by_digest(b"old", NOW + 10) is None
    assert rules.key_by_digest(b"new", NOW + 10) is not None


def test_a7_an_ip_rule_expires_without_any_change_of_the_tables():
    row = key_row()
    rules = snapshot(row, ip_rules=[IPRuleRow("127.0.0.0/8", "deny", expires_at=NOW + 5)])
    assert not rules.ip_all.allow(LOOPBACK)
    assert rules.valid_until == NOW + 5
    later = rules.refreshed(NOW + 5)
    assert later.ip_all.allow(LOOPBACK)
    assert later.valid_until is None


def test_i4_a_call_must_pass_the_rules_of_all_of_its_tenant_and_of_its_key():
    row, other = key_row(), key_row(key_id=2, prefix="bbbbbbbb", tenant_id=2)
    rules = snapshot(
        row,
        other,
        ip_rules=(
            IPRuleRow("192.0.2.0/24", "deny"),
            IPRuleRow("127.0.0.0/8", "deny", tenant_id=1),
            IPRuleRow("127.0.0.1/32", "deny", key_id=2),
        ),
    )
    first, second = key_of(rules, row), key_of(rules, other)
    assert rules.ip_all.allow(LOOPBACK)
    assert (first.tenant_ip.allow(LOOPBACK), first.key_ip.allow(LOOPBACK)) == (False, True)
    assert (second.tenant_ip.allow(LOOPBACK), second.key_ip.allow(LOOPBACK)) == (True, False)


@pytest.mark.parametrize("scope", [{"tenant_id": 1}, {"key_id": 1}])
@pytest.mark.parametrize(
    ("administrators", "owners", "passes"),
    [
        # The longer prefix would win, were they one scope.
        ([("127.0.0.0/8", "deny")], [("127.0.0.1/32", "allow")], False),
        ([("192.0.2.0/24", "allow")], [("127.0.0.1/32", "allow")], False),
        ([("127.0.0.0/8", "allow")], [("127.0.0.1/32", "deny")], False),
        ([("127.0.0.0/8", "allow")], [("127.0.0.1/32", "allow")], True),
        ([("127.0.0.0/8", "allow")], [("192.0.2.0/24", "deny")], True),
        ([], [("192.0.2.0/24", "allow")], False),
    ],
)
def test_i4_t3_rules_of_owners_tighten_those_of_administrators_and_never_undercut_them(
    scope, administrators, owners, passes
):
    row = key_row()
    made = [IPRuleRow(*rule, **scope) for rule in administrators]
    made += [IPRuleRow(*rule, **scope, by_owners=True) for rule in owners]
    key = key_of(snapshot(row, ip_rules=tuple(made)), row)
    rules = key.tenant_ip if "tenant_id" in scope else key.key_ip
    assert rules.allow(LOOPBACK) is rules.admits(LOOPBACK) is passes
    decisive = rules.decide(LOOPBACK)
    assert decisive is None or decisive.allows is passes
    assert not rules.allow(None)


# Limits of a key


def test_u6_the_limits_of_a_key_are_its_own_its_users_its_tenants_and_the_defaults_it_does_not_replace():
    row = key_row(user_id=1)
    limits = (
        ("key", None, None, 1, limit(1, amount=5)),
        ("key", None, None, 2, limit(2)),
        ("default", None, None, None, limit(3)),
        ("default", None, None, None, limit(4, window="hour")),
        ("user", None, 1, None, limit(5)),
        ("user", None, 2, None, limit(6)),
        ("tenant", 1, None, None, limit(7)),
        ("tenant", 2, None, None, limit(8)),
        ("address", None, None, None, limit(9, per_address=True)),
    )
    rules = key_of(snapshot(row, limits=limits), row).rules
    assert [rule.id for rule in rules] == [1, 4, 5, 7, 9]


def test_u6_who_shares_a_counter_and_who_does_not():
    rows = [key_row(1, "aaaaaaaa"), key_row(2, "bbbbbbbb"), key_row(3, "cccccccc", tenant_id=2)]
    limits = (
        ("default", None, None, None, limit(1)),
        ("tenant", 1, None, None, limit(2)),
        ("tenant", 2, None, None, limit(3)),
    )
    rules = snapshot(*rows, limits=limits)
    default, tenant = zip(*(key_of(rules, row).rules for row in rows), strict=True)
    assert len({rule.counted_for for rule in default}) == 3
    assert tenant[0].counted_for == tenant[1].counted_for != tenant[2].counted_for


# Models


@pytest.mark.parametrize("allowed", SPELLINGS)
@pytest.mark.parametrize("asked", SPELLINGS)
def test_m1_an_allow_list_in_any_spelling_allows_any_spelling(allowed, asked):
    row = key_row(models=(canonical_pattern(allowed),))
    rules = snapshot(row)
    model = rules.model(key_of(rules, row), asked)
    assert (model.allowed, model.served.canonical, model.served.cloud) == (True, "llama3.2:latest", False)


@pytest.mark.parametrize(
    "asked",
    [
        "other",
        "llama3.2:3b",
        "llama3.2x",
        "user/llama3.2",
        "hf.co/library/llama3.2",
        "evil:80/library/llama3.2",
        "qwen3",
    ],
)
def test_m1_another_model_is_another_model(asked):
    row = key_row(models=("llama3.2:latest", "qwen3:8*"))
    rules = snapshot(row)
    assert not rules.model(key_of(rules, row), asked).allowed


def test_m1_aliases_the_exact_name_first_then_the_longest_pattern():
    row = key_row()
    aliases = (("gpt-*", "small"), ("gpt-4*", "middle"), ("GPT-4o", "large:7b"), ("broken", "a b"))
    rules = snapshot(row, aliases=aliases)
    served = {
        name: rules.model(key_of(rules, row), name).served.canonical for name in ("gpt-3", "gpt-4", "gpt-4o:latest")
    }
    assert served == {"gpt-3": "small:latest", "gpt-4": "middle:latest", "gpt-4o:latest": "large:7b"}
    assert rules.model(key_of(rules, row), "broken").served.canonical == "broken:latest"


@pytest.mark.parametrize(
    ("models", "allowed"), [(("gpt-4o:latest",), True), (("large:*",), True), (("other:*",), False)]
)
def test_m1_an_alias_is_allowed_by_either_of_its_names(models, allowed):
    row = key_row(models=tuple(models))
    rules = snapshot(row, aliases=(("gpt-4o", "large:7b"),))
    assert rules.model(key_of(rules, row), "GPT-4o").allowed is allowed


@pytest.mark.parametrize("asked", ["big:cloud", "Big:CLOUD", "gpt-oss:120b-cloud", "alias"])
@pytest.mark.parametrize("cloud", [True, False])
def test_m1_cloud_models_need_the_right_also_behind_an_alias(asked, cloud):
    row = key_row(rights=(True, True, False, cloud, False))
    rules = snapshot(row, aliases=(("alias", "big:cloud"),))
    assert rules.model(key_of(rules, row), asked).allowed is cloud


def test_m3_the_policy_of_a_model_is_that_of_its_name_or_of_the_longest_pattern():
    policies = ordered_policies([Policy("*", num_ctx=1), Policy("qwen*", num_ctx=2), Policy("QWEN3:8b", num_ctx=3)])
    row = key_row()
    rules = snapshot(row, policies=policies, aliases=(("fast", "qwen3:8b"),))
    found = {name: rules.model(key_of(rules, row), name).policy.num_ctx for name in ("x", "qwen2", "qwen3:8b", "fast")}
    assert found == {"x": 1, "qwen2": 2, "qwen3:8b": 3, "fast": 3}


def test_m1_junk_names_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(snapshot_module, "REMEMBERED", 100)
    row = key_row()
    rules = snapshot(row)
    rng = random.Random("junk")
    for _ in range(2000):
        try:
            rules.model(key_of(rules, row), "".join(rng.choices("ab/:.", k=8)))
        except InvalidModelName:
            pass
    assert len(rules._models) <= 100


def test_a8_a_new_snapshot_begins_without_what_an_old_one_worked_out():
    row = key_row()
    old = snapshot(row)
    assert key_of(old, row) is not None
    revoked = row._replace(revoked=True)
    new = Snapshot(snapshot(revoked).tables, NOW)
    assert key_of(new, row) is None
    assert key_of(old, row) is not None
