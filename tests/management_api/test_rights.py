"""What each role may do, as on the pages."""

import pytest
from django.contrib.auth.models import Permission

from tenants.models import ApiKey, AuditEntry, Limit, Membership, Role, Tenant, User
from tenants.rate_limits import MAIL
from tests.factories import make_backend, make_ip_rule, make_key, make_limit, make_user
from tests.management_api.conftest import error

LIMIT = {"metric": "requests", "window": "day", "amount": 5}


@pytest.fixture
def viewer(acme):
    return make_user("vera", tenant=acme, role=Role.VIEWER)


def test_members_make_keys_for_themselves_alone(bob, alice, acme, program):
    mine = program(bob)
    made = mine.post("keys", {"tenant": "acme", "user": "bob", "name": "mine"})
    assert made.status_code == 201
    assert made.json()["key"].startswith("ogw_")
    assert error(mine.post("keys", {"tenant": "acme", "name": "service"}), 403)[0] == "not_permitted"
    assert error(mine.post("keys", {"tenant": "acme", "user": "alice", "name": "hers"}), 403)[0] == "not_permitted"
    weighty = {"tenant": "acme", "user": "bob", "name": "x", "weight": 10_000}
    assert error(mine.post("keys", weighty), 403)[0] == "not_permitted"
    assert [row["name"] for row in mine.get("keys").json()["items"]] == ["mine"]


def test_owners_make_keys_for_their_people_but_not_for_viewers(alice, bob, viewer, acme, program):
    mine = program(alice)
    assert mine.post("keys", {"tenant": "acme", "user": "bob", "name": "his", "weight": 200}).status_code == 201
    for name in ("vera", "charlie", "nobody"):
        refused = mine.post("keys", {"tenant": "acme", "user": name, "name": "x"})
        assert error(refused, 422) == ("unknown_user", "user")


def test_viewers_have_no_keys_and_see_no_people(viewer, bob, acme, program):
    make_key(acme, user=bob)
    theirs = program(viewer)
    assert theirs.get("keys").json()["items"] == []
    assert error(theirs.post("keys", {"tenant": "acme", "user": "vera", "name": "x"}), 422) == (
        "unknown_tenant",
        "tenant",
    )
    assert [row["username"] for row in theirs.get("users").json()["items"]] == ["vera"]
    assert [row["name"] for row in theirs.get("tenants").json()["items"]] == ["acme"]


def test_t3_owners_leave_the_ip_rules_of_administrators_alone(alice, acme, program):
    rule = make_ip_rule("198.51.100.0/24", "deny", tenant=acme)
    mine = program(alice)
    assert mine.get(f"ip-rules/{rule.pk}").json()["by_owners"] is False
    assert mine.patch(f"ip-rules/{rule.pk}", {"note": "mine"}).status_code == 403
    assert mine.delete(f"ip-rules/{rule.pk}").status_code == 403


