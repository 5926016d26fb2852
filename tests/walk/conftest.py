"""One world for a module: two tenants with a row in every table, and everybody who may come by."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.db import connection, models, transaction
from django.test import Client

from tenants.models import Role, ShownOnce, User
from tests.factories import make_admin, make_tenant, make_user
from tests.walk.pages import Page, pages, text_of
from tests.walk.rows import Rows, belongs_to_a_tenant

OURS, THEIRS = "datum-of-ours", "datum-of-theirs"
# Written by whoever looks: who is signed in, and what is taken away as it is shown.
NOT_COMPARED = {Session._meta.db_table, ShownOnce._meta.db_table}


def of_one_tenant(text: str) -> Rows:
    """A text of its own in each tenant's rows; in those that are everybody's, one that says nothing."""
    common = f"common-{len(text)}"
    return Rows(lambda column: text if belongs_to_a_tenant(column.model) else common).make_all()


def staff(name: str, *permissions: str) -> User:
    user = make_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


@contextmanager
def rolled_back() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[SimpleNamespace]:
    """`theirs`: the rows of a tenant; `ours`: those of another, whose people and some more are in `people`."""
    from django.conf import settings
    from django.test import override_settings

    hasher = "django.contrib.auth.hashers.MD5PasswordHasher"
    with (
        django_db_blocker.unblock(), override_settings(PASSWORD_HASHERS=[hasher], RATELIMIT_ENABLE=False), rolled_back()
    ):  # fmt: skip
        assert settings.RATELIMIT_ENABLE is False
        theirs, ours = of_one_tenant(THEIRS), of_one_tenant(OURS)
        tenant = ours.first(models_of("tenants.Tenant"))
        owner, member = ours[User]
        every = Permission.objects.values_list("codename", flat=True)
        people = {
            "stranger": None,
            "loner": make_user("loner"),
            "viewer": make_user("viewer", tenant=tenant, role=Role.VIEWER),
            "member": member,
            "owner": owner,
            "clerk": staff("clerk"),
            "deputy": staff("deputy", *every),
            "root": make_admin("root"),
        }
        yield SimpleNamespace(ours=ours, theirs=theirs, people=people, another=make_tenant("a third tenant"))


def models_of(label: str) -> type[models.Model]:
    from django.apps import apps

    return apps.get_model(label)


def signed_in(user: User | None, **options: Any) -> Client:
    client = Client(**options)
    if user is not None:
        client.force_login(user)
    return client


# The database, before and after.


def dump() -> dict[str, list[str]]:
    """All rows of all tables but NOT_COMPARED."""
    found = {}
    with connection.cursor() as cursor:
        for table in sorted(set(connection.introspection.table_names(cursor)) - NOT_COMPARED):
            cursor.execute(f'SELECT * FROM "{table}"')
            found[table] = sorted(map(repr, cursor.fetchall()))
    return found


@contextmanager
def noting_writes() -> Iterator[list[str]]:
    """Statements that change a table other than NOT_COMPARED."""
    writes: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        verb = sql.split(None, 1)[0].upper()
        if verb in ("INSERT", "UPDATE", "DELETE", "REPLACE") and not any(f'"{name}"' in sql for name in NOT_COMPARED):
            writes.append(sql[:150])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield writes


# Looking at everything.


@dataclass(frozen=True)
class Visit:
    page: Page
    path: str
    of: str  # whose rows are in the path: ours, theirs, nobody
    status: int
    text: str = field(repr=False)
    writes: tuple[str, ...] = ()


def visit(client: Client, page: Page, path: str, of: str) -> Visit:
    with noting_writes() as writes:
        answer = client.get(path)
    client.cookies.pop("messages", None)  # of this page, and not told on the next one
    return Visit(page, path, of, answer.status_code, text_of(answer), tuple(writes))


def look_at_everything(world: SimpleNamespace, who: str) -> list[Visit]:
    client = signed_in(world.people[who])
    found = []
    for page in pages():
        is_admins = page.template.startswith("admin/")
        enough = 1 if is_admins else None
        if is_admins and who in ("loner", "viewer", "member") and page.name != "admin:index":
            continue  # they are no staff either, as the owner
        found += [visit(client, page, path, "theirs") for path in page.paths(world.theirs)[:enough]]
        if page.parameters:
            found.append(visit(client, page, page.missing(world.theirs), "nobody"))
            if not is_admins:
                found += [visit(client, page, path, "ours") for path in page.paths(world.ours)]
    return found


@pytest.fixture(scope="module")
def visits(world: SimpleNamespace) -> Any:
    """By who, each walk made once."""
    made: dict[str, list[Visit]] = {}

    def of(who: str) -> list[Visit]:
        if who not in made:
            made[who] = look_at_everything(world, who)
        return made[who]

    return of
