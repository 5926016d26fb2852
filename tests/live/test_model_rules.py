"""Rows M1, M3, M4 with real servers: one name for a model, policy instead of load options, an end to output."""

import asyncio
import json

import httpx
import pytest
import pytest_asyncio

from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.options import LOAD_TIME
from proxy.models import ModelAlias, ModelPolicy
from tests.live.seen import calls, new_calls, no_calls
from tests.no_tls import NO_TLS

pytestmark = pytest.mark.asyncio(loop_scope="module")

EAGER = {
    "keep_alive": -1,
    "shift": False,
    "_debug_render_only": True,
    "options": {"num_ctx": 2048, "num_gpu": 0, "num_thread": 1, "num_batch": 1, "use_mmap": False, "num_predict": 3},
}


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway(MAX_OUTPUT_TOKENS="100", DEFAULT_OUTPUT_TOKENS="40", CALL_TOTAL_SECONDS="1.5")
    made.make_backend(shared_fake.url, slots=8)
    _, made.key = made.make_key()
    _, made.bound_key = made.make_key("bound", models_allowed=["llama3.2"], max_output_tokens=7)
    _, made.managing_key = made.make_key("manages", may_manage=True)
    made.rows(ModelPolicy).create(
        pattern="qwen3:*",
        num_ctx=8192,
        load_options={"num_gpu": 99, "use_mmap": True},
        keep_alive="30m",
        max_output_tokens=50,
    )
    made.rows(ModelAlias).create(pattern="gpt-4o", model="qwen3:8b")
    return await asyncio.to_thread(made.start)


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    return shared_fake


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway):
    async with gateway.client(gateway.key) as made:
        yield made


# M1


@pytest.mark.parametrize(
    "spelling",
    [
        *("llama3.2", "LLAMA3.2", "llama3.2:latest", "library/llama3.2", "registry.ollama.ai/library/llama3.2:Latest"),
        *("https://registry.ollama.ai/library/llama3.2", " llama3.2 ", "llama3.2:local"),
    ],
)
async def test_m1_all_spellings_are_one_decision_and_one_record(gateway, fake, spelling):
    with new_calls(fake) as seen:
        async with gateway.client(gateway.bound_key) as client:
            answer = await client.post("/api/chat", json=chat(model=spelling, stream=False))
    assert answer.status_code == 200
    assert answer.json()["model"] == spelling.strip(), "as Ollama does: the name that was sent"
    assert seen[0].json["model"] in ("llama3.2", "llama3.2:latest")
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.model, record.completion_tokens) == ("llama3.2:latest", 7)


async def test_m1_a_stream_and_an_embedding_bear_the_name_that_was_asked(gateway, fake):
    async with gateway.client(gateway.key) as client:
        for asked in ("LLAMA3.2", "gpt-4o", "llama3.2"):
            text = json.dumps({"model": "llama3.2"})
            body = chat(model=asked, messages=[{"role": "user", "content": text}], options={"num_predict": 5})
            answer = await client.post("/api/chat", json=body)
            lines = [json.loads(line) for line in answer.text.splitlines()]
            assert [line["model"] for line in lines] == [asked] * len(lines)
            assert lines[-1]["done"]
        answer = await client.post("/api/embed", json={"model": "Nomic-Embed-Text", "input": "x"})
        assert answer.json()["model"] == "Nomic-Embed-Text"
        assert len(answer.content) == int(answer.headers["content-length"])


@pytest.mark.parametrize(
    ("spelling", "with_tag"),
    [
        ("qwen3:8b", "qwen3:8b"),
        ("QWEN3:8B", "QWEN3:8B"),
        ("library/qwen3:8b", "qwen3:8b"),
        ("gpt-4o", "gpt-4o:latest"),
        ("llama3.2:3b", "llama3.2:3b"),
        ("nope", "nope:latest"),
    ],
)
async def test_m1_another_model_is_not_found_by_a_key_that_may_not_use_it(gateway, fake, spelling, with_tag):
    async with gateway.client(gateway.bound_key) as client:
        with no_calls(fake):
            for path, said in (("/api/chat", spelling), ("/api/generate", spelling), ("/api/show", with_tag)):
                answer = await client.post(path, json=chat(model=spelling))
                assert (answer.status_code, answer.json()) == (404, {"error": f"model '{said}' not found"})
            for path in ("/api/embed", "/api/embeddings"):
                answer = await client.post(path, json={"model": spelling, "input": "x", "prompt": "x"})
                expected = f'model "{spelling}" not found, try pulling it first'
                assert (answer.status_code, answer.json()) == (404, {"error": expected})


