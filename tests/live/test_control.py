"""What reaches a running call from elsewhere: cancels and withdrawn rights, over several processes and a real Redis."""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import pytest

from proxy.models import CallCancellation
from tenants.models import ApiKey
from tests.live.admin_forms import Form
from tests.live.gateway import ROOT
from tests.ports import free_port
from tests.redis_server import RedisServer

# What a busy machine may need now and then. A second is promised; the figures are printed.
PATIENCE = 40.0
WORKERS = 4
STREAMS = 12


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.remove()


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


async def gateway_with(make_gateway, fake, keys=1, workers=WORKERS, **options):
    """A gateway whose calls go on until they are ended, and keys for it."""
    fake.scheduler.slots = 64
    fake.faults(path="/api/chat", model="llama3.2", infinite=True, tokens_per_second=20)
    gateway = make_gateway(workers=workers, LIMITS_PER_WORKER="True", **options)
    gateway.make_backend(fake.url, slots=64)
    made = [gateway.make_key(f"key {number}") for number in range(keys)]
    await asyncio.to_thread(gateway.start)
    return gateway, made


async def begun(client, body):
    """A good answer of a stream. A worker that has just started may not have heard of its backend yet: the fake, in
    the loop of the test, did not answer while the test waited for the gateway."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = await client.send(client.build_request("POST", "/api/chat", json=body), stream=True)
            if answer.status_code != 503:
                assert answer.status_code == 200, (await answer.aread(), answer.status_code)
                return answer
            await answer.aclose()
            await asyncio.sleep(0.1)


@asynccontextmanager
async def streams(gateway, key, count=STREAMS):
    """Streams that have begun, each on a connection of its own, which the kernel spreads over the workers."""
    clients = [gateway.client(key) for _ in range(count)]
    opened = []
    try:
        for client in clients:
            answer = await begun(client, chat(options={"num_predict": 30_000}))
            lines = answer.aiter_lines()
            await anext(lines)
            opened.append((answer, lines))
        yield opened
    finally:
        for answer, _ in opened:
            await answer.aclose()
        for client in clients:
            await client.aclose()


async def end_of(lines):
    """When a stream ended, and its last object."""
    last = ""
    async with asyncio.timeout(PATIENCE):
        async for line in lines:
            last = line
    return time.monotonic(), json.loads(last)


def command(gateway, *args):
    return subprocess.run(
        [sys.executable, "manage.py", *args], cwd=ROOT, env=gateway.env, capture_output=True, text=True, timeout=60
    )


def tell(what, figures, capsys):
    with capsys.disabled():
        print(f"\n  {what}: median {statistics.median(figures):.2f} s, longest {max(figures):.2f} s", end=" ")


@pytest.mark.parametrize("layer", ["redis", "no redis"])
async def test_cancel_call_ends_a_call_in_whichever_worker_runs_it(make_gateway, fake, redis_server, layer):
    gateway, [(_, key)] = await gateway_with(make_gateway, fake, REDIS_URL=redis_server.url if layer == "redis" else "")
    async with streams(gateway, key, count=3) as opened:
        spared, *cancelled = opened
        for answer, lines in cancelled:
            call_id = answer.headers["x-request-id"]
            done = await asyncio.to_thread(command, gateway, "cancel_call", call_id)
            assert (done.returncode, done.stdout) == (0, f"Cancelled {call_id}.\n"), done.stderr
            assert "cancelled this call" in (await end_of(lines))[1]["error"]
            record = await gateway.record(call_id)
            assert (record.outcome, record.estimated) == ("cancelled", True)
            assert record.completion_tokens > 0
        await fake.saw_disconnect(len(cancelled), timeout=PATIENCE)
        for _ in range(5):
            assert "message" in json.loads(await anext(spared[1]))
        again = await asyncio.to_thread(command, gateway, "cancel_call", call_id, "--json")
        assert json.loads(again.stdout) == {"call": call_id, "outcome": "cancelled", "changed": False}
    assert f"The call {call_id} of the key" in gateway.log()
    assert "at the shell" in gateway.log()


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def test_a_cancel_needs_no_more_than_the_database(make_gateway, fake, database, request, capsys):
    """The row is what cancel_call and the pages write; with Redis dead nothing else tells the other workers."""
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else ""
    dead = f"redis://127.0.0.1:{free_port()}/0"
    gateway, [(_, key)] = await gateway_with(make_gateway, fake, workers=2, database_url=url, REDIS_URL=dead)
    figures = []
    async with streams(gateway, key, count=6) as opened:
        for answer, lines in opened:
            since = time.monotonic()
            gateway.rows(CallCancellation).create(call_id=answer.headers["x-request-id"], by="a row")
            ended, last = await end_of(lines)
            figures.append(ended - since)
            assert "cancelled this call" in last["error"]
        await gateway.wait_for_records(len(opened), outcome="cancelled")
    tell(f"cancel by the database alone, {database}", figures, capsys)


async def test_cancelling_what_does_not_run_is_refused_in_words(make_gateway, fake):
    gateway = make_gateway()
    unknown = command(gateway, "cancel_call", "01890a5d-ac96-774b-bcce-b302099a8057", "--wait", "0.5")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "does not exist, or the gateway does not run" in unknown.stderr
    assert unknown.stderr.count("\n") == 1
    assert command(gateway, "cancel_call", "nonsense").returncode == 2


async def revoke_and_judge(gateway, row, opened, key, what, capsys):
    """Revokes as the control plane does; all streams of the key are cut, and new calls get 401, within a second."""
    ends = [asyncio.create_task(end_of(lines)) for _, lines in opened]
    since = time.monotonic()
    await asyncio.to_thread(gateway.rows(ApiKey).get(pk=row.pk).revoke)
    clients = [gateway.client(key) for _ in range(STREAMS)]
    refusals = [asyncio.create_task(refused(client)) for client in clients]
    figures = []
    for ended, last in await asyncio.gather(*ends):
        figures.append(ended - since)
        assert list(last) == ["error"]
    figures += [moment - since for moment in await asyncio.gather(*refusals)]
    for client in clients:
        await client.aclose()
    for answer, _ in opened:
        assert (await gateway.record(answer.headers["x-request-id"])).outcome == "cut"
    tell(what, figures, capsys)


async def refused(client):
    """When a new call was answered 401."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = await client.post("/api/show", json={"model": "llama3.2"})
        if answer.status_code == 401:
            return time.monotonic()
        assert answer.status_code in (200, 503), answer.text  # 503: as in begun()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_key_revoked_by_the_control_plane_is_announced_to_all_workers(make_gateway, redis_server):
    gateway = make_gateway(REDIS_URL=redis_server.url)
    row, _ = gateway.make_key()
    with redis_server.client() as client, client.pubsub() as said:
        said.psubscribe("ogw-*__group__workers")
        assert said.get_message(timeout=PATIENCE)["type"] == "psubscribe"
        done = await asyncio.to_thread(command, gateway, "revoke_key", row.prefix)
        assert done.returncode == 0, done.stderr
        message = await asyncio.to_thread(said.get_message, timeout=PATIENCE)
    # Encrypted: who reads along at Redis learns nothing, and who writes there says nothing to us.
    assert b"withdrawn" not in message["data"]
    assert len(message["data"]) > 60


