"""S1, S2: a database that is down, hung or locked stops no call, turns no key into 401, and loses no record."""

import asyncio
import time

import httpx
import pytest

from tests.live.crashes import FakeProcess
from tests.live.outages import endure, hung, locked, stopped

pytestmark = pytest.mark.slow

STREAMS = 30


@pytest.fixture(scope="module")
def fake_process():
    process = FakeProcess()
    yield process
    process.close()


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], "stream": False, **fields}


async def check_endures(gateway, fake_process, key, outage, seconds, capsys):
    verdict, account = await endure(gateway, fake_process, key, outage, seconds, STREAMS)
    with capsys.disabled():
        print(f"\n  {verdict.whole} calls, longest gap in a stream {account.longest_gap:.2f} s", end=" ")
    assert (account.refused, account.broken) == ({}, 0)
    assert (verdict.is_clean, verdict.interrupted) == (True, 0), verdict
    assert verdict.whole == verdict.seen_by_backend
    assert "Traceback" not in gateway.log()
    assert account.longest_gap < 3  # it is 0.02 s from token to token; what a busy machine adds is printed


@pytest.mark.postgres
@pytest.mark.parametrize(("outage", "seconds"), [(stopped, 5), (hung, 3)])
async def test_s1_s2_postgresql_stopped_or_hung_under_load(
    make_gateway, postgres, postgres_url, fake_process, outage, seconds, capsys
):
    gateway = make_gateway(database_url=postgres_url)
    gateway.make_backend(fake_process.url, slots=256)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    await check_endures(gateway, fake_process, key, outage(postgres), seconds, capsys)
    # And what changes afterwards is heard again.
    _, key = gateway.make_key("later")
    async with gateway.client(key) as client:
        await until_status(client, 200)


async def test_s2_sqlite_locked_by_another_process_under_load(make_gateway, fake_process, capsys):
    gateway = make_gateway()
    gateway.make_backend(fake_process.url, slots=256)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    await check_endures(gateway, fake_process, key, locked(gateway), 3, capsys)


async def until_status(client, status, seconds=15):
    deadline = time.monotonic() + seconds
    while (answer := await client.post("/api/chat", json=chat(options={"num_predict": 1}))).status_code != status:
        assert answer.status_code in (200, 401, 503), answer.text
        assert time.monotonic() < deadline, (answer.status_code, answer.text)
        await asyncio.sleep(0.05)
    return answer


@pytest.mark.postgres
async def test_s1_beyond_the_grace_calls_get_503_and_never_401(make_gateway, postgres, postgres_url, fake):
    gateway = make_gateway(database_url=postgres_url, DB_GRACE_SECONDS="1")
    gateway.make_backend(fake.url)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    running = fake.faults(path="/api/chat", tokens_per_second=20, infinite=True, times=1)
    async with gateway.client(key) as client, gateway.client("ogw_nobody") as stranger:
        async with client.stream("POST", "/api/chat", json=chat(stream=True)) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            with stopped(postgres):
                refused = await until_status(client, 503)
                seen = len([call for call in fake.calls if call.path == "/api/chat"])
                assert refused.headers["retry-after"]
                assert refused.headers["x-gateway-error"] == "state_unavailable"
                assert "error" in refused.json()
                assert (await stranger.post("/api/chat", json=chat())).status_code == 503
                assert (await client.get("/api/tags")).status_code == 503
                assert (await client.get("/readyz")).status_code == 503
                assert (await client.get("/livez")).status_code == 200
                assert len([call for call in fake.calls if call.path == "/api/chat"]) == seen
                for _ in range(5):
                    await anext(lines)  # what runs goes on
        gateway.connection.close()  # ours was cut, too
        await until_status(client, 200)
        assert (await stranger.post("/api/chat", json=chat())).status_code == 401
        assert (await client.get("/readyz")).status_code == 200
    assert not running.times
    assert (await gateway.record(answer.headers["x-request-id"])).outcome == "cancelled"


@pytest.mark.postgres
async def test_s1_a_gateway_that_starts_without_its_database_waits_for_it(make_gateway, postgres, postgres_url, fake):
    gateway = make_gateway(database_url=postgres_url)
    gateway.make_backend(fake.url)
    _, key = gateway.make_key()
    with stopped(postgres):
        gateway.start(wait=False)
        async with gateway.client(key) as client:
            deadline = time.monotonic() + 30
            while True:
                try:
                    answer = await client.post("/api/chat", json=chat())
                    break
                except httpx.ConnectError:  # not listening yet
                    assert time.monotonic() < deadline, gateway.log()
                    await asyncio.sleep(0.1)
            assert (answer.status_code, answer.headers["x-gateway-error"]) == (503, "state_unavailable")
            assert (await client.get("/readyz")).status_code == 503
    async with gateway.client(key) as client:
        await until_status(client, 200)
    assert not [call for call in fake.calls if call.path == "/api/chat"][1:]