@pytest.mark.parametrize("body", [{"model": "llama3.2", "name": "qwen3:8b"}, {"name": "llama3.2", "model": "llama3.2"}])
async def test_m1_model_and_name_at_once_are_refused(client, fake, body):
    with no_calls(fake):
        assert (await client.post("/api/show", json=body)).status_code == 400


async def test_m1_name_alone_stands_for_model_where_ollama_takes_it(client, fake):
    with new_calls(fake) as seen:
        assert (await client.post("/api/show", json={"name": "LLAMA3.2"})).status_code == 200
    assert seen[0].json == {"model": "llama3.2"}
    with no_calls(fake):
        assert (await client.post("/api/chat", json={"name": "llama3.2", "messages": []})).status_code == 400


# M3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", chat(stream=False, **EAGER)),
        ("/api/chat", chat(**EAGER)),
        ("/api/generate", {"model": "llama3.2", "prompt": "hi", "stream": False, **EAGER}),
        ("/api/generate", {"model": "llama3.2", **EAGER}),
        ("/api/embed", {"model": "nomic-embed-text", "input": "hi", **EAGER}),
        ("/api/embeddings", {"model": "nomic-embed-text", "prompt": "hi", **EAGER}),
    ],
)
async def test_m3_what_a_model_is_loaded_with_is_not_for_a_client_to_say(client, fake, path, body):
    with new_calls(fake) as seen:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200
    assert "rendered" not in answer.text
    sent = seen[0].json
    assert not sent.keys() & {"keep_alive", "shift", "_debug_render_only"}
    assert not sent.get("options", {}).keys() & set(LOAD_TIME)
    told = set(answer.headers["x-gateway-adjusted"].split(", "))
    assert told == {
        *("keep_alive", "shift", "_debug_render_only"),
        *(f"options.{name}" for name in EAGER["options"] if name != "num_predict"),
    }


@pytest.mark.parametrize("model", ["qwen3:8b", "gpt-4o"])
async def test_m3_policy_says_it(client, fake, model):
    for asked in ({}, {**EAGER, "options": {"num_ctx": 8192, "num_gpu": 0}}, {"keep_alive": 0}):
        with new_calls(fake) as seen:
            answer = await client.post("/api/chat", json=chat(model=model, stream=False, **asked))
        assert answer.status_code == 200, answer.text
        sent = seen[0].json
        assert sent["model"] == "qwen3:8b"
        assert sent["keep_alive"] == "30m"
        assert sent["options"] == {"num_ctx": 8192, "num_gpu": 99, "use_mmap": True, "num_predict": 40}
        assert ("keep_alive" in answer.headers["x-gateway-adjusted"]) is ("keep_alive" in asked)


async def test_m3_more_context_than_there_is_is_refused_and_never_cut(client, fake):
    with no_calls(fake):
        for model, most in (("llama3.2", 4096), ("qwen3:8b", 8192)):
            answer = await client.post("/api/chat", json=chat(model=model, options={"num_ctx": most + 1}))
            assert (answer.status_code, answer.headers["x-gateway-error"]) == (400, "context_too_long")
            assert str(most) in answer.json()["error"]


async def test_m3_more_context_goes_to_the_backend_that_has_it(make_gateway, fake):
    async with FakeOllama(models=["llama3.2"], slots=8) as larger:
        made = make_gateway()
        made.make_backend(fake.url, slots=8)
        made.make_backend(larger.url, "large", slots=8, context_length=32768)
        _, key = made.make_key()
        await asyncio.to_thread(made.start)
        async with made.client(key) as client:
            with no_calls(fake):
                for num_ctx in (4097, 32768):
                    body = chat(stream=False, options={"num_ctx": num_ctx, "num_predict": 2})
                    answer = await client.post("/api/chat", json=body)
                    assert (answer.status_code, answer.headers["x-gateway-backend"]) == (200, "large")
                assert (await client.post("/api/chat", json=chat(options={"num_ctx": 32769}))).status_code == 400
            assert all("num_ctx" not in call.json["options"] for call in calls(larger))