def test_owners_manage_what_is_of_their_tenant(alice, bob, acme, program):
    mine = program(alice)
    key = mine.post("keys", {"tenant": "acme", "name": "service"}).json()
    assert mine.patch(f"keys/{key['prefix']}", {"name": "renamed", "enabled": False}).json()["state"] == "disabled"
    assert mine.post(f"keys/{key['prefix']}/rotate", {"overlap_seconds": 0}).status_code == 200
    for body in (
        {"scope": "tenant", "tenant": "acme", **LIMIT},
        {"scope": "user", "user": "bob", **LIMIT},
        {"scope": "key", "key": key["prefix"], **LIMIT},
    ):
        made = mine.post("limits", body)
        assert made.status_code == 201, made.content
        assert made.json()["managed_by"] == "acme"
        assert mine.patch(f"limits/{made.json()['id']}", {"amount": 7}).json()["amount"] == 7
    rule = mine.post("ip-rules", {"cidr": "10.0.0.0/8", "action": "allow", "tenant": "acme"})
    assert rule.status_code == 201
    assert rule.json()["by_owners"] is True
    assert mine.delete(f"ip-rules/{rule.json()['id']}?confirmed=true").status_code == 204
    membership = Membership.objects.get(user=bob)
    assert mine.patch(f"memberships/{membership.pk}", {"role": "viewer"}).json()["role"] == "viewer"
    invitation = mine.post("invitations", {"tenant": "acme", "email": "new@example.com"})
    assert invitation.status_code == 201
    assert invitation.json()["link"].startswith("http")
    assert mine.get(f"invitations/{invitation.json()['id']}").json()["link"] is None
    assert mine.delete(f"invitations/{invitation.json()['id']}").status_code == 204
    assert mine.post(f"keys/{key['prefix']}/revoke").json()["state"] == "revoked"
    assert mine.delete(f"memberships/{membership.pk}").status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "tenants", {"name": "mine too"}),
        ("PATCH", "tenants/{acme}", {"weight": 10_000}),
        ("DELETE", "tenants/{acme}", None),
        ("POST", "users", {"username": "somebody"}),
        ("PATCH", "users/{bob}", {"is_superuser": True}),
        ("PATCH", "users/{alice}", {"is_staff": True}),
        ("POST", "memberships", {"tenant": "acme", "user": "bob", "role": "owner"}),
        ("POST", "keys", {"tenant": "acme", "name": "x", "may_manage": True}),
        ("POST", "keys", {"tenant": "acme", "name": "x", "may_use_cloud": True}),
        ("POST", "keys", {"tenant": "acme", "name": "x", "may_infer": False}),
        ("PATCH", "limits/{limit}", {"amount": 1_000_000}),
        ("DELETE", "limits/{limit}", None),
        ("POST", "limits", {"scope": "default", **LIMIT}),
        ("POST", "ip-rules", {"cidr": "0.0.0.0/0", "action": "deny"}),
        ("GET", "backends", None),
        ("GET", "aliases", None),
        ("POST", "backends", {"name": "x", "url": "http://127.0.0.1:1"}),
        ("POST", "prices", {"model": "x"}),
        ("PATCH", "default-models", {"chat_model": "x"}),
        ("GET", "/config/new-key", None),
        ("GET", "/config/reload", None),
    ],
)
def test_t3_owners_reach_no_further(method, path, body, alice, bob, acme, program):
    limit = make_limit(10, tenant=acme)
    path = path.format(acme=acme.pk, bob=bob.pk, alice=alice.pk, limit=limit.pk)
    before = [list(model.objects.order_by("pk").values()) for model in (Tenant, User, Membership, ApiKey, Limit)]
    assert error(program(alice).ask(method, path, body), 403)[0] == "not_permitted"
    assert before == [
        list(model.objects.order_by("pk").values()) for model in (Tenant, User, Membership, ApiKey, Limit)
    ]


def test_an_owners_limit_on_a_person_of_two_tenants_holds_in_theirs(alice, charlie, acme, other, program):
    Membership.objects.create(user=charlie, tenant=acme, role=Role.MEMBER)
    made = program(alice).post("limits", {"scope": "user", "user": "charlie", **LIMIT})
    assert made.json()["managed_by"] == "acme"
    foreign = {"scope": "user", "user": "charlie", "managed_by": "other", **LIMIT}
    assert error(program(alice).post("limits", foreign), 422) == ("unknown_tenant", "tenant")


def test_the_last_owner_stays(alice, acme, program):
    membership = Membership.objects.get(user=alice)
    mine = program(alice)
    assert error(mine.patch(f"memberships/{membership.pk}", {"role": "member"}), 403)[0] == "not_permitted"
    assert error(mine.delete(f"memberships/{membership.pk}"), 403)[0] == "not_permitted"


def test_what_somebody_above_decided_stays(root, alice, bob, acme, program):
    key = make_key(acme, user=bob).row
    program(root).patch(f"keys/{key.prefix}", {"enabled": False, "max_output_tokens": 100})
    mine = program(bob)
    assert error(mine.patch(f"keys/{key.prefix}", {"enabled": True}), 403)[0] == "not_permitted"
    assert error(mine.patch(f"keys/{key.prefix}", {"max_output_tokens": 200}), 403)[0] == "not_permitted"
    assert error(mine.patch(f"keys/{key.prefix}", {"max_output_tokens": None}), 403)[0] == "not_permitted"
    assert mine.patch(f"keys/{key.prefix}", {"max_output_tokens": 50}).json()["max_output_tokens"] == 50


def test_t3_rights_of_superusers_on_a_key_are_bounded_and_not_known_to_others(root, alice, bob, acme, program):
    made = program(root).post("keys", {"tenant": "acme", "user": "bob", "name": "x", "may_manage": True}).json()
    owner = program(alice)
    assert error(owner.patch(f"keys/{made['prefix']}", {"models_allowed": ["other"]}), 403)[0] == "not_permitted"
    assert error(owner.patch(f"keys/{made['prefix']}", {"expires_at": "2030-01-01T00:00:00Z"}), 403)[0]
    assert error(owner.post(f"keys/{made['prefix']}/rotate"), 403)[0] == "not_permitted"
    assert program(bob).post(f"keys/{made['prefix']}/rotate").status_code == 200


