"""One truth: what the headers of a call, the page of the key, its owner's list and the API say of a limit; overrides
that come and go while a gateway runs."""

import asyncio
import re
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from tenants.models import Limit, Membership, Role, User
from tests.live.signed_in import sign_in
from tests.redis_server import RedisServer

# Four workers start slowly on a busy machine.
pytestmark = pytest.mark.timeout(300)

CEILING = 60
SHOT = {
    "model": "llama3.2", "stream": False, "messages": [{"role": "user", "content": "hi"}],
    "options": {"num_predict": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def redis_server():
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(params=["memory", "redis"])
def prepared(request, make_gateway, fake, redis_server):
    env = {}
    if request.param == "redis":
        redis_server.flush()
        env = {"REDIS_URL": redis_server.url, "REDIS_PATIENCE_SECONDS": "10"}
    gateway = make_gateway(workers=4 if request.param == "redis" else 1, **env)
    gateway.make_backend(fake.url)
    gateway.bob = gateway.rows(User).create(username="bob")
    gateway.rows(Membership).create(tenant=gateway.tenant(), user=gateway.bob, role=Role.OWNER)
    gateway.key_row, gateway.key = gateway.make_key(user=gateway.bob)
    return gateway


def limit(gateway, **fields):
    return gateway.rows(Limit).create(**{"scope": "key", "key": gateway.key_row, "mode": "enforce", **fields})


async def test_headers_pages_and_the_api_agree(prepared):
    gateway = prepared
    limit(gateway, metric="requests", window="month", amount=20)
    limit(gateway, metric="tokens", window="seconds", window_seconds=3600, amount=5000)
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=gateway.key)
    async with gateway.client(gateway.key) as client:
        for _ in range(3):
            answer = await client.post("/api/chat", json=SHOT)
            assert answer.status_code == 200
        headers = answer.headers
        left = int(headers["x-ratelimit-remaining-requests"])
        assert (left, headers["x-ratelimit-limit-requests"]) == (17, "20")
        # The last call is settled a moment after its answer.
        deadline = time.monotonic() + CEILING
        while True:
            own = (await client.get("/manage/api/key")).json()["limits"]
            requests, tokens = (next(row for row in own if row["metric"] == name) for name in ("requests", "tokens"))
            if tokens["used"] < 200:
                break
            assert time.monotonic() < deadline, own
            await asyncio.sleep(0.05)
    assert (requests["used"], requests["left"], requests["amount"]) == (3, left, 20)
    seconds = int(headers["x-ratelimit-reset-requests"].rstrip("s"))
    assert abs(requests["resets_in_seconds"] - seconds) < 60
    records = await gateway.wait_for_records(3)
    assert tokens["used"] == sum(record.prompt_tokens + record.completion_tokens for record in records)
    async with gateway.client(cookies={"sessionid": sign_in(gateway, gateway.bob)}) as browser:
        key_page = (await browser.get(f"/keys/{gateway.key_row.prefix}/")).text
        list_page = (await browser.get("/limits/")).text
        home = (await browser.get("/", headers={"accept": "text/html"})).text
    for page in (key_page, list_page):
        text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
        assert "requests per month" in text
        assert "3 (15 %)" in text
        assert f"{tokens['used']} ({100 * tokens['used'] // 5000} %)" in text
    assert "3 of 20, 17 left" in home
    assert "counts for itself" not in key_page


async def test_an_override_acts_and_ends_by_itself_and_the_429_tells_of_it(prepared):
    gateway = prepared
    row = limit(gateway, metric="requests", window="month", amount=2)
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", key=gateway.key)
    async with gateway.client(gateway.key) as client:

        async def statuses(count):
            return [(await client.post("/api/chat", json=SHOT)).status_code for _ in range(count)]

        assert await statuses(3) == [200, 200, 429]
        row.override_amount, row.override_until = 4, timezone.now() + timedelta(days=1)
        row.save(using=gateway.alias)
        began = time.monotonic()
        while (await client.post("/api/chat", json=SHOT)).status_code == 429:
            assert time.monotonic() - began < CEILING
        print(f"raised after {time.monotonic() - began:.2f} s")
        assert 200 in await statuses(2)
        until = f"raised from 2 until {row.override_until:%Y-%m-%d %H:%M} UTC"
        while until not in (refused := await client.post("/api/chat", json=SHOT)).text:  # each worker hears by itself
            assert time.monotonic() - began < CEILING, refused.text
        assert "4 requests per month" in refused.text
        assert refused.headers["x-ratelimit-limit-requests"] == "4"

        ends = row.override_until = timezone.now() + timedelta(seconds=3)
        row.save(using=gateway.alias)
        revisions = gateway_revisions(gateway)
        while refused.headers["x-ratelimit-limit-requests"] != "2":
            refused = await client.post("/api/chat", json=SHOT)
            assert refused.status_code == 429
            assert timezone.now() < ends + timedelta(seconds=CEILING)
            await asyncio.sleep(0.05)
        print(f"over {(timezone.now() - ends).total_seconds():.2f} s after its end")
        assert timezone.now() >= ends
        assert "raised" not in refused.text
    assert gateway_revisions(gateway) == revisions


def gateway_revisions(gateway):
    from proxy.models import ConfigRevision

    return dict(gateway.rows(ConfigRevision).values_list("table", "revision"))
