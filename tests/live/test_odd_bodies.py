"""Rows J1, J2, J12 with real servers: whatever a body says twice or in odd letters, no 500, and one meaning for all."""

import asyncio
import os
import random

import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from tests import go
from tests.live.raw import RawClient, bearer
from tests.live.seen import calls
from tests.proxy.odd_bodies import DIALECTS, odd_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Of each path; ODD_BODIES=10000 takes some minutes. The functions see as many at each run (test_go_decoder.py).
BODIES = int(os.environ.get("ODD_BODIES", "500"))
CAP = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    """Models of every name that the bodies use, so that one hidden in a body would be answered."""
    async with FakeOllama(models=["llama3.2", "other"], slots=8, tokens=3) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, fake):
    made = make_shared_gateway(MAX_OUTPUT_TOKENS=str(CAP), DEFAULT_OUTPUT_TOKENS="40")
    made.make_backend(fake.url, slots=8)
    _, made.key = made.make_key(models_allowed=["llama3.2"])
    return await asyncio.to_thread(made.start)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return go.build(tmp_path_factory.mktemp("go"))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", ["/api/chat", *DIALECTS])
async def test_j1_j2_a_backend_reads_what_the_gateway_decided(gateway, fake, decoder, path):
    rng = random.Random(f"live {path}")
    since = fake.log.totals.calls
    statuses, streams = {}, {}
    async with RawClient(gateway.port) as client:
        for _ in range(BODIES):
            body = odd_body(rng, path)
            answer = await client.ask("POST", path, bearer(gateway.key), body=body)
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            assert answer.status in (200, 400, 404), (body, answer)
            if answer.status == 200:
                kind = answer.all("content-type")[0]
                streams[answer.all("x-request-id")[0]] = "event-stream" in kind or "ndjson" in kind
    seen = calls(fake, since)
    for call, answer in zip(seen, go.understood(decoder, [(path, call.body) for call in seen]), strict=True):
        assert (call.path, answer["error"], answer["model"]) == (path, "", "llama3.2"), call.body
        assert 0 < answer["cap"] <= CAP or path == "/v1/embeddings", call.body
        assert (answer["loads"], answer["debug"]) == (None, False), call.body
        assert not [kind for kind in answer["tools"] or () if kind.startswith("web_")], call.body
        call_id = call.header("x-request-id")
        if call_id in streams and not nothing_to_say(path, call.json):
            assert streams[call_id] is answer["stream"], call.body
        if answer["stream"] and "completions" in path:
            assert answer["usage"], call.body
    records = await gateway.wait_for_records(len(streams), 30, id__in=list(streams))
    assert {record.model for record in records} == {"llama3.2:latest"}
    print(f"{path}: {len(seen)} of {BODIES} reached the fake: {statuses}")
    assert len(streams) > BODIES / 50


def nothing_to_say(path, request):
    """A request that only loads its model is answered in one piece."""
    return (path == "/api/chat" and not request.get("messages")) or (
        path == "/v1/completions" and not request.get("prompt")
    )
