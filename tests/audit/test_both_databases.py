"""The audit on SQLite and PostgreSQL, with real commits, several at once, and as the server runs it."""

import threading

from django.db import connection
from django.test import AsyncClient, Client

from tenants.acting import Via, acting
from tenants.auditing import change
from tenants.models import ApiKey, AuditEntry, Limit, Membership, Role, Tenant
from tests.conftest import default_connection
from tests.factories import make_admin, make_ip_rule, make_key, make_limit, make_tenant, make_user

AT_ONCE = 4


def test_changes_are_noted_found_and_exported(database):
    tenant = make_tenant("acme")
    alice = make_user("alice", tenant=tenant, role=Role.OWNER)
    with acting(alice, "2001:db8::7", Via.PAGES, "request-1"):
        key = make_key(tenant, "ci", user=alice).row
        make_ip_rule("10.0.0.0/8", key=key)
        for number in range(3):
            make_limit(number + 1, key=key)
        assert change(Limit.objects.filter(key__tenant=tenant).select_related("key"), mode="shadow") == 3
        assert ApiKey.objects.filter(tenant=tenant).revoke() == 1
        tenant.archive()
        Tenant.objects.archive()
    client = Client()
    client.force_login(make_admin("root"))
    for query, count in (("", 10), ("q=2001:db8::7", 10), ("q=request-1", 10), ("q=ci", 8), ("action=changed", 5)):
        answer = client.get(f"/admin/tenants/auditentry/?actor=alice&{query}")
        assert len(answer.context["cl"].result_list) == count, query
    change(Tenant.objects.all(), archived_at=None)
    client.force_login(alice)
    assert client.get("/changes/?kind=tenants.Limit&action=changed").context["changes"]
    assert b"mode" in b"".join(client.get("/changes/export/").streaming_content)


def test_of_changes_at_the_same_moment_each_says_what_was_before_it(postgres_url, transactional_db):
    """Rows are locked before what was there is read: the entries make one chain."""
    with default_connection(postgres_url):
        limit = make_limit(1)
    started = threading.Barrier(AT_ONCE)

    def raise_it(number):
        with default_connection(postgres_url):
            started.wait(timeout=60)
            for step in range(5):
                row = Limit.objects.get(pk=limit.pk)
                row.amount = 100 * number + step + 10
                row.save(update_fields=["amount"])
                change(Limit.objects.filter(pk=limit.pk), amount=100 * number + step + 50)
            connection.close()

    threads = [threading.Thread(target=raise_it, args=(number,)) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    with default_connection(postgres_url):
        steps = [entry.changes["amount"] for entry in AuditEntry.objects.filter(action=1).order_by("pk")]
        last = Limit.objects.get(pk=limit.pk).amount
    assert len(steps) == AT_ONCE * 5 * 2
    assert last in {after for _, after in steps}
    # Numbers of entries are given out before the commit, so that their order says little: each value was made by one
    # change and undone by the next.
    made = sorted(after for _, after in steps)
    undone = sorted(before for before, _ in steps)
    assert sorted([1, *made]) == sorted([*undone, last])


def test_of_two_who_revoke_at_once_one_is_noted(postgres_url, transactional_db):
    with default_connection(postgres_url):
        keys = [make_key(make_tenant()).row for _ in range(20)]
    counts, started = [], threading.Barrier(2)

    def revoke():
        with default_connection(postgres_url):
            started.wait(timeout=60)
            counts.append(ApiKey.objects.order_by("?").revoke())
            connection.close()

    threads = [threading.Thread(target=revoke) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    with default_connection(postgres_url):
        noted = AuditEntry.objects.filter(changes__has_key="revoked_at", action=1).count()
    assert sum(counts) == noted == len(keys)


async def test_under_asgi_exports_are_streamed_and_changes_noted(transactional_db):
    from asgiref.sync import sync_to_async

    root = await sync_to_async(make_admin)("root")
    tenant = await sync_to_async(make_tenant)("acme")
    await sync_to_async(Membership.objects.create)(tenant=tenant, user=root, role=Role.OWNER)
    key = (await sync_to_async(make_key)(tenant, "ci")).row
    client = AsyncClient()
    await client.aforce_login(root)
    answer = await client.post(f"/keys/{key.prefix}/switch/", {"to": "off"})
    assert answer.status_code == 302
    entry = await AuditEntry.objects.select_related("actor").afirst()
    assert (entry.actor, entry.remote_addr, entry.via) == (root, "127.0.0.1", "pages")
    assert entry.cid == answer["x-request-id"]
    for page in ("/admin/tenants/auditentry/export/", "/changes/export/"):
        answer = await client.get(page)
        assert answer.is_async
        text = b"".join([part async for part in answer]).decode()
        assert text.startswith('"entry","time","actor"')
        assert f'"ci (ogw_{key.prefix}_…)"' in text
