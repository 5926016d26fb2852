"""The cache and the sharing of answers in flight, on a real gateway (issue 6)."""

import asyncio
import json

import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "llama3.2"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend():
    async with FakeOllama(models=[MODEL, "qwen3:8b", "nomic-embed-text"], slots=200) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, backend):
    made = make_shared_gateway()
    made.make_backend(backend.url, slots=200)
    _, made.key = made.make_key("all", cache_policy="all")
    await asyncio.to_thread(made.start)
    return await made.until_it_lists(MODEL, key=made.key)


def chat(text, **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_same_call_twice_is_generated_once(gateway, backend, stream):
    backend.reset()
    async with gateway.client(gateway.key) as client:
        first = await client.post("/api/chat", json=chat(f"twice {stream}", stream=stream))
        second = await client.post("/api/chat", json=chat(f"twice {stream}", stream=stream))
    print(first.headers, second.headers)
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
    assert first.content == second.content
