"""Forms that nobody has made, sent to every URL there is (threats T1, T3, T6, T7)."""

import pytest
from django.contrib.auth.models import Group, Permission
from django.db import models
from django.test import Client
from django.utils.http import urlencode

from proxy.models import Backend
from tenants.models import ApiKey, Membership, Tenant, User
from tests.walk.conftest import dump, noting_writes, rolled_back, signed_in
from tests.walk.pages import keys_of, pages
from tests.walk.rows import belongs_to_a_tenant

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("who", ["owner", "root"])
def test_t7_nothing_is_taken_without_the_token_of_the_form(world, who):
    client = signed_in(world.people[who], enforce_csrf_checks=True)
    for page in pages():
        path = page.paths(world.ours)[0]
        takes_no_cookie = getattr(page.view, "csrf_exempt", False)
        for method in ("post", "put", "patch", "delete") if takes_no_cookie else ("post",):
            with noting_writes() as writes:
                answer = getattr(client, method)(path)
            if takes_no_cookie:
                is_told_to_all = answer.status_code == 200 and answer.content == Client().get(path).content
                assert answer.status_code in (401, 403, 404, 405) or is_told_to_all, f"{method} {path}"
            else:
                assert answer.status_code == 403, f"{method} {path} answers {answer.status_code}"
                assert "form was too old" in answer.content.decode(), path
            assert writes == [], f"{method} {path}"


def everything(rows, world):
    """A value for every name that a form might have, of one tenant's rows."""
    tenant, user, key = rows[Tenant][0], rows[User][0], rows[ApiKey][1]
    fields = {}
    for model, made in rows.made.items():
        for column in model._meta.concrete_fields:
            if isinstance(column, models.BooleanField):
                fields.setdefault(column.name, "on")
            elif isinstance(column, models.ForeignKey):
                fields.setdefault(column.name, getattr(made[0], column.attname) or "")
            elif column.choices:
                fields.setdefault(column.name, column.choices[0][0])
            else:
                fields.setdefault(column.name, "1")
    return fields | {
        "tenant": tenant.pk, "user": user.pk, "key": key.pk, "acts_as": key.pk, "id": key.pk, "pk": key.pk,
        "user_id": user.pk, "tenant_id": tenant.pk, "api_key": key.pk, "created_by": user.pk,
        "name": "forged", "username": "forged", "email": "forged@example.org", "role": "owner", "whose": "service",
        "prefix": "forged12", "digest": "00", "models": "*", "models_allowed": "[]", "expires": "never", "overlap": "0",
        "to": "on", "scope": "tenant", "metric": "requests", "window": "day", "window_seconds": "", "amount": "1",
        "cidr": "10.0.0.0/8", "action": "allow", "url": "http://127.0.0.1:9", "transport": "wire", "slots": "1",
        "load_options": "{}", "expires_at": "", "expires_at_0": "", "expires_at_1": "", "valid_from_0": "2026-01-01",
        "valid_from_1": "00:00", "proxy_url": "", "ca_certificates": "", "client_certificate": "", "keep_alive": "1m",
        "max_output_tokens": "9", "password": "a new long one!", "password1": "a new long one!",
        "password2": "a new long one!", "usable_password": "true", "oldpassword": "guess", "post": "yes",
        "confirmed": "yes", "groups": [group.pk for group in Group.objects.all()],
        "user_permissions": [*Permission.objects.values_list("pk", flat=True)],
        "permissions": [*Permission.objects.values_list("pk", flat=True)],
        "memberships-TOTAL_FORMS": "1", "memberships-INITIAL_FORMS": "0", "memberships-0-user": user.pk,
        "memberships-0-tenant": tenant.pk, "memberships-0-role": "owner",
    }  # fmt: skip


# What an action of a list of the admin wants besides.
ACTIONS = (
    "delete_selected", "revoke", "enable", "disable", "switch_on", "switch_off", "restore", "drain", "take_back",
    "withdraw",
)  # fmt: skip


def of_their_tenant(world):
    """Each row of the other tenant, and how many there are that belong to it."""
    found = {}
    for model, made in world.theirs.made.items():
        if belongs_to_a_tenant(model):
            rows = model._default_manager.filter(pk__in=[row.pk for row in made])
            found[model._meta.label] = sorted(map(repr, rows.values_list()))
            for column in model._meta.concrete_fields:
                if isinstance(column, models.ForeignKey) and column.remote_field.model in (Tenant, User, ApiKey):
                    of_theirs = [row.pk for row in world.theirs[column.remote_field.model]]
                    count = model._default_manager.filter(**{f"{column.name}__in": of_theirs}).count()
                    found[f"{model._meta.label} by {column.name}"] = count
    return found


