"""Who is asking: tokens, and nothing else."""

import base64
import re
from datetime import timedelta

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from tenants import management_tokens
from tenants.keys import digest, has_our_form
from tenants.management_tokens import create_token
from tenants.models import ManagementToken, ManagementTokenLastUsed
from tests.factories import make_key
from tests.management_api.conftest import API, Program, error


def test_a_token_has_a_form_of_its_own_and_only_its_digest_is_kept(alice):
    made = create_token(alice, "Terraform", ["read"])
    assert re.fullmatch(management_tokens.PATTERN, made.clear_text)
    row = ManagementToken.objects.get()
    assert made.clear_text[4:12] == row.prefix
    kept = "|".join(str(value) for value in ManagementToken.objects.values_list().get())
    assert made.clear_text[13:] not in kept
    assert made.clear_text not in repr(made)


def test_a_changed_character_is_refused_without_a_look_up(alice, django_assert_num_queries):
    made = create_token(alice, "t", ["read"]).clear_text
    with django_assert_num_queries(0):
        assert management_tokens.find((made[:20] + ("x" if made[20] != "x" else "y") + made[21:]).encode()) is None


def test_neither_is_accepted_as_the_other(alice, acme, program):
    token, key = create_token(alice, "t", ["read"]).clear_text, make_key(acme).clear_text
    assert not has_our_form(token.encode())
    assert not management_tokens.has_form(key.encode())
    assert error(Program(key).get("tenants"), 401) == ("invalid_token", "")
    # Nor would a digest that was copied from one table into the other open anything.
    row = ManagementToken.objects.get()
    assert bytes(row.digest) != digest(token.encode(), settings.KEY_PEPPER)


@pytest.mark.parametrize("form", ["bearer", "bare", "basic", "x-api-key"])
def test_a_token_is_taken_in_each_form_that_calls_take(alice, form):
    token = create_token(alice, "t", ["read"]).clear_text
    headers = {
        "bearer": {"authorization": f"Bearer {token}"},
        "bare": {"authorization": token},
        "basic": {"authorization": "Basic " + base64.b64encode(f"x:{token}".encode()).decode()},
        "x-api-key": {"x-api-key": token},
    }[form]
    assert Program(**headers).get("tenants").status_code == 200


def test_two_credentials_are_none(alice):
    first, second = (create_token(alice, "t", ["read"]).clear_text for _ in range(2))
    assert error(Program(first).get("tenants", **{"x-api-key": second}), 401) == ("invalid_token", "")


def test_a_session_alone_opens_nothing(root, client):
    client.force_login(root)
    for path in ("tenants", "keys", "key"):
        assert error(client.get(API + path), 401)[0] == "missing_token"
    for path in ("/config/new-key", "/config/reload"):
        assert error(client.get(path), 401)[0] == "missing_token"
    assert error(client.post(f"{API}tenants", {"name": "x"}, "application/json"), 401)[0] == "missing_token"


def test_a_cookie_beside_a_token_adds_nothing(root, alice, other, program):
    mine = program(alice)
    mine.client.force_login(root)
    assert [row["name"] for row in mine.get("tenants").json()["items"]] == ["acme"]


def test_a_token_ends_with_itself_and_with_its_user(alice):
    now = timezone.now()
    revoked, expired, living = (create_token(alice, name, ["read"]) for name in ("revoked", "expired", "living"))
    ManagementToken.objects.filter(pk=revoked.row.pk).revoke()
    ManagementToken.objects.filter(pk=expired.row.pk).update(
        created_at=now - timedelta(days=2), expires_at=now - timedelta(seconds=1)
    )
    assert Program(living.clear_text).get("tenants").status_code == 200
    answers = [Program(made.clear_text).get("tenants") for made in (revoked, expired)]
    alice.is_active = False
    alice.save()
    answers.append(Program(living.clear_text).get("tenants"))
    # All alike: which of the causes it was is not told.
    assert {error(answer, 401) for answer in answers} == {("invalid_token", "")}
    assert len({answer.json()["error"]["message"] for answer in answers}) == 1


