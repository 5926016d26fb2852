"""Metrics of four workers, as Prometheus reads them (threats L8, L9)."""

import asyncio
import os
import signal
import time

import httpx
import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from tests.live.gateway import Gateway
from tests.no_tls import NO_TLS
from tests.scraped import Scrape, scrape

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "llama3.2"
CALLS = 40


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    async with FakeOllama(models=[MODEL, "nomic-embed-text"], slots=64) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, fake):
    made = make_shared_gateway(
        workers=4,
        TRUSTED_PROXIES="127.0.0.1/32",
        METRICS_TOKEN="another-one,a-token-of-prometheus",
    )
    made.make_backend(fake.url, slots=64)
    _, made.key = made.make_key()
    await asyncio.to_thread(made.start)
    await asyncio.to_thread(until, lambda: made.log().count("listening on") == 1)
    await made.until_it_lists(MODEL, key=made.key)
    return made


def until(holds, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def call(gateway: Gateway, number: int, **fields: object) -> int:
    """Over a connection of its own, so that all workers get some."""
    stream = number % 2 == 0
    body = {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": f"Hello {number}"}], **fields}
    async with gateway.client(gateway.key) as client:
        answer = await client.post("/api/chat", json=body)
    return answer.status_code


async def traffic(gateway: Gateway, calls: int = CALLS) -> None:
    for first in range(0, calls, 10):
        statuses = await asyncio.gather(*(call(gateway, number) for number in range(first, first + 10)))
        assert statuses == [200] * 10


async def until_scraped(gateway: Gateway, calls: float, seconds: float = 60) -> Scrape:
    """The page once it counts so many calls: a worker tells its numbers once a second."""
    deadline = time.monotonic() + seconds
    while True:
        page = await scrape(gateway.url)
        found = page.total("gateway_calls_total", endpoint="/api/chat")
        if found == calls:
            return page
        assert found < calls, f"{found} calls are told, {calls} were made"
        assert time.monotonic() < deadline, f"{found} of {calls} calls after {seconds} s\n{gateway.log()[-3000:]}"
        await asyncio.sleep(0.05)


def generated(fake: FakeOllama) -> list:
    return [seen for seen in fake.calls if seen.path == "/api/chat"]


async def test_l9_totals_over_four_workers_are_what_the_backend_counted(gateway, fake):
    await traffic(gateway)
    seen = generated(fake)
    page = await until_scraped(gateway, len(seen))
    assert page.total("gateway_workers") == 4
    tokens, prompt = sum(each.tokens for each in seen), sum(each.prompt_tokens for each in seen)
    of_chat = {"endpoint": "/api/chat"}
    for name, labels, wanted in [
        ("gateway_requests_total", of_chat, CALLS),
        ("gateway_requests_duration_seconds_count", of_chat, CALLS),
        ("gateway_requests_success_total", of_chat, CALLS),
        ("gateway_requests_by_ip_total", {**of_chat, "ip": "127.0.0.1"}, CALLS),
        ("gateway_tokens_total", {"kind": "completion"}, tokens),
        ("gateway_tokens_total", {"kind": "prompt"}, prompt),
        ("gateway_tenant_tokens_total", {"kind": "completion", "tenant": "acme"}, tokens),
        ("gen_ai_client_token_usage_sum", {"gen_ai_token_type": "output"}, tokens),
        ("gen_ai_client_token_usage_count", {"gen_ai_token_type": "input"}, CALLS),
        ("gen_ai_client_operation_duration_seconds_count", {"gen_ai_operation_name": "chat"}, CALLS),
        ("ollama_requests_total", of_chat, CALLS),
        ("ollama_proxy_requests_total", {"stream": "true"}, CALLS / 2),
        ("ollama_proxy_completion_tokens_total", {}, tokens),
        ("ollama_proxy_prompt_tokens_total", {}, prompt),
        ("ollama_proxy_time_to_first_token_seconds_count", {}, CALLS / 2),
        ("ollama_tokens_generated_sum", {}, tokens),
        ("gateway_overhead_seconds_count", of_chat, CALLS),
        ("gateway_line_wait_seconds_bucket", {"le": "+Inf"}, CALLS),
    ]:
        assert page.total(name, **labels) == wanted, name
    told = [path for path in (gateway.directory / "metrics").rglob("*.json") if b'"/api/chat"' in path.read_bytes()]
    print(f"{len(told)} of 4 workers served calls; {len(page.series)} series, {len(page.text) >> 10} KiB")
    assert len(told) > 1


async def test_l9_a_worker_that_ends_is_not_forgotten_and_nothing_goes_backwards(gateway, fake):
    """SIGTERM loses nothing; of a worker that is killed what it did in its last second may be missing, but nothing that
    a page has shown."""
    before = await until_scraped(gateway, len(generated(fake)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        page = await until_scraped(gateway, len(generated(fake)))
        os.kill(gateway.worker_pids()[0], number)
        for _ in range(20):
            last, page = page, await scrape(gateway.url)
            assert not went_backwards(last, page)
        await traffic(gateway, 10)
        await until_scraped(gateway, len(generated(fake)))
    async with asyncio.timeout(60):
        while (page := await scrape(gateway.url)).total("gateway_workers") < 4:
            await asyncio.sleep(0.1)
    assert not went_backwards(before, page)
    # The files of those that are gone are added up in one.
    async with asyncio.timeout(60):
        while len(list((gateway.directory / "metrics").rglob("*.alive"))) > 4:
            await asyncio.sleep(0.1)
    assert not went_backwards(page, await scrape(gateway.url))
    await until_scraped(gateway, len(generated(fake)))


def went_backwards(before: Scrape, after: Scrape) -> list[str]:
    """Series of counters that are gone or smaller. Those of Django's pages are told every five seconds only."""
    kinds = {name for name, family in after.families.items() if family.type in ("counter", "histogram")}
    now = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in after.samples}
    found = []
    for name in kinds & before.families.keys():
        if name.startswith(("gateway_host", "python_", "process_")):
            continue
        for sample in before.families[name].samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            if now.get(key, -1) < sample.value:
                found.append(f"{key}: {sample.value} → {now.get(key)}")
    return found


async def test_l8_junk_over_the_wire_adds_no_series(gateway):
    """A hundred thousand of it: tests/proxy/test_metrics.py."""

    async def junk(first: int) -> None:
        async with gateway.client(gateway.key) as client:
            for number in range(first, first + 40):
                body = {"model": f"junk-{number}", "messages": []}
                assert (await client.post("/api/chat", json=body)).status_code == 404
                await client.request(f"FROB{number}", "/api/chat")
                await client.get(f"/api/junk-{number}", headers={"user-agent": f"junk/{number}"})
                await client.get("/api/tags", headers={"authorization": f"Bearer junk-{number}"})

    async def calm() -> set:
        """The series of ours, once every worker has met all kinds of junk."""
        last, alike = set(), 0
        while alike < 4:
            page = await scrape(gateway.url)
            found = {series for series in page.series if series[0].startswith(("gateway_", "ollama_", "gen_ai_"))}
            alike = alike + 1 if found == last else 0
            last = found
            await asyncio.sleep(0.6)
        return last

    await junk(0)
    before = await calm()
    await asyncio.gather(*(junk(1000 * each) for each in range(1, 5)))
    after = await calm()
    assert after == before
    assert not [series for series in after if "junk" in str(series) or "FROB" in str(series)]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        # What a trusted proxy says of somebody else.
        ({"x-forwarded-for": "203.0.113.9"}, 404),
        ({"x-forwarded-for": "203.0.113.9", "authorization": "Bearer a-token-of-prometheus"}, 200),
        ({"x-forwarded-for": "203.0.113.9", "authorization": "Bearer a-token-of-prometheu"}, 404),
        ({"x-forwarded-for": "203.0.113.9", "authorization": "Basic a-token-of-prometheus"}, 404),
    ],
)
async def test_t14_metrics_are_for_loopback_and_for_who_has_a_token(gateway, headers, status):
    async with httpx.AsyncClient(
        trust_env=False, verify=NO_TLS, base_url=gateway.url, headers=headers, timeout=30
    ) as client:
        for path in ("/metrics", "/readyz"):
            assert (await client.get(path)).status_code == status, path
        assert (await client.get("/livez")).text == "ok"
