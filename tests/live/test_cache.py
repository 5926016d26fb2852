"""The cache on a real gateway with two workers and a Redis: what clients see, what is recorded, purges and rules that
act at once. What needs no servers is in tests/cache."""

import asyncio
import json
from collections import Counter

import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from proxy.models import CachePurge, CacheSettings, CacheUse, WorkerReport
from tenants.models import Tenant
from tests.live.seen import calls
from tests.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "llama3.2"
SECONDS = 20


@pytest.fixture(scope="module")
def redis():
    server = RedisServer().start()
    yield server
    server.remove()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend():
    async with FakeOllama(models=[MODEL, "nomic-embed-text"], slots=200) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, backend, redis):
    made = make_shared_gateway(workers=2, REDIS_URL=redis.url)
    made.make_backend(backend.url, slots=200)
    made.keys = {
        name: made.make_key(name, tenant=tenant, cache_policy=policy)[1]
        for name, tenant, policy in (
            ("one", "acme", "all"),
            ("other", "other", "all"),
            ("third", "third", "all"),
            ("plain", "acme", ""),
        )
    }
    await asyncio.to_thread(made.start)
    return await made.until_it_lists(MODEL, key=made.keys["one"])


def chat(text, **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def kept_in(redis):
    with redis.client() as client:
        return sum(1 for _ in client.scan_iter("ogw:cache:*"))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", chat("native")),
        ("/v1/chat/completions", chat("openai", stream=True)),
        ("/v1/messages", chat("anthropic", stream=True, max_tokens=50)),
    ],
)
async def test_the_same_stream_twice_is_generated_once_and_recorded_twice(gateway, backend, redis, path, body):
    before, kept_before = len(calls(backend)), kept_in(redis)
    async with gateway.client(gateway.keys["one"]) as client:
        first = await client.post(path, json=body)
        # Whichever worker has the next call: what the other has generated comes by Redis.
        async with asyncio.timeout(SECONDS):
            while kept_in(redis) == kept_before:
                await asyncio.sleep(0.01)
        again = await client.post(path, json=body)
        whole = await client.post(path, json={**body, "stream": False})
    assert len(calls(backend)) == before + 1
    assert [answer.headers["x-cache"] for answer in (first, again, whole)] == ["MISS", "HIT", "HIT"]
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert int(again.headers["age"]) >= 0
    assert "age" not in first.headers
    assert again.headers["cache-control"] == "no-store"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert "x-gateway-backend" not in again.headers
    assert json.loads(whole.content)
    made = await gateway.record(first.headers["x-request-id"])
    kept = await gateway.record(again.headers["x-request-id"])
    assert (made.outcome, kept.outcome) == ("ok", "cached")
    assert (kept.prompt_tokens, kept.completion_tokens) == (made.prompt_tokens, made.completion_tokens)
    assert (kept.backend, kept.attempts, kept.decode_us) == ("", 0, 0)


async def test_t5_two_tenants_with_the_same_body(gateway):
    async with gateway.client(gateway.keys["one"]) as one, gateway.client(gateway.keys["other"]) as other:
        await one.post("/api/chat", json=chat("secret of one"))
        assert (await other.post("/api/chat", json=chat("secret of one"))).headers["x-cache"] == "MISS"
        both = gateway.rows(Tenant).filter(name__in=("acme", "other"))
        both.update(cache_scope="shared")
        try:
            async with asyncio.timeout(SECONDS):
                number = 0
                while True:
                    number += 1
                    await one.post("/api/chat", json=chat(f"no secret {number}"))
                    await asyncio.sleep(0.1)
                    answer = await other.post("/api/chat", json=chat(f"no secret {number}"))
                    if answer.headers["x-cache"] == "HIT":
                        break
        finally:
            both.update(cache_scope="tenant")


async def test_a_hundred_identical_streams_are_one_call_a_worker(gateway, backend):
    backend.faults(path="/api/chat", model=MODEL, slow_first_byte=2.0, tokens=20)
    before = len(calls(backend))
    try:
        # Of a tenant whose rules do not change in another test.
        async with gateway.client(gateway.keys["third"]) as client:
            answers = await asyncio.gather(*(client.post("/api/chat", json=chat("a hundred")) for _ in range(100)))
    finally:
        backend.clear_faults()
    upstream = len(calls(backend)) - before
    verdicts = [answer.headers["x-cache"] for answer in answers]
    print(f"{upstream} calls upstream for 100, by 2 workers: {Counter(verdicts)}")
    assert 1 <= upstream <= 2
    assert len({answer.content for answer in answers}) == upstream
    assert verdicts.count("MISS") == upstream
    ids = [answer.headers["x-request-id"] for answer in answers]
    records = await gateway.wait_for_records(100, 30, id__in=ids)
    outcomes = [record.outcome for record in records]
    assert outcomes.count("ok") == upstream
    # On a machine so slow that one comes when the answer is there, it is a hit.
    assert set(outcomes) <= {"ok", "coalesced", "cached"}
    assert "coalesced" in outcomes
    assert {record.completion_tokens for record in records} == {20}


async def test_a_policy_of_a_tenant_acts_at_once_and_a_purge_too(gateway, backend):
    async with gateway.client(gateway.keys["plain"]) as client:
        assert "x-cache" not in (await client.post("/api/chat", json=chat("policy"))).headers
        gateway.rows(CacheSettings).create(id=1, policy="all", charges=False)

        async def until(verdict):
            async with asyncio.timeout(SECONDS):
                while (await client.post("/api/chat", json=chat("policy"))).headers.get("x-cache") != verdict:
                    await asyncio.sleep(0.05)

        await until("HIT")
        gateway.rows(CachePurge).create(tenant=gateway.tenant("acme"))
        await until("MISS")
        await until("HIT")
        gateway.rows(CacheSettings).update(policy="off")
        await until(None)


async def test_what_was_done_comes_to_the_page(gateway):
    async with asyncio.timeout(30):
        while True:
            rows = list(gateway.rows(CacheUse).filter(tenant__name="acme"))
            reports = [report.cache for report in gateway.rows(WorkerReport).all()]
            # Each worker tells in its own time.
            if (
                sum(row.hits for row in rows) >= 4
                and sum(row.misses for row in rows) >= 3
                and sum(report.get("entries", 0) for report in reports)
                and [report.get("redis") for report in reports] == ["shared", "shared"]
            ):
                return
            await asyncio.sleep(0.2)