def test_rights_are_those_of_this_moment(root, alice, acme, program):
    mine = program(root)
    assert mine.get("backends").status_code == 200
    root.is_superuser = root.is_staff = False
    root.save()
    assert error(mine.get("backends"), 403)[0] == "not_permitted"
    assert mine.get("tenants").json()["items"] == []
    owner = program(alice)
    assert owner.get("tenants").json()["items"]
    alice.memberships.all().delete()
    assert owner.get("tenants").json()["items"] == []


def test_scopes_are_asked(root, program):
    reader = program(root, "read")
    assert reader.get("tenants").status_code == 200
    for path in ("tenants", "users", "keys", "limits", "ip-rules", "aliases", "backends", "prices", "policies"):
        body = {"tenants": {"name": "x"}, "users": {"username": "x"}, "keys": {"tenant": "x", "name": "x"}}.get(path)
        body = (
            body
            or {
                "limits": {"scope": "default", "metric": "requests", "window": "day", "amount": 1},
                "ip-rules": {"cidr": "10.0.0.0/8", "action": "deny"},
                "aliases": {"pattern": "a", "model": "b"},
                "backends": {"name": "a", "url": "http://127.0.0.1:1"},
                "prices": {"model": "a"},
                "policies": {"pattern": "a"},
            }[path]
        )
        assert error(reader.post(path, body), 403) == ("scope_missing", ""), path
    assert error(program(root, "keys:write").get("tenants"), 403) == ("scope_missing", "")


@pytest.mark.usefixtures("one_window")
def test_failures_are_limited_by_address_and_valid_tokens_are_not(alice, program, settings):
    mine = program(alice)
    stranger = Program("ogm_not_a_token")
    answers = [stranger.get("tenants").status_code for _ in range(settings.GATEWAY.failed_credentials_per_minute + 2)]
    assert answers[0] == 401
    assert answers[-1] == 429
    late = stranger.get("tenants")
    assert error(late, 429)[0] == "too_many_requests"
    assert int(late["retry-after"]) > 0
    assert mine.get("tenants").status_code == 200


def test_the_last_use_is_noted_once_a_minute(alice):
    token = create_token(alice, "t", ["read"]).row
    now = timezone.now()
    management_tokens.note_use(token, now)
    management_tokens.note_use(token, now + timedelta(seconds=30))
    assert ManagementTokenLastUsed.objects.get().at == now
    management_tokens.note_use(token, now + timedelta(seconds=90))
    assert ManagementTokenLastUsed.objects.get().at == now + timedelta(seconds=90)


def test_create_token_prints_only_the_token(alice, acme, capsys):
    call_command("create_token", "--user", "alice", "--name", "CI", "--scopes", "read,keys:write", "--tenant", "acme")
    token = capsys.readouterr().out.strip()
    assert Program(token).get("keys").status_code == 200
    row = ManagementToken.objects.get()
    assert (row.scopes, row.tenant, row.name) == (["read", "keys:write"], acme, "CI")
    for arguments in (
        ["--user", "nobody", "--name", "x"],
        ["--user", "alice", "--name", "x", "--scopes", "everything"],
        ["--user", "alice", "--name", "x", "--expires", "2001-01-01"],
    ):
        with pytest.raises(CommandError) as refused:
            call_command("create_token", *arguments)
        assert refused.value.returncode == 1
        assert "\n" not in str(refused.value)


def test_the_document_is_public_and_names_no_host(client: Client, db):
    answer = client.get(f"{API}openapi.json")
    assert answer.status_code == 200
    assert answer.json()["openapi"].startswith("3.")
    assert "://" not in re.sub(r"http://10\.0\.0\.5:11434|https\?://", "", answer.content.decode())
    assert error(client.get(f"{API}docs"), 404)[0] == "not_found"


def test_the_document_is_made_once_and_only_read(client: Client, db, monkeypatch):
    first = client.get(f"{API}openapi.json").content
    monkeypatch.setattr("gateway_site.management_api.api.api.get_openapi_schema", None)
    assert client.get(f"{API}openapi.json").content == first
    assert client.head(f"{API}openapi.json").status_code == 200
    for method in ("post", "put", "patch", "delete"):
        answer = getattr(client, method)(f"{API}openapi.json")
        assert error(answer, 405)[0] == "method_not_allowed"
        assert answer["allow"] == "GET, HEAD"
