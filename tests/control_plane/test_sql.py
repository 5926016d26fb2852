"""Row A13: SQL through filters and parts of addresses; and no SQL of ours is built from what somebody sent."""

import ast
import itertools
import re
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from django.contrib import admin
from django.db import connection
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from tests.factories import make_key, make_limit, make_tenant, make_usage, make_user

ROOT = Path(__file__).parents[2]
OURS = ("gateway_site", "proxy", "tenants", "usage")

# What a reviewer has looked at: (file, function) of statements that are put together, none of what anybody sent.
PUT_TOGETHER = {
    ("proxy/triggers.py", "install"): "names of our tables",
    ("proxy/ledger/store.py", "insert"): "names of columns, question marks",
    ("proxy/ledger/store.py", "_known"): "question marks",
    ("proxy/ledger/store.py", "add"): "names of columns, question marks",
}
RUNS_SQL = ("execute", "executemany", "executescript", "RunSQL")
TAKES_SQL = ("raw", "extra", "RawSQL")


def calls_of(tree, where=""):
    """(name of the called, the call, function that it stands in), whatever is called."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else where
        if isinstance(node, ast.Call):
            called = node.func
            yield getattr(called, "attr", None) or getattr(called, "id", ""), node, inside
        yield from calls_of(node, inside)


def is_fixed(node):
    """Whether a text stands in the source: written there, or a constant of the module."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id.strip("_").isupper()
    if isinstance(node, ast.IfExp):
        return is_fixed(node.body) and is_fixed(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return all(is_fixed(part) for part in node.values)
    return isinstance(node, ast.FormattedValue) and is_fixed(node.value)


def statements(sources):
    """(file, function, line) of each statement that is not fixed, and of each way around the ORM's parameters."""
    for path, source in sources:
        for called, call, function in calls_of(ast.parse(source)):
            if called in TAKES_SQL and not path.endswith("/body.py"):
                yield path, called, call.lineno
            if called in RUNS_SQL and call.args and not is_fixed(call.args[0]):
                yield path, function, call.lineno


def sources():
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            if "migrations" not in path.parts:
                yield str(path.relative_to(ROOT)), path.read_text()


def test_a13_no_sql_is_built_from_text():
    found = [(path, function, line) for path, function, line in statements(sources())]
    unknown = [f"{path}:{line} in {function}" for path, function, line in found if (path, function) not in PUT_TOGETHER]
    assert unknown == [], "give values as parameters; what is put together of names of ours is listed above"
    assert {(path, function) for path, function, _ in found} == PUT_TOGETHER.keys(), "no longer there"


@pytest.mark.parametrize(
    "line",
    [
        'cursor.execute(f"SELECT 1 WHERE name = {name}")',
        'cursor.execute("SELECT 1 WHERE name = %s" % name)',
        'cursor.execute("SELECT 1 WHERE name = " + name)',
        'cursor.executemany("SELECT {}".format(name), rows)',
        "cursor.execute(statement)",
        'Key.objects.raw("SELECT 1")',
        'Key.objects.extra(where=["a = 1"])',
        'Key.objects.annotate(n=RawSQL("1", ()))',
    ],
)
def test_a13_the_rule_finds_what_it_looks_for(line):
    assert list(statements([("x.py", f"def function():\n    {line}")]))
    assert not list(statements([("x.py", 'def function():\n    cursor.execute("SELECT 1 WHERE a = %s", [name])')]))


# Every page, with every filter

HOSTILE = (
    "' OR '1'='1",
    "1; DROP TABLE tenants_apikey; --",
    '") UNION SELECT digest, 1 FROM tenants_apikey --',
    "1' AND 1=(SELECT COUNT(*) FROM sqlite_master WHERE SLEEP(9)) AND '1'='1",
    "%s %(a)s {0} \\' \\",
    "\x00' || pg_sleep(9) || '",
)
# Of the forms of the pages, and whatever else a page may look at.
NAMES = (
    "model", "key", "user", "tenant", "backend", "end_user", "id", "client_id", "outcome", "status", "since", "until",
    "slower_ms", "page", "of", "first", "last", "by", "zone", "actor", "action", "what", "before", "address", "q",
    "search", "next", "revoked", "format", "limit", "after", "prefix",
)  # fmt: skip
IN_ADMIN = ("q", "o", "p", "e", "all", "_facets", "_popup", "_to_field")
# Ends the session, is no page, or is fuzzed on its own.
LEFT_OUT = ("logout", "/metrics", "/livez", "/readyz", "static/", "manage/api")


def patterns(resolver, prefix=""):
    for entry in resolver.url_patterns:
        route = prefix + str(entry.pattern).removeprefix("^").removesuffix("$").removesuffix("\\Z")
        if isinstance(entry, URLResolver):
            yield from patterns(entry, route)
        elif isinstance(entry, URLPattern):
            yield "/" + route


def pages():
    """Addresses of all pages but the admin's; parts of them that are given are left as %s."""
    found = {re.sub(r"<(?!int:|uuid:)[^>]+>", "%s", route) for route in patterns(get_resolver())}
    return sorted(
        route
        for route in found
        if not route.startswith("/admin/")
        and not re.search(r"[<(?]", route)
        and not any(word in route for word in LEFT_OUT)
    )


def lists_of_admin():
    """(address, names of its filters)"""
    for model, registered in admin.site._registry.items():
        names = [
            item if isinstance(item, str) else getattr(item, "parameter_name", None) or item[0]
            for item in registered.list_filter
        ]
        looked_up = [f"{name}{how}" for name in names for how in ("", "__exact", "__id__exact")]
        if registered.date_hierarchy:
            looked_up += [f"{registered.date_hierarchy}__{part}" for part in ("year", "month", "day")]
        yield reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"), (*IN_ADMIN, *looked_up)


def picture():
    """What stands in each table, as far as it must not change."""
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
        counts = {}
        for table in tables:
            if not table.startswith(("django_session", "audit", "tenants_audit")):
                cursor.execute(f"SELECT COUNT(*) FROM {connection.ops.quote_name(table)}")
                counts[table] = cursor.fetchone()[0]
    return counts


@pytest.fixture
def rows(database, client):
    """Some of everything, and a superuser who owns a tenant, whose pages they are on."""
    tenant = make_tenant("acme")
    user = make_user("root", tenant=tenant, role="owner", is_staff=True, is_superuser=True)
    key = make_key(tenant, user=user).row
    make_usage(key)
    make_limit(5, tenant=tenant)
    client.force_login(user)
    return database


def queries(names, values):
    """All of them at once, and each alone."""
    for value in values:
        yield urlencode(dict.fromkeys(names, value))
    for name in names:
        yield urlencode({name: values[0]})


def look(client, address):
    answer = client.get(address, HTTP_USER_AGENT=HOSTILE[0], HTTP_X_REQUEST_ID=HOSTILE[1])
    if answer.streaming:
        b"".join(answer.streaming_content)
    return answer.status_code


def test_a13_no_filter_of_a_page_reaches_the_database_as_sql(rows, client):
    before, statuses = picture(), {}
    values = HOSTILE if rows == "sqlite" else HOSTILE[::-4]
    filtered = [page for page in pages() if "%s" not in page]
    assert len(filtered) > 20
    for page in filtered:
        names = NAMES if re.search("usage|requests|changes|explain|keys/$", page) else ()
        for query in queries(names, values) if names else [urlencode(dict.fromkeys(NAMES, value)) for value in values]:
            statuses[f"{page}?{query}"] = look(client, f"{page}?{query}")
    for page, value in itertools.product([page for page in pages() if "%s" in page], values):
        address = page.replace("%s", quote(value, safe=""))
        statuses[address] = look(client, address)
    failed = {address: status for address, status in statuses.items() if status >= 500}
    assert {address for address, status in failed.items() if (address[:6], status) != ("/test?", 503)} == set()
    assert picture() == before


def test_a13_no_filter_of_the_admin_reaches_the_database_as_sql(rows, client):
    before, statuses = picture(), {}
    values = HOSTILE[:3] if rows == "sqlite" else HOSTILE[-1:]
    for page, names in lists_of_admin():
        for query in queries(names, values):
            statuses[f"{page}?{query}"] = look(client, f"{page}?{query}")
        for value in values:
            address = f"{page}{quote(value, safe='')}/change/"
            statuses[address] = look(client, address)
    assert {address: status for address, status in statuses.items() if status >= 500} == {}
    assert picture() == before
