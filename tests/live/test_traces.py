"""One trace a call, at a collector; and lines of the access log beside it."""

import asyncio
import json
import time

import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from tests.live.collector import Collector
from tests.scraped import scrape
from usage.models import UsageRecord

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "llama3.2"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SERVER, CLIENT = 2, 3  # kinds of spans


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    async with FakeOllama(models=[MODEL, "nomic-embed-text"], slots=64) as server:
        yield server


@pytest.fixture(scope="module")
def collector():
    made = Collector().start()
    yield made
    made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, fake, collector):
    made = make_shared_gateway(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="x-collector-token=a%20secret%20of%20the%20collector",
        OTEL_SERVICE_NAME="gateway-of-the-tests",
        ACCESS_LOG="True",
        CACHE_POLICY="deterministic",
    )
    made.make_backend(fake.url)
    _, made.key = made.make_key()
    await asyncio.to_thread(made.start)
    return await made.until_it_lists(MODEL, key=made.key)


def trace_of(collector: Collector, request_id: str) -> list[dict]:
    """The spans of a call, that of the whole first."""

    def whole() -> list[str]:
        return [
            span["trace"]
            for span in list(collector.spans)
            if span["attributes"].get("gateway.request_id") == request_id
        ]

    collector.wait_for(whole)
    assert len(whole()) == 1, "one call has one trace"
    return sorted(collector.traces()[whole()[0]], key=lambda span: (span["kind"] != SERVER, span["start"]))


async def line_of(gateway, request_id: str) -> dict:
    async with asyncio.timeout(30):
        while True:
            lines = [line for line in gateway.log().splitlines() if f'"id":"{request_id}"' in line]
            if lines:
                assert len(lines) == 1
                return json.loads(lines[0])
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "body", "operation", "stream"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "Hello"}], "stream": True}, "chat", True),
        ("/api/chat", {"messages": [{"role": "user", "content": "Hello"}], "stream": False}, "chat", False),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}, "chat", False),
        ("/api/generate", {"prompt": "Hello", "stream": False}, "text_completion", False),
    ],
)
async def test_a_call_is_one_trace_whose_steps_are_its_children(gateway, collector, path, body, operation, stream):
    async with gateway.client(gateway.key) as client:
        answer = await client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 200
    record: UsageRecord = await gateway.record(answer.headers["x-request-id"])
    whole, *steps = await asyncio.to_thread(trace_of, collector, answer.headers["x-request-id"])
    assert whole["name"] == f"{operation} {MODEL}:latest"
    assert whole["parent"] == ""
    assert whole["service"]["service.name"] == "gateway-of-the-tests"
    wanted = {
        "gen_ai.operation.name": operation, "gen_ai.provider.name": "ollama", "gen_ai.system": "ollama",
        "gen_ai.request.model": f"{MODEL}:latest", "gen_ai.response.model": f"{MODEL}:latest",
        "gen_ai.usage.input_tokens": record.prompt_tokens, "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.request.max_tokens": 4096, "http.request.method": "POST", "http.route": path,
        "http.response.status_code": 200, "gateway.outcome": "ok", "gateway.tenant": "acme", "gateway.key": "key",
        "gateway.backend": "one", "gateway.attempts": 1, "gateway.stream": stream, "client.address": "127.0.0.1",
    }  # fmt: skip
    assert wanted.items() <= whole["attributes"].items()
    assert [step["name"] for step in steps] == ["admit", "backend", "first token", "answer"]
    admit, backend, first, last = steps
    assert backend["kind"] == CLIENT
    assert {admit["parent"], backend["parent"]} == {whole["id"]}
    assert {first["parent"], last["parent"]} == {backend["id"]}
    for step in steps:
        assert whole["start"] <= step["start"] <= step["end"] <= whole["end"]
    assert (admit["end"], first["end"]) == (backend["start"], last["start"])


async def test_a_trace_that_a_caller_began_goes_on_to_the_backend(gateway, collector, fake):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "traced"}], "stream": False}
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    async with gateway.client(gateway.key) as client:
        answer = await client.post("/api/chat", json=body, headers=headers)
    whole, *steps = await asyncio.to_thread(trace_of, collector, answer.headers["x-request-id"])
    assert (whole["trace"], whole["parent"]) == (PARENT.split("-")[1], PARENT.split("-")[2])
    backend = next(step for step in steps if step["name"] == "backend")
    seen = next(call for call in reversed(fake.calls) if b"traced" in call.body)
    assert seen.header("traceparent") == f"00-{whole['trace']}-{backend['id']}-01"
    assert seen.header("tracestate") == "vendor=1"