@pytest.mark.parametrize("value", [0, "0", "0s", 0.0, "0h0m0s"])
@pytest.mark.parametrize(
    ("path", "fields"), [("/api/chat", {}), ("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""})]
)
async def test_m3_an_ordinary_key_unloads_nothing_and_is_told_so(gateway, client, fake, path, fields, value):
    await client.post("/api/generate", json={"model": "llama3.2"})
    loaded = [runner.model.name for runner in fake.scheduler.runners.values()]
    assert "llama3.2:latest" in loaded
    with no_calls(fake):
        answer = await client.post(path, json={"model": "llama3.2", "keep_alive": value, **fields})
    assert (answer.status_code, answer.headers["x-gateway-adjusted"]) == (200, "keep_alive")
    assert [runner.model.name for runner in fake.scheduler.runners.values()] == loaded
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as direct:
        real = await direct.post(fake.url + path, json={"model": "nomic-embed-text", "keep_alive": value, **fields})
    assert answer.headers["content-type"] == real.headers["content-type"]
    said, meant = answer.json(), real.json()
    assert {**meant, "model": "llama3.2", "created_at": said["created_at"]} == said
    assert said["done_reason"] == "unload"


async def test_m3_an_unload_of_a_model_it_may_not_use_is_not_found(gateway, fake):
    async with gateway.client(gateway.bound_key) as client:
        with no_calls(fake):
            assert (await client.post("/api/generate", json={"model": "qwen3:8b", "keep_alive": 0})).status_code == 404


async def test_m3_a_key_that_manages_really_unloads(gateway, fake):
    async with gateway.client(gateway.managing_key) as client:
        await client.post("/api/generate", json={"model": "llama3.2", "keep_alive": 120})
        assert "llama3.2:latest" in [runner.model.name for runner in fake.scheduler.runners.values()]
        with new_calls(fake) as seen:
            answer = await client.post("/api/generate", json={"model": "llama3.2", "keep_alive": 0})
    assert answer.json()["done_reason"] == "unload"
    assert seen[0].json["keep_alive"] == 0
    assert "keep_alive" not in answer.headers.get("x-gateway-adjusted", "")
    assert "llama3.2:latest" not in [runner.model.name for runner in fake.scheduler.runners.values()]


# M4


@pytest.mark.parametrize("options", [None, {}, *({"num_predict": value} for value in (None, 0, -1, -2, 10**9, 2**62))])
@pytest.mark.parametrize(
    ("path", "prompt"), [("/api/chat", {"messages": [{"content": "x"}]}), ("/api/generate", {"prompt": "x"})]
)
async def test_m4_output_has_an_end_and_the_client_is_told(gateway, client, fake, path, prompt, options):
    cap = 100 if options and (options["num_predict"] or 0) > 0 else 40
    fake.faults(path=path, tokens=500)
    with new_calls(fake) as seen:
        answer = await client.post(path, json={"model": "llama3.2", "stream": False, "options": options, **prompt})
    assert answer.status_code == 200
    assert seen[0].json["options"] == {"num_predict": cap}
    assert answer.headers["x-gateway-adjusted"] == f"options.num_predict={cap}"
    assert answer.json()["eval_count"] == cap


async def test_m4_the_smallest_of_key_policy_and_gateway_counts(gateway, client, fake):
    huge = {"num_predict": 10**6}
    with new_calls(fake) as seen:
        await client.post("/api/chat", json=chat(model="qwen3:8b", stream=False, options=huge))
        async with gateway.client(gateway.bound_key) as bound:
            await bound.post("/api/chat", json=chat(stream=False, options=huge))
    assert [call.json["options"]["num_predict"] for call in seen] == [50, 7]


async def test_m4_a_backend_that_does_not_stop_is_stopped(gateway, client, fake):
    fake.faults(times=1, path="/api/chat", infinite=True)
    with new_calls(fake) as seen:
        answer = await client.post("/api/chat", json=chat(options={"num_predict": 5}))
        await fake.saw_idle()
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert list(lines[-1]) == ["error"]
    assert answer.headers["x-request-id"] in lines[-1]["error"]
    assert 5 < len(lines) < 1000
    assert seen[0].disconnected
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.error, record.estimated) == ("failed", "broken_stream", True)
    assert 5 < record.completion_tokens < 1000


@pytest.mark.parametrize("stream", [True, False])
async def test_m4_time_ends_what_tokens_do_not(gateway, client, fake, stream):
    fake.faults(times=1, path="/api/chat", infinite=True, tokens_per_second=10)
    with new_calls(fake) as seen:
        answer = await client.post("/api/chat", json=chat(stream=stream, options={"num_predict": 100}))
        await fake.saw_idle()
    assert answer.status_code == (200 if stream else 504)
    assert list(json.loads(answer.text.splitlines()[-1])) == ["error"]
    assert seen[0].disconnected
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.error, record.estimated) == ("timeout", "total_timeout", True)
    assert record.total_us < 10_000_000
    assert record.completion_tokens > 0 or not stream