async def until(condition, seconds=PATIENCE):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


STATES = ["up", "killed", "hung", "flushed", "back"]


async def test_a7_s6_revoked_streams_are_cut_whatever_redis_does(make_gateway, fake, redis_server, capsys):
    gateway, keys = await gateway_with(make_gateway, fake, keys=len(STATES), REDIS_URL=redis_server.url)
    await until(lambda: redis_server.subscribers() == WORKERS)
    for state, (row, key) in zip(STATES, keys, strict=True):
        async with streams(gateway, key) as opened:
            if state == "killed":
                redis_server.kill()
            elif state == "hung":
                redis_server.start()
                await until(lambda: redis_server.subscribers() == WORKERS)
                redis_server.pause()
            elif state == "flushed":
                redis_server.resume()
                redis_server.flush()
            elif state == "back":
                # One subscription for each worker, whatever was before.
                await until(lambda: redis_server.subscribers() == WORKERS)
            await revoke_and_judge(gateway, row, opened, key, f"Redis {state}", capsys)
    assert "The channel layer is away" in gateway.log()
    assert "The channel layer is back" in gateway.log()
    assert "Traceback" not in gateway.log()


async def test_s6_calls_do_not_feel_what_redis_does(make_gateway, fake, redis_server, capsys):
    gateway = make_gateway(workers=1, REDIS_URL=redis_server.url)
    gateway.make_backend(fake.url, slots=64)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    await until(lambda: redis_server.subscribers() >= 1)
    middle, longest = {}, {}
    async with gateway.client(key) as client:
        await (await begun(client, chat(options={"num_predict": 1}))).aread()
        for state in ("up", "hung", "killed"):
            if state == "hung":
                redis_server.pause()
            elif state == "killed":
                redis_server.kill()
            took = []
            for _ in range(80):
                since = time.monotonic()
                answer = await client.post("/api/show", json={"model": "llama3.2"})
                took.append(time.monotonic() - since)
                assert answer.status_code == 200
                await asyncio.sleep(0.01)
            middle[state], longest[state] = statistics.median(took), max(took)
    redis_server.start()
    with capsys.disabled():
        figures = ", ".join(f"{state} {1000 * middle[state]:.0f} / {1000 * longest[state]:.0f} ms" for state in middle)
        print(f"\n  median and longest of 80 calls, Redis {figures}", end=" ")
    # What waited for Redis would wait half a second.
    assert middle["hung"] - middle["up"] <= 0.2
    assert middle["killed"] - middle["up"] <= 0.2


async def attempt(client, name):
    """Tries to sign in with a wrong password, as the form does."""
    page = await client.get("/account/login/")
    fields = {**Form(page.text).fields, "login": name, "password": "wrong"}
    return await client.post("/account/login/", data=fields, headers={"referer": str(client.base_url)})


async def test_a11_attempts_to_sign_in_are_counted_in_redis_and_go_on_without_it(make_gateway, redis_server):
    gateway = make_gateway(workers=2, REDIS_URL=redis_server.url)
    await asyncio.to_thread(gateway.start)
    async with gateway.client() as client:
        statuses = []
        while 429 not in statuses:
            statuses.append((await attempt(client, "alice")).status_code)
            assert len(statuses) <= 21  # ten, and ten more if the minute ended meanwhile
        assert statuses == [200] * (len(statuses) - 1) + [429]
        assert len(statuses) > 10
        with redis_server.client() as redis:
            assert any(b"rl:" in key for key in redis.scan_iter())
        for state in (redis_server.pause, redis_server.kill):
            state()
            async with asyncio.timeout(PATIENCE):
                # The shared count is away, and each process counts by itself.
                statuses = [(await attempt(client, f"bob {state.__name__}")).status_code for _ in range(2)]
            assert set(statuses) <= {200, 429}
            assert (await client.get("/account/login/")).status_code == 200
    redis_server.start()
    assert "Traceback" not in gateway.log()