async def test_a_refusal_has_its_trace_and_its_line_too(gateway, collector):
    async with gateway.client("ogw_aaaaaaaa_nothing") as client:
        answer = await client.post("/api/chat", json={"model": MODEL, "messages": []})
    assert answer.status_code == 401
    whole, *steps = await asyncio.to_thread(trace_of, collector, answer.headers["x-request-id"])
    assert whole["attributes"]["error.type"] == answer.headers["x-gateway-error"]
    assert [step["name"] for step in steps] == ["admit"]
    line = await line_of(gateway, answer.headers["x-request-id"])
    assert (line["status"], line["outcome"], line["error"]) == (401, "refused", answer.headers["x-gateway-error"])


async def test_the_access_log_is_one_line_of_json_a_call(gateway):
    async with gateway.client(gateway.key) as client:
        client.headers["x-request-id"] = "theirs-1"
        answer = await client.post("/api/generate", json={"model": MODEL, "prompt": "Hello"})
        listing = await client.get("/api/tags")
    request_id = answer.headers["x-request-id"]
    record = await gateway.record(request_id)
    line = await line_of(gateway, request_id)
    wanted = {
        "id": request_id, "client_id": "theirs-1", "method": "POST", "endpoint": "/api/generate", "stream": True,
        "status": 200, "outcome": "ok", "error": "", "tenant": "acme", "model": f"{MODEL}:latest", "backend": "one",
        "prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens,
        "bytes_in": record.bytes_in, "bytes_out": record.bytes_out, "attempts": 1, "address": "127.0.0.1",
        "total_ms": record.total_us / 1000, "key": gateway.key.split("_")[1],
    }  # fmt: skip
    assert wanted.items() <= line.items()
    assert (await line_of(gateway, listing.headers["x-request-id"]))["outcome"] == "answered"


async def test_an_answer_that_was_kept_is_seen_as_one(gateway, collector):
    body = {"model": MODEL, "prompt": "Hello", "stream": False, "options": {"seed": 1, "temperature": 0}}
    before = await scrape(gateway.url)
    async with gateway.client(gateway.key) as client:
        made, kept = [await client.post("/api/generate", json=body) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in (made, kept)] == ["MISS", "HIT"]
    line = await line_of(gateway, kept.headers["x-request-id"])
    assert (line["outcome"], line["model"], line["backend"]) == ("cached", f"{MODEL}:latest", "")
    whole, *steps = await asyncio.to_thread(trace_of, collector, kept.headers["x-request-id"])
    assert whole["attributes"]["gateway.outcome"] == "cached"
    assert "backend" not in [step["name"] for step in steps]
    async with asyncio.timeout(30):  # gauges are of the last second
        while True:
            after = await scrape(gateway.url)
            if after.total("ollama_cache_size") > before.total("ollama_cache_size"):
                break
            await asyncio.sleep(0.05)
    for name in ("gateway_cache_hits_total", "ollama_cache_hits_total"):
        assert after.total(name) - before.total(name) == 1, name
    for name in ("gateway_cache_misses_total", "ollama_cache_misses_total"):
        assert after.total(name) - before.total(name) >= 1, name
    assert after.total("gateway_calls_total", outcome="cached", model=f"{MODEL}:latest") == 1


async def test_the_collector_is_sent_the_headers_it_asks_for(gateway, collector):
    await asyncio.to_thread(collector.wait_for, lambda: collector.headers)
    assert collector.headers[0]["x-collector-token"] == "a secret of the collector"
    assert "a secret of the collector" not in gateway.log()


async def test_a_collector_that_goes_away_holds_up_nothing(gateway, collector):
    """The last test of this module: nothing is traced after it."""
    collector.close()
    async with gateway.client(gateway.key) as client:
        for _ in range(20):
            answer = await client.post("/api/generate", json={"model": MODEL, "prompt": "Hello", "stream": False})
            assert answer.status_code == 200
    began = time.monotonic()
    assert await asyncio.to_thread(gateway.stop) == 0
    print(f"ended after {time.monotonic() - began:.1f} s")
