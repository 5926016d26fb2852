"""Creation is idempotent: by a key of the caller's, and by the names of things."""

import json
import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone

from gateway_site.management_api import kept_answers
from tenants.management_tokens import create_token
from tenants.models import ApiKey, KeptAnswer, Limit, Tenant
from tenants.models.management_tokens import SCOPES
from tests.conftest import default_connection
from tests.factories import make_admin, make_tenant
from tests.management_api.conftest import Program, error

KEY = {"Idempotency-Key": "one-of-mine"}


def test_the_same_key_and_body_make_one_thing_and_answer_alike(root, program):
    mine = program(root)
    first = mine.post("tenants", {"name": "acme"}, **KEY)
    again = mine.post("tenants", {"name": "acme"}, **KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert json.loads(first.content) == json.loads(again.content)
    assert "idempotent-replayed" not in first
    assert again["idempotent-replayed"] == "true"


def test_a_secret_is_in_the_first_answer_alone_and_kept_nowhere(root, acme, program):
    mine = program(root)
    body = {"tenant": "acme", "name": "CI"}
    first, again = (mine.post("keys", body, **KEY).json() for _ in range(2))
    assert first["key"].startswith("ogw_")
    assert again == {**first, "key": None}
    assert ApiKey.objects.count() == 1
    assert first["key"][13:] not in str(KeptAnswer.objects.values())
    # Whoever lost the first answer rotates.
    fresh = mine.post(f"keys/{first['prefix']}/rotate", {"overlap_seconds": 0}, **{"Idempotency-Key": "rotation"})
    assert fresh.json()["key"] not in (None, first["key"])
    kept = mine.post(f"keys/{first['prefix']}/rotate", {"overlap_seconds": 0}, **{"Idempotency-Key": "rotation"})
    assert kept.json()["key"] is None


def test_another_body_or_path_with_the_same_key_is_refused(root, program):
    mine = program(root)
    mine.post("tenants", {"name": "acme"}, **KEY)
    for path, body in (("tenants", {"name": "other"}), ("users", {"username": "acme"})):
        assert error(mine.post(path, body, **KEY), 422) == ("idempotency_key_reused", "")
    assert Tenant.objects.count() == 1


def test_a_refusal_is_not_kept(root, program):
    mine = program(root)
    assert mine.post("keys", {"tenant": "acme", "name": "x"}, **KEY).status_code == 422
    make_tenant("acme")
    assert mine.post("keys", {"tenant": "acme", "name": "x"}, **KEY).status_code == 201


def test_keys_of_two_tokens_are_two(root, program):
    for mine in (program(root), program(root)):
        answer = mine.post("tenants", {"name": "acme"}, **KEY)
        assert "idempotent-replayed" not in answer
    assert Tenant.objects.count() == 1


def test_answers_are_kept_for_a_day(root, program):
    mine = program(root)
    mine.post("tenants", {"name": "acme"}, **KEY)
    KeptAnswer.objects.update(created_at=timezone.now() - kept_answers.KEPT_FOR - timedelta(seconds=1))
    assert mine.post("tenants", {"name": "acme"}, **KEY).status_code == 200  # by its name, not by the key
    assert KeptAnswer.objects.count() == 1


def test_whoever_lost_the_right_is_told_nothing_again(root, program):
    mine = program(root)
    mine.post("backends", {"name": "gpu1", "url": "http://127.0.0.1:11434"}, **KEY)
    root.is_superuser = False
    root.save()
    answer = mine.post("backends", {"name": "gpu1", "url": "http://127.0.0.1:11434"}, **KEY)
    assert error(answer, 403)[0] == "not_permitted"


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "ü", "a b"])
def test_an_idempotency_key_is_of_printable_characters(key, root, program):
    answer = program(root).post("tenants", {"name": "acme"}, **{"Idempotency-Key": key})
    assert error(answer, 422)[1] == "Idempotency-Key"


NATURAL = [
    ("tenants", {"name": "new"}, {"weight": 200}),
    ("users", {"username": "new"}, {"email": "new@example.com"}),
    ("memberships", {"tenant": "acme", "user": "bob", "role": "member"}, {"role": "viewer"}),
    ("aliases", {"pattern": "gpt-*", "model": "llama3.2"}, {"model": "qwen3:8b"}),
    ("policies", {"pattern": "llama3.2"}, {"num_ctx": 8192}),
    ("prices", {"model": "llama3.2", "input": "0.15", "valid_from": "2026-01-01T00:00:00Z"}, {"output": "1"}),
    ("backends", {"name": "gpu9", "url": "http://127.0.0.1:11999"}, {"slots": 4}),
    ("backends", {"name": "gpu9", "url": "http://127.0.0.1:11999"}, {"credential_header": "x", "credential": "y"}),
    ("ip-rules", {"cidr": "10.0.0.0/8", "action": "deny", "tenant": "acme"}, {"note": "another"}),
    (
        "limits",
        {"scope": "tenant", "tenant": "acme", "metric": "cost", "window": "day", "amount": "2.5"},
        {"amount": "3"},
    ),
]


@pytest.mark.parametrize(("path", "body", "other"), NATURAL)
def test_what_is_there_as_was_asked_for_is_200_and_otherwise_409(path, body, other, root, bob, acme, program):
    mine = program(root)
    first = mine.post(path, body)
    assert first.status_code == (200 if path == "memberships" else 201), first.content
    again = mine.post(path, body)
    assert (again.status_code, again.json()) == (200, first.json())
    assert error(mine.post(path, {**body, **other}), 409)[0] == "conflict"
    row = mine.get(f"{path}/{first.json()['id']}")
    assert row.json() == first.json()
    assert mine.get(path).json()["items"].count(row.json()) == 1


def test_a_price_from_now_on_is_new_only_when_it_differs(root, program):
    mine = program(root)
    assert [mine.post("prices", {"model": "a", "input": price}).status_code for price in ("1", "1", "2", "1")] == [
        201,
        200,
        201,
        201,
    ]


def at_once(count, act):
    """What `count` threads were answered that began together."""
    barrier, answers = threading.Barrier(count, timeout=30), []

    def run():
        try:
            barrier.wait()
            answers.append(act())
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == count
    return answers


@pytest.mark.postgres
def test_at_once_on_postgresql_one_is_made(postgres_url, transactional_db):
    """Of eight who ask for the same at the same moment, and of eight who bring no key but a name."""

    def program():
        return Program(token)

    with default_connection(postgres_url):
        token = create_token(make_admin("root"), "t", SCOPES).clear_text
        make_tenant("acme")

    def ask(path, body, headers):
        def act():
            with default_connection(postgres_url):
                return program().post(path, body, **headers)

        return act

    answers = at_once(8, ask("keys", {"tenant": "acme", "name": "CI"}, KEY))
    assert [answer.status_code for answer in answers] == [201] * 8, [answer.content for answer in answers]
    secrets = [answer.json()["key"] for answer in answers]
    assert secrets.count(None) == 7
    named = at_once(8, ask("tenants", {"name": "new"}, {}))
    assert sorted(answer.status_code for answer in named) == [200] * 7 + [201]
    limit = {"scope": "default", "metric": "requests", "window": "day", "amount": 5}
    limited = at_once(8, ask("limits", limit, {}))
    assert sorted(answer.status_code for answer in limited) == [200] * 7 + [201]
    with default_connection(postgres_url):
        assert ApiKey.objects.count() == 1
        assert Tenant.objects.filter(name="new").count() == 1
        assert Limit.objects.count() == 1
