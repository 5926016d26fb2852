"""Which calls may share an answer, and what a client may ask of the cache."""

import pytest

from proxy.cache.policy import (
    KEY,
    NO_PURGES,
    NOTHING_SAID,
    SHARED,
    TENANT,
    Purges,
    Settings,
    kept_calls,
    may_share,
    scope_of,
    sharing_of,
    wish_of,
)
from proxy.snapshot import KeyRow, Snapshot, Tables

SAID = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "request_", "deterministic", "all_"),
    [
        ("/api/chat", {**SAID}, False, True),
        ("/api/chat", {**SAID, "options": {"temperature": 0}}, True, True),
        ("/api/chat", {**SAID, "options": {"temperature": 0.0}}, True, True),
        ("/api/chat", {**SAID, "options": {"temperature": 0.1}}, False, True),
        ("/api/chat", {**SAID, "options": {"seed": 0}}, True, True),
        ("/api/chat", {**SAID, "options": {"seed": -1}}, False, True),
        ("/api/chat", {**SAID, "temperature": 0}, False, True),
        ("/api/chat", {"messages": []}, False, False),
        ("/api/generate", {"prompt": "x", "options": {"seed": 7}}, True, True),
        ("/api/generate", {"prompt": ""}, False, False),
        ("/v1/chat/completions", {**SAID, "seed": 7}, True, True),
        ("/v1/chat/completions", {**SAID, "temperature": 0}, True, True),
        ("/v1/chat/completions", {**SAID, "options": {"temperature": 0}}, False, True),
        ("/v1/completions", {"prompt": "x", "temperature": 0}, True, True),
        ("/v1/responses", {"input": "x", "temperature": 0}, True, True),
        ("/v1/responses", {"input": "x", "seed": 7}, False, True),
        ("/v1/messages", {**SAID, "temperature": 0}, True, True),
        ("/v1/messages", {**SAID, "seed": 7}, False, True),
        ("/v1/messages", {**SAID, "temperature": 0, "tools": [{"type": "web_search_20250305"}]}, False, False),
        ("/v1/responses", {"input": "x", "tools": [{"tools": [{"type": " Web_Search"}]}]}, False, False),
        ("/api/embed", {"input": "x"}, True, True),
        ("/api/embed", {"input": []}, False, False),
        ("/v1/embeddings", {"input": ["x"]}, True, True),
        ("/api/embeddings", {"prompt": "x"}, True, True),
        ("/api/embeddings", {}, False, False),
        ("/v1/audio/transcriptions", {"file": b"x"}, False, False),
        ("/api/show", {"model": "x"}, False, False),
        ("/api/new-route", {**SAID}, False, False),
    ],
)  # fmt: skip
def test_what_may_be_shared(path, request_, deterministic, all_):
    assert may_share("deterministic", path, request_) is deterministic
    assert may_share("all", path, request_) is all_


@pytest.mark.parametrize(
    ("said", "may_get", "may_keep"),
    [
        (None, True, True), (b"", True, True), (b"max-age=0", True, True), (b"no-cache", False, True),
        (b"No-Cache", False, True), (b'private, no-cache="x"', False, True), (b"no-store", False, False),
        (b"no-store, no-cache", False, False), (b"no-cachet", True, True),
    ],
)  # fmt: skip
def test_cache_control_of_a_client(said, may_get, may_keep):
    assert wish_of(said) == (may_get, may_keep)


def rule_of(*, key="", tenant="", scope="tenant", admin=NOTHING_SAID, environment="off", purges=NO_PURGES, more=None):
    row = KeyRow(7, "k", "p", 1, None, None, True, None, False, (), (True,) * 5, None, cache_policy=key)
    tables = Tables(
        tenants={1: ("a", True), 2: ("b", True)},
        keys={7: row},
        cache_choices={1: (tenant, scope), **(more or {})},
        cache_settings=admin,
        purges=purges,
    )
    return Snapshot(tables, 0, Settings(environment, 60)).key(7, 0).cache


@pytest.mark.parametrize(
    ("said", "policy"),
    [
        ({}, None),
        ({"environment": "deterministic"}, "deterministic"),
        ({"environment": "all", "admin": Settings("off")}, None),
        ({"environment": "off", "admin": Settings("all")}, "all"),
        ({"admin": Settings("all"), "tenant": "off"}, None),
        ({"tenant": "deterministic"}, "deterministic"),
        ({"tenant": "off", "key": "all"}, "all"),
        ({"tenant": "all", "key": "off"}, None),
        ({"tenant": "some text of SQL"}, None),
    ],
)
def test_the_nearest_policy_that_is_said_counts(said, policy):
    rule = rule_of(**said)
    assert (rule.policy if rule else None) == policy


def test_how_long_answers_are_kept_is_said_in_the_admin_else_by_the_environment():
    assert rule_of(key="all").ttl_seconds == 60
    assert rule_of(key="all", admin=Settings(ttl_seconds=5)).ttl_seconds == 5


def test_t5_whose_answers_a_key_gets():
    assert rule_of(key="all", scope="key").scope == "k7"
    assert rule_of(key="all").scope == "t1"
    assert rule_of(key="all", scope="shared").scope == "shared"


@pytest.mark.parametrize(
    ("purges", "scope", "epoch"),
    [
        (NO_PURGES, "tenant", 0),
        (Purges(3, {}, {}), "tenant", 3),
        (Purges(0, {1: 4}, {}), "tenant", 4),
        (Purges(0, {2: 4}, {}), "tenant", 0),
        (Purges(0, {1: 4}, {}), "key", 4),
        (Purges(0, {}, {"llama3.2:latest": 5}), "tenant", 5),
        (Purges(0, {}, {"other:latest": 5}), "tenant", 0),
        (Purges(3, {1: 9}, {"llama3.2:latest": 5}), "tenant", 9),
        # What several tenants share is purged for all of them, or they would share no more.
        (Purges(0, {2: 4}, {}), "shared", 4),
        # Also by a tenant that has shared before: its answers are among them, and older ones must not come back.
        (Purges(0, {3: 4}, {}), "shared", 4),
    ],
)
def test_a_purge_makes_what_was_kept_unreachable(purges, scope, epoch):
    rule = rule_of(key="all", scope=scope, purges=purges, more={2: ("", "shared"), 3: ("", "tenant")})
    assert rule.epoch("llama3.2:latest") == epoch


@pytest.mark.parametrize("sharing", [KEY, TENANT, SHARED])
def test_a_scope_tells_how_answers_are_shared(sharing):
    assert sharing_of(scope_of(sharing, 3, 7)) == sharing


@pytest.mark.parametrize(
    ("policy", "path", "said"),
    [
        ("all", "/api/chat", "A call"),
        ("deterministic", "/api/chat", "A call with temperature 0 or a seed"),
        ("deterministic", "/v1/messages", "A call with temperature 0"),
        ("deterministic", "/api/embed", "A call"),
        ("all", "/api/show", ""),
        ("deterministic", "/api/show", ""),
    ],
)
def test_what_is_kept_is_said_in_words(policy, path, said):
    assert kept_calls(policy, path) == said