def test_staff_do_what_they_were_given_permissions_for(acme, other, program):
    staff = make_user("sam", is_staff=True)
    key = make_key(other).row
    mine = program(staff)
    assert mine.get("keys").json()["items"] == []
    staff.user_permissions.add(Permission.objects.get(codename="view_apikey"))
    assert [row["prefix"] for row in mine.get("keys").json()["items"]] == [key.prefix]
    assert error(mine.patch(f"keys/{key.prefix}", {"name": "x"}), 403)[0] == "not_permitted"
    assert error(mine.post(f"keys/{key.prefix}/revoke"), 403)[0] == "not_permitted"
    assert error(mine.post(f"keys/{key.prefix}/rotate"), 403)[0] == "not_permitted"
    staff.user_permissions.add(Permission.objects.get(codename="change_apikey"))
    assert mine.patch(f"keys/{key.prefix}", {"name": "x"}).status_code == 200
    assert error(mine.patch(f"keys/{key.prefix}", {"may_manage": True}), 403)[0] == "not_permitted"
    staff.user_permissions.add(*Permission.objects.filter(content_type__app_label="proxy"))
    assert mine.get("backends").status_code == 200
    new = {"name": "x", "url": "http://127.0.0.1:1"}
    assert error(mine.post("backends", new), 403)[0] == "not_permitted"
    staff.user_permissions.add(*Permission.objects.filter(codename__in=["view_user", "change_user", "add_user"]))
    root = make_user("boss", is_superuser=True, is_staff=True)
    assert error(mine.patch(f"users/{root.pk}", {"email": "mine@example.com"}), 403)[0] == "not_permitted"
    assert error(mine.patch(f"users/{staff.pk}", {"is_superuser": True}), 403)[0] == "not_permitted"
    assert error(mine.patch(f"users/{staff.pk}", {"is_active": False}), 403)[0] == "not_permitted"
    assert error(mine.post("users", {"username": "n", "is_staff": True}), 403)[0] == "not_permitted"
    assert mine.post("users", {"username": "n"}).status_code == 201


def test_a_token_of_one_tenant_reaches_no_other(root, acme, other, program):
    keys = {tenant.name: make_key(tenant).row for tenant in (acme, other)}
    make_limit(10)
    theirs = make_limit(10, tenant=other)
    mine = program(root, tenant=acme)
    assert [row["name"] for row in mine.get("tenants").json()["items"]] == ["acme"]
    assert [row["prefix"] for row in mine.get("keys").json()["items"]] == [keys["acme"].prefix]
    assert mine.get("limits").json()["items"] == []
    for path in (f"tenants/{other.pk}", f"keys/{keys['other'].prefix}", f"limits/{theirs.pk}"):
        assert error(mine.get(path), 404)[0] == "not_found"
    for method, path, body in (
        ("POST", "tenants", {"name": "x"}),
        ("POST", "users", {"username": "x"}),
        ("GET", "backends", None),
        ("GET", "aliases", None),
        ("GET", "default-models", None),
        ("POST", "limits", {"scope": "default", **LIMIT}),
        ("POST", "ip-rules", {"cidr": "10.0.0.0/8", "action": "deny"}),
        ("GET", "/config/new-key", None),
        ("GET", "/config/reload", None),
    ):
        assert error(mine.ask(method, path, body), 403)[0] == "not_permitted", path
    assert mine.post("keys", {"tenant": "acme", "name": "x"}).status_code == 201
    assert error(mine.post("keys", {"tenant": "other", "name": "x"}), 422) == ("unknown_tenant", "tenant")


