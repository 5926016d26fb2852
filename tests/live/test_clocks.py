"""Row U10: the wall clock of a gateway is set while it runs, by libfaketime. No window is freed by it, none is frozen.

Redis keeps the right time: with its allocator it does not start under libfaketime. What it does by its own clock is in
tests/proxy/test_shared_limits.py.
"""

import asyncio
import time
from pathlib import Path

import pytest

from proxy.models import WorkerReport
from tenants.models import Limit
from tests.redis_server import RedisServer

PATIENCE = 60
SHORT, LONG = 3, 3000
SHOT = {"model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def wall(tmp_path, monkeypatch):
    """wall(days): sets the clock of the processes that are started from now on."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.fail("libfaketime is missing: apt-get install faketime", pytrace=False)
    told = tmp_path / "faketime"

    def step(days):
        told.write_text(f"{days:+d}d\n")

    step(0)
    monkeypatch.setenv("LD_PRELOAD", str(found[-1]))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(told))
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("FAKETIME_CACHE_DURATION", "1")
    return step


@pytest.fixture(params=["memory", "redis"])
def engine(request):
    """Variables of a gateway."""
    if request.param == "memory":
        yield {}
        return
    server = RedisServer()
    try:
        yield {"REDIS_URL": server.start().url, "REDIS_PATIENCE_SECONDS": "10"}
    finally:
        server.remove()


async def status(client):
    answer = await client.post("/api/chat", json=SHOT)
    assert answer.status_code in (200, 429), answer.text
    return answer.status_code


async def test_u10_a_clock_that_is_set_neither_frees_nor_freezes_a_window(make_gateway, fake, engine, wall):
    gateway = make_gateway(**engine)
    gateway.make_backend(fake.url)
    keys = {}
    for name, fields in {
        "rolling": {"window": "seconds", "window_seconds": LONG},
        "daily": {"window": "day"},
        "short": {"window": "seconds", "window_seconds": SHORT},
    }.items():
        row, keys[name] = gateway.make_key(name)
        gateway.rows(Limit).create(scope="key", key=row, metric="requests", amount=1, **fields)
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=keys["rolling"])
    async with (
        gateway.client(keys["rolling"]) as rolling,
        gateway.client(keys["daily"]) as daily,
        gateway.client(keys["short"]) as short,
    ):
        assert [await status(client) for client in (rolling, daily)] == [200, 200]
        for days in (+2, -400):
            await until_room(short)
            wall(days)
            await until_told(gateway, days)
            assert [await status(client) for client in (rolling, daily)] == [429, 429], f"freed by {days:+d} days"
            print(f"{days:+d} days: the short window had room again after {await until_room(short):.1f} s")
    assert "Traceback" not in gateway.log()


async def until_room(client):
    """Seconds until a call is let in."""
    began = time.monotonic()
    while await status(client) != 200:
        assert time.monotonic() - began < PATIENCE, "the window is frozen"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def until_told(gateway, days):
    """Waits until the gateway believes in the new time, as its reports show: else this proves nothing."""
    deadline = time.monotonic() + PATIENCE
    while True:
        said = gateway.rows(WorkerReport).values_list("seen_at", flat=True)
        if any(abs(moment.timestamp() - time.time() - days * 86400) < 3600 for moment in said):
            return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
