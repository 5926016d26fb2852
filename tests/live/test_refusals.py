"""What is refused is counted with its reason, where the owner of the key and an administrator see it (threat A3)."""

import asyncio
import time
from datetime import timedelta

import psutil
import pytest
from django.utils import timezone

from proxy.models import RefusalCount, WorkerReport
from tenants.models import ApiKey, IPRule, Limit, Tenant

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}]}


async def until(condition, seconds=40):
    began = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.1)
    print(f"seen after {time.monotonic() - began:.1f} s")
    return found


async def test_a3_the_owner_sees_the_real_cause(make_gateway, fake):
    gateway = make_gateway()
    gateway.make_backend(fake.url)
    gateway.make_key("of whoever waits for the start")  # a refused one would count
    keys = {name: gateway.make_key(name) for name in ("revoked", "off", "expired", "elsewhere", "limited", "narrow")}
    gateway.rows(ApiKey).filter(name="revoked").update(revoked_at=timezone.now())
    gateway.rows(ApiKey).filter(name="off").update(enabled=False)
    long_ago = timezone.now() - timedelta(days=2)
    gateway.rows(ApiKey).filter(name="expired").update(created_at=long_ago, expires_at=long_ago + timedelta(days=1))
    gateway.rows(ApiKey).filter(name="narrow").update(may_infer=False)
    gateway.rows(IPRule).create(cidr="203.0.113.0/24", action="allow", key=keys["elsewhere"][0])
    gateway.rows(Limit).create(scope="key", key=keys["limited"][0], metric="requests", window="day", amount=0)
    gateway.rows(Tenant).create(name="switched off", enabled=False)
    keys["of nobody"] = gateway.make_key("of nobody", tenant="switched off")
    await asyncio.to_thread(gateway.start)
    expected = {
        "revoked": "key_revoked", "off": "key_disabled", "expired": "key_expired", "elsewhere": "key_ip_denied",
        "limited": "limit_requests", "narrow": "endpoint_not_allowed", "of nobody": "tenant_disabled",
    }  # fmt: skip
    texts = set()
    for _, clear_text in keys.values():
        async with gateway.client(clear_text) as client:
            for _ in range(2):
                answer = await client.post("/api/chat", json=CHAT)
                assert answer.status_code in (401, 403, 429)
                if answer.status_code == 401:
                    texts.add(answer.text.replace(answer.headers["x-request-id"], "…"))
    assert len(texts) == 1  # the caller learns nothing of it
    async with gateway.client("ogw_nobody") as client:
        await client.post("/api/chat", json=CHAT)
    async with gateway.client() as client:
        await client.post("/api/chat", json=CHAT)

    def counted():
        found = {}
        for row in gateway.rows(RefusalCount):
            found[row.key_prefix, row.code] = found.get((row.key_prefix, row.code), 0) + row.count
        return found if sum(found.values()) == 2 * len(keys) + 2 else None

    assert await until(counted) == {
        **{(keys[name][0].prefix, code): 2 for name, code in expected.items()},
        ("", "unknown_key"): 1,
        ("", "missing_key"): 1,
    }


@pytest.mark.parametrize("workers", [1, 2])
async def test_each_worker_says_that_it_runs_and_with_which_rules(make_gateway, fake, workers):
    gateway = make_gateway(workers=workers)
    gateway.make_backend(fake.url)
    await asyncio.to_thread(gateway.start)

    def reported():
        found = list(gateway.rows(WorkerReport).running())
        alike = len({row.revision for row in found}) == 1
        return found if len(found) == workers and alike and all(row.listens for row in found) else None

    before = await until(reported)
    assert {row.pid for row in before} <= {gateway.process.pid, *gateway.worker_pids()}
    assert all(row.listens == [f"127.0.0.1:{gateway.port}"] for row in before)
    # Several have loaded together what they do not change.
    used = [psutil.Process(row.pid).memory_full_info() for row in before]
    assert workers == 1 or all(memory.uss < 0.6 * memory.rss for memory in used)
    gateway.tenant("a change")

    def caught_up():
        found = reported()
        return found if found and found[0].revision > before[0].revision else None

    after = await until(caught_up)
    assert all(row.rules_of > before[0].rules_of for row in after)
    assert gateway.stop() == 0
    assert not gateway.rows(WorkerReport).exists()