def test_foreign_and_missing_ones_answer_alike(alice, charlie, acme, other, program):
    key = make_key(other).row
    theirs = {
        "tenants": other.pk,
        "users": charlie.pk,
        "memberships": charlie.memberships.get().pk,
        "limits": make_limit(10, tenant=other).pk,
        "ip-rules": make_ip_rule(tenant=other).pk,
        "keys": key.prefix,
    }
    mine = program(alice)
    for path, identity in theirs.items():
        missing = "zzzzzzzz" if path == "keys" else 2**62
        for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None)):
            if (path, method) in (("keys", "DELETE"), ("users", "DELETE")):
                continue
            said = [mine.ask(method, f"{path}/{which}", body) for which in (identity, missing)]
            assert {error(answer, 404) for answer in said} == {("not_found", "")}, (path, method)
            assert len({answer.json()["error"]["message"] for answer in said}) == 1
    for name in ("other", "nobody's"):
        assert error(mine.post("keys", {"tenant": name, "name": "x"}), 422) == ("unknown_tenant", "tenant")


def test_secrets_go_in_and_never_out(root, program):
    mine = program(root)
    body = {"name": "gpu1", "url": "http://127.0.0.1:11434", "credential_header": "Authorization"}
    made = mine.post("backends", {**body, "credential": "Bearer very-secret"})
    assert made.status_code == 201, made.content
    assert made.json()["has_credential"] is True
    seen = made.content + mine.get("backends").content + mine.get(f"backends/{made.json()['id']}").content
    assert b"very-secret" not in seen
    # Whoever may change the address must not have the credential sent to another server.
    moved = mine.patch(f"backends/{made.json()['id']}", {"url": "http://127.0.0.1:11500"})
    assert error(moved, 422) == ("invalid_value", "credential")


def test_what_the_environment_owns_is_not_renamed(root, program):
    row = make_backend("default", set_by_environment=True)
    assert error(program(root).patch(f"backends/{row.pk}", {"url": "http://127.0.0.1:1"}), 409)[0] == "conflict"
    assert program(root).patch(f"backends/{row.pk}", {"slots": 3}).json()["slots"] == 3


def test_deleting_archives_where_the_admin_archives(root, acme, program):
    backend = make_backend("gpu1")
    mine = program(root)
    for path, row in ((f"tenants/{acme.pk}", acme), (f"backends/{backend.pk}", backend)):
        assert mine.delete(path).status_code == 204
        row.refresh_from_db()
        assert row.archived_at is not None
        assert error(mine.get(path), 404)[0] == "not_found"
    assert error(mine.post("tenants", {"name": "acme"}), 409)[0] == "conflict"


def test_changes_are_audited_as_the_users_by_the_api(alice, acme, program):
    made = program(alice).post("keys", {"tenant": "acme", "name": "service"}).json()
    entry = AuditEntry.objects.filter(object_repr__contains=made["prefix"]).latest("id")
    assert (entry.actor, entry.via, entry.remote_addr) == (alice, "api", "127.0.0.1")
    assert made["key"] not in str(entry.changes)


@pytest.mark.parametrize(("by", "who", "holds"), [
    ("administrator", "bob", True), ("administrator", "alice", True), ("owner", "bob", True),
    ("owner", "alice", False), ("person", "bob", False),
])  # fmt: skip
@pytest.mark.parametrize(("field", "present", "looser", "tighter"), [
    ("models_allowed", ["llama3.2", "qwen3:*"], ["llama3.2", "mistral"], ["qwen3:8b"]),
    ("models_allowed", ["llama3.2", "qwen3:*"], [], ["llama3.2:latest"]),
    ("expires_at", "2099-06-15T10:30:00Z", "2099-06-15T10:30:01Z", "2099-06-15T10:29:59Z"),
    ("expires_at", "2099-06-15T10:30:00Z", None, "2099-06-15T10:30:00Z"),
    ("max_output_tokens", 500, None, 499),
])  # fmt: skip
def test_t6_what_somebody_above_set_on_a_key_is_tightened_and_not_lifted(
    acme, bob, request, program, by, who, holds, field, present, looser, tighter
):
    key = make_key(acme, user=bob, **{field: present}).row
    ApiKey.objects.update(**{f"{field}_by": by})
    theirs = program(request.getfixturevalue(who))
    refused = theirs.patch(f"keys/{key.prefix}", {field: looser})
    if not holds:
        assert refused.status_code == 200
        return
    assert error(refused, 403) == ("not_permitted", field)
    assert "ask them for" in refused.json()["error"]["message"]
    assert theirs.patch(f"keys/{key.prefix}", {"name": "renamed", field: tighter}).status_code == 200
    assert getattr(ApiKey.objects.get(), f"{field}_by") == by
    assert error(theirs.patch(f"keys/{key.prefix}", {field: present}), 403)[1] == field if tighter != present else True


