"""Rows U6, U7, S6 through a whole gateway: exactly as many calls as there is room for, and nothing held afterwards."""

import asyncio
import json
import os
import signal
import time
from datetime import UTC, datetime

import pytest

from tenants.models import Limit
from tests.redis_server import RedisServer
from usage.models import Price

ROOM, CALLS = 10, 200
CAP = 50
SERVERS = [("memory", 1), ("redis", 4)]


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.remove()


def chat(**options):
    return {
        "model": "llama3.2",
        "stream": True,
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"num_predict": CAP, **options},
    }


@pytest.fixture
def start(make_gateway, fake, redis_server):
    """start(engine, workers): a gateway whose calls wait after their first token until they are let go."""

    def start(engine, workers, **env):
        redis_server.flush()
        fake.scheduler.slots = 256
        if engine == "redis":
            env |= {"REDIS_URL": redis_server.url, "LIMIT_LEASE_SECONDS": "2", "REDIS_PATIENCE_SECONDS": "10"}
        gateway = make_gateway(workers=workers, **env)
        gateway.make_backend(fake.url, slots=256)
        gateway.key_row, gateway.key = gateway.make_key()
        return gateway

    return start


def held(redis_server):
    """(what calls in flight hold in Redis, how many they are)"""
    with redis_server.client() as client:
        counters = {key.decode(): client.hgetall(key) for key in client.scan_iter("ogw:limit:*")}
        amounts = {key: int(fields.get(b"held", 0)) for key, fields in counters.items()}
        calls = {name for fields in counters.values() for name in fields if name.startswith(b"@")}
        return {key: amount for key, amount in amounts.items() if amount}, len(calls)


async def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def clients_of(gateway, key, count):
    """Clients whose connections the kernel has spread over the workers, each of which knows the backend."""
    clients = [gateway.client(key) for _ in range(count)]
    for client in clients:
        while not (await client.get("/api/tags")).json()["models"]:
            await asyncio.sleep(0.05)
    return clients


async def ask(client):
    """(status, body, headers) of one call, read to its end."""
    answer = await client.post("/api/chat", json=chat())
    return answer.status_code, answer.text, answer.headers


METRICS = ("requests", "tokens", "cost", "concurrent")
PROMPT_TOKENS = -(-len(json.dumps(chat(), separators=(",", ":"))) // 4)


def limit_on(gateway, tenant, metric):
    """Room for exactly ROOM calls."""
    each = {"requests": 1, "tokens": PROMPT_TOKENS + CAP, "cost": (PROMPT_TOKENS + CAP) * 1000, "concurrent": 1}
    window = {"concurrent": "none"}.get(metric, "month")
    gateway.rows(Limit).create(
        scope="tenant", tenant=gateway.tenant(tenant), metric=metric, window=window, amount=ROOM * each[metric]
    )


@pytest.mark.parametrize(("engine", "workers"), SERVERS)
async def test_u6_of_200_calls_at_once_exactly_10_get_in(start, fake, redis_server, engine, workers):
    gateway = start(engine, workers)
    gateway.rows(Price).create(
        model="llama3.2:latest", input_nano=10**9, output_nano=10**9, valid_from=datetime(2020, 1, 1, tzinfo=UTC)
    )
    keys = {}
    for metric in METRICS:
        _, keys[metric] = gateway.make_key(metric, tenant=metric)
        limit_on(gateway, metric, metric)
    await asyncio.to_thread(gateway.start)
    for metric, key in keys.items():
        fake.faults(path="/api/chat", model="llama3.2", hang_after_chunks=1)
        clients = await clients_of(gateway, key, 40)
        calls = [asyncio.create_task(ask(clients[number % 40])) for number in range(CALLS)]
        await until(lambda calls=calls: sum(call.done() for call in calls) >= CALLS - ROOM, 60)
        refused = [call.result() for call in calls if call.done()]
        assert len(refused) == CALLS - ROOM, metric
        code = f"budget_{metric}" if metric == "cost" else f"limit_{metric}"
        for status, body, headers in refused:
            assert (status, headers["x-gateway-error"]) == (429, code), body
            assert headers[f"x-ratelimit-remaining-{metric}"] == "0"
            assert int(headers["retry-after"]) >= 1
            assert f"the tenant {metric}" in json.loads(body)["error"]
        fake.release()
        ended = await asyncio.gather(*calls)
        assert sum(status == 200 for status, _, _ in ended) == ROOM
        assert len(await gateway.wait_for_records(ROOM, tenant_name=metric)) == ROOM
        if engine == "redis":
            await until(lambda: held(redis_server) == ({}, 0))
        fake.reset()
        if metric == "concurrent":
            again = await asyncio.gather(*(ask(client) for client in clients[:ROOM]))
            assert {status for status, _, _ in again} == {200}
        for client in clients:
            await client.aclose()


async def test_u6_nothing_is_held_after_any_ending(start, fake, redis_server):
    gateway = start("redis", 2)
    for metric, window in (("requests", "month"), ("tokens", "month"), ("concurrent", "none")):
        gateway.rows(Limit).create(
            scope="tenant", tenant=gateway.tenant(), metric=metric, window=window, amount=100_000
        )
    await asyncio.to_thread(gateway.start)
    faults = {"backend dies": {"reset_after_chunks": 2}, "error": {"error_after_chunks": 2, "error": "no"}}
    for ending in ("client leaves", "backend dies", "error", "kill -9"):
        fake.faults(path="/api/chat", model="llama3.2", **faults.get(ending, {"hang_after_chunks": 1}))
        clients = await clients_of(gateway, gateway.key, 12)
        calls = [asyncio.create_task(ask(client)) for client in clients]
        if ending in faults:
            await asyncio.gather(*calls)
        else:
            await until(lambda: held(redis_server)[1] == 12)
            if ending == "kill -9":
                for pid in gateway.worker_pids():
                    os.kill(pid, signal.SIGKILL)
            else:
                for call in calls:
                    call.cancel()
        began = time.monotonic()
        await until(lambda: held(redis_server) == ({}, 0), 60)
        print(f"{ending}: nothing was held {time.monotonic() - began:.2f} s later")
        await asyncio.gather(*calls, return_exceptions=True)
        for client in clients:
            await client.aclose()
        fake.reset()


async def test_u7_a_budget_outlives_the_gateway(start, fake):
    gateway = start("memory", 1)
    gateway.rows(Limit).create(scope="tenant", tenant=gateway.tenant(), metric="tokens", window="month", amount=200)
    await asyncio.to_thread(gateway.start)
    async with gateway.client(gateway.key) as client:
        assert (await ask(client))[0] == 200
        used = (await gateway.wait_for_records(1))[0]
        spent = used.prompt_tokens + used.completion_tokens
        gateway.stop()
        await asyncio.to_thread(gateway.start)
        _, _, headers = await ask(client)
    left = 200 - spent
    assert int(headers["x-ratelimit-remaining-tokens"]) < left