def rights(world, but=None):
    """All that makes somebody mightier than an owner: of everybody's accounts, keys, groups and backends."""
    users = User.objects.values_list("pk", "is_staff", "is_superuser").order_by("pk")
    mighty = User.objects.filter(is_staff=True).exclude(pk=getattr(but, "pk", None))
    return {
        "users": [row for row in users if row[1] or row[2]],
        "passwords": [*mighty.values_list("pk", "username", "email", "password", "is_active").order_by("pk")],
        "permissions": [*User.user_permissions.through.objects.values_list("user_id", "permission_id").order_by("pk")],
        "in groups": [*User.groups.through.objects.values_list("user_id", "group_id").order_by("pk")],
        "groups": [*Group.permissions.through.objects.values_list("group_id", "permission_id").order_by("pk")],
        "keys": [*ApiKey.objects.filter(models.Q(may_manage=True) | models.Q(may_use_cloud=True)).values_list()],
        "backends": [*Backend.objects.values_list("pk", "url", "credential_header", "credential_encrypted")],
    }  # fmt: skip


def send(client, user, path, fields):
    """What was written, after which all is as before."""
    if user is not None and "_auth_user_id" not in client.session:  # the last form has signed them out
        client.force_login(user)
    with noting_writes() as writes:
        # As browsers send it: with hundreds of fields, multipart would take most of the time.
        answer = client.post(path, urlencode(fields, doseq=True), content_type="application/x-www-form-urlencoded")
    assert answer.status_code < 500
    return answer, writes


@pytest.mark.parametrize("who", ["stranger", "loner", "viewer", "member", "owner", "clerk"])
def test_t6_no_form_reaches_into_another_tenant_or_raises_a_right(world, who):
    user = world.people[who]
    client = signed_in(user)
    sent = written = 0
    before = of_their_tenant(world), rights(world, but=user)
    for page in pages():
        if page.name == "invitation":  # whoever has the link may join
            continue
        is_admins = page.template.startswith("admin/")
        if is_admins and who not in ("owner", "clerk"):  # one of those who are no staff
            continue
        paths = dict.fromkeys((page.paths(world.theirs)[0], page.paths(world.ours)[0]))
        once = is_admins or who in ("stranger", "loner", "viewer")
        for path in list(paths)[: 1 if once else 2]:
            for rows in (world.ours,) if once else (world.theirs, world.ours):
                with rolled_back():
                    _, writes = send(client, user, path, everything(rows, world))
                    sent += 1
                    if writes:
                        written += 1
                        after = of_their_tenant(world), rights(world, but=user)
                        assert after == before, f"{who} changes it by {path}"
    assert sent > 50
    if who == "owner":  # as a test of the test: forms for what is theirs do something
        assert written >= 5


def test_t3_staff_with_every_permission_are_still_not_superusers(world):
    user = world.people["deputy"]
    client = signed_in(user)
    before, written = rights(world, but=user), 0
    for page in pages():
        if not page.template.startswith("admin/") or not page.name:
            continue
        for rows in (world.theirs, world.ours):
            forms = [everything(rows, world)]
            if page.name.endswith("_changelist"):
                selected = {"_selected_action": keys_of(rows, page.model), "post": "yes", "confirmed": "yes"}
                forms = [{"action": action, **selected} for action in ACTIONS if rows is world.ours]
            for fields in forms:
                with rolled_back():
                    path = page.paths(rows)[0]
                    _, writes = send(client, user, path, fields)
                    if writes:
                        written += 1
                        assert rights(world, but=user) == before, f"by {path}"
    assert written > 10


def test_t3_staff_do_not_take_over_an_account_of_staff(world):
    """By its password, its second factor, its addresses, or by signing in at a provider as somebody else."""
    root, deputy = world.people["root"], world.people["deputy"]
    client = signed_in(deputy)
    for path in (
        f"/admin/tenants/user/{root.pk}/change/", f"/admin/tenants/user/{root.pk}/password/",
        f"/admin/tenants/user/{root.pk}/delete/", "/admin/account/emailaddress/add/",
        "/admin/socialaccount/socialaccount/add/", "/admin/mfa/authenticator/add/", "/admin/auth/group/add/",
    ):  # fmt: skip
        with rolled_back():
            before = dump()
            fields = {**everything(world.ours, world), "user": root.pk}
            assert client.post(path, fields).status_code == 403, path
            assert dump() == before, path


def test_t6_a_membership_is_not_taken_along_to_another_tenant(world):
    """The page of one's own person, with another tenant in the form."""
    client = signed_in(world.people["owner"])
    mine = world.ours[Membership][1]
    with rolled_back():
        fields = {"role": "viewer", "confirmed": "yes", "tenant": world.theirs[Tenant][0].pk, "user": 1}
        client.post(f"/people/{mine.pk}/role/", fields)
        mine.refresh_from_db()
        assert (mine.tenant, mine.role) == (world.ours[Tenant][0], "viewer")


def test_without_its_check_a_form_would_be_taken(world):
    """What the first test would see if the middleware were not there: the same form does something."""
    client = Client()
    client.force_login(world.people["owner"])
    with rolled_back(), noting_writes() as writes:
        assert client.post("/keys/new/", {"name": "k", "whose": "mine"}).status_code == 302
    assert writes