def test_a_key_made_by_the_api_is_bounded_by_who_made_it(bob, alice, acme, program):
    body = {"tenant": "acme", "user": "bob", "name": "k", "models_allowed": ["qwen3:*"]}
    made = program(alice).post("keys", body).json()["prefix"]
    assert error(program(bob).patch(f"keys/{made}", {"models_allowed": []}), 403)[1] == "models_allowed"
    mine = program(bob).post("keys", body).json()["prefix"]
    assert program(bob).patch(f"keys/{mine}", {"models_allowed": []}).status_code == 200


def test_t3_a_rule_of_owners_does_not_stand_for_an_administrators(alice, root, acme, program):
    body = {"cidr": "198.51.100.0/24", "action": "deny", "tenant": "acme"}
    theirs = program(alice).post("ip-rules", body)
    assert (theirs.status_code, theirs.json()["by_owners"]) == (201, True)
    operators = program(root).post("ip-rules", body)
    assert (operators.status_code, operators.json()["by_owners"]) == (201, False)
    assert program(alice).delete(f"ip-rules/{theirs.json()['id']}").status_code == 204
    assert program(alice).delete(f"ip-rules/{operators.json()['id']}").status_code == 403
    # The other way round: theirs goes on to hold, whatever becomes of the administrator's.
    again = program(alice).post("ip-rules", body)
    assert (again.status_code, again.json()["by_owners"]) == (201, True)


def test_t1_a_token_of_one_tenant_limits_nobody_in_others(root, bob, other, acme, program):
    Membership.objects.create(tenant=other, user=bob, role=Role.MEMBER)
    theirs = program(root, tenant=acme)
    assert error(theirs.post("limits", {"scope": "user", "user": "bob", **LIMIT}), 403)[0] == "not_permitted"
    made = theirs.post("limits", {"scope": "user", "user": "bob", "managed_by": "acme", **LIMIT})
    assert (made.status_code, made.json()["managed_by"]) == (201, "acme")
    assert program(root).post("limits", {"scope": "user", "user": "bob", **LIMIT}).status_code == 201


def test_u8_a_price_in_force_is_not_changed_nor_deleted(root, program):
    mine = program(root)
    now = mine.post("prices", {"model": "a", "input": "1"}).json()
    later = mine.post("prices", {"model": "a", "input": "2", "valid_from": "2999-01-01T00:00:00Z"}).json()
    refused = mine.patch(f"prices/{now['id']}", {"input": "3"})
    assert error(refused, 409)[0] == "conflict"
    assert "POST" in refused.json()["error"]["message"]
    assert error(mine.delete(f"prices/{now['id']}"), 409)[0] == "conflict"
    assert mine.get(f"prices/{now['id']}").json() == now
    assert mine.patch(f"prices/{later['id']}", {"input": "3"}).json()["input"] == "3"
    assert mine.delete(f"prices/{later['id']}").status_code == 204


@pytest.mark.usefixtures("one_window")
def test_as_many_invitations_are_sent_as_by_the_page(alice, root, acme, program, settings, mailoutbox):
    settings.EMAIL_IS_SENT = True
    body = {"tenant": "acme", "email": "new@example.com"}
    sent = [program(alice).post("invitations", body) for _ in range(MAIL.attempts)]
    assert {answer.status_code for answer in sent} == {201}
    refused = program(alice).post("invitations", body)
    assert error(refused, 429)[0] == "too_many_requests"
    assert int(refused["Retry-After"]) > 0
    assert program(root).post("invitations", body).status_code == 201
    settings.EMAIL_IS_SENT = False
    assert program(alice).post("invitations", body).status_code == 201


def test_t3_which_answers_a_key_is_given_again_is_said_by_administrators(alice, bob, root, acme, program):
    """As on the pages: a tenant whose policy is off is not to be overridden by those in it."""
    key = make_key(acme, user=bob).row
    body = {"tenant": "acme", "user": "bob", "name": "k", "cache_policy": "all"}
    for who in (bob, alice):
        assert error(program(who).patch(f"keys/{key.prefix}", {"cache_policy": "all"}), 403)[0] == "not_permitted"
        assert error(program(who).post("keys", body), 403)[0] == "not_permitted"
        assert program(who).patch(f"keys/{key.prefix}", {"cache_policy": ""}).status_code == 200
    assert program(root).patch(f"keys/{key.prefix}", {"cache_policy": "all"}).json()["cache_policy"] == "all"
