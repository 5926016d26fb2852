"""The official Ollama client with only URL and key changed, and the bytes of a backend as it sent them."""

import asyncio
import json

import ollama
import pytest

from tests.live.tee import Tee

QUESTION = [{"role": "user", "content": "Why is the sky blue? <&> \u2028 é"}]
TOOL = {
    "type": "function",
    "function": {"name": "get_time", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}

BODIES = {
    "chat, streamed": ("/api/chat", {"model": "llama3.2", "messages": QUESTION}),
    "chat, whole": ("/api/chat", {"model": "llama3.2", "messages": QUESTION, "stream": False}),
    "chat with a tool": (
        "/api/chat",
        {"model": "llama3.2", "messages": [{"role": "user", "content": "use the tool"}], "tools": [TOOL]},
    ),
    "chat with a schema": (
        "/api/chat",
        {
            "model": "llama3.2",
            "messages": QUESTION,
            "format": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
    ),
    "generate, streamed": ("/api/generate", {"model": "llama3.2:latest", "prompt": "hi"}),
    "generate, whole": ("/api/generate", {"model": "llama3.2", "prompt": "hi", "stream": False}),
    "load": ("/api/generate", {"model": "llama3.2"}),
    "embed": ("/api/embed", {"model": "nomic-embed-text", "input": ["one", "two"]}),
    "embeddings": ("/api/embeddings", {"model": "nomic-embed-text", "prompt": "one"}),
    "show": ("/api/show", {"model": "llama3.2"}),
}


@pytest.fixture
async def tee(fake):
    async with Tee(fake.url) as relay:
        yield relay


@pytest.fixture
async def through_tee(make_gateway, tee):
    made = make_gateway()
    made.make_backend(tee.url)
    # Others are shown less of a model (T4).
    made.key_row, made.key = made.make_key(may_manage=True)
    # Off the loop, in which the backend has to answer its first probes.
    return await asyncio.to_thread(made.start)


@pytest.fixture
async def client(gateway):
    made = ollama.AsyncClient(host=gateway.url, headers={"Authorization": f"Bearer {gateway.key}"})
    yield made
    await made.close()


def counts_of(call):
    return call.prompt_tokens, call.tokens


async def test_answers_are_the_backends_bytes(through_tee, tee, fake):
    async with through_tee.client(through_tee.key) as http:
        for name, (path, body) in BODIES.items():
            before = len(tee.bodies(path))
            answer = await http.post(path, json=body)
            assert answer.status_code == 200, name
            assert answer.content == tee.bodies(path)[before], name
        assert (await http.get("/api/tags")).content == tee.bodies("/api/tags")[-1]
        assert (await http.get("/api/ps")).content == tee.bodies("/api/ps")[-1]
    records = await through_tee.wait_for_records(len(BODIES))
    assert len(records) == len(BODIES)
    assert {record.outcome for record in records} == {"ok"}


async def test_chat_streamed(client, gateway, fake):
    parts = [part async for part in await client.chat(model="llama3.2", messages=QUESTION, stream=True)]
    assert parts[-1].done
    await one_record_with_the_fakes_counts(gateway, fake, "/api/chat", stream=True)


async def test_chat_whole(client, gateway, fake):
    answer = await client.chat(model="llama3.2", messages=QUESTION)
    assert answer.message.content.startswith("tok1")
    await one_record_with_the_fakes_counts(gateway, fake, "/api/chat", stream=False)


async def test_generate_streamed_and_whole(client, gateway, fake):
    answer = await client.generate(model="llama3.2", prompt="hi")
    assert answer.done
    parts = [part async for part in await client.generate(model="llama3.2", prompt="hi", stream=True)]
    assert "".join(part.response for part in parts) == answer.response
    records = await gateway.wait_for_records(2)
    calls = [call for call in fake.calls if call.path == "/api/generate"]
    assert sorted((r.prompt_tokens, r.completion_tokens) for r in records) == sorted(map(counts_of, calls))


async def test_embed(client, gateway, fake):
    answer = await client.embed(model="nomic-embed-text", input=["one", "two"])
    assert len(answer.embeddings) == 2
    (record,) = await gateway.wait_for_records(1)
    assert (record.prompt_tokens, record.completion_tokens, record.estimated) == (answer.prompt_eval_count, 0, False)


async def test_list_show_ps(client, gateway, fake):
    names = {model.model for model in (await client.list()).models}
    assert names == {"llama3.2:latest", "nomic-embed-text:latest"}
    assert "completion" in (await client.show("llama3.2")).capabilities
    await client.generate(model="llama3.2", prompt="")
    assert [model.model for model in (await client.ps()).models] == ["llama3.2:latest"]


async def test_errors_reach_the_client_in_its_own_form(client, gateway, fake):
    with pytest.raises(ollama.ResponseError) as caught:
        await client.chat(model="nope", messages=QUESTION)
    assert (caught.value.status_code, caught.value.error) == (404, "model 'nope' not found")
    async with ollama.AsyncClient(host=gateway.url) as nobody:
        with pytest.raises(ollama.ResponseError, match="API key") as caught:
            await nobody.chat(model="llama3.2", messages=QUESTION)
    assert caught.value.status_code == 401


@pytest.mark.parametrize("stream", [False, True])
async def test_the_curl_lines_of_the_predecessors(gateway, fake, stream):
    """As in their READMEs, with the model installed here and a key added."""
    fake.add_model("llama3")
    body = json.dumps({"model": "llama3", "prompt": "Hi", "stream": stream})
    line = ["curl", "-s", f"{gateway.url}/api/generate", "-H", "Content-Type: application/json", "-d", body]
    line += ["-H", f"Authorization: Bearer {gateway.key}"]
    curl = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
    printed, _ = await curl.communicate()
    lines = [json.loads(line) for line in printed.splitlines()]
    assert lines[-1].get("done"), lines
    assert (len(lines) > 1) == stream


async def test_the_python_lines_of_the_predecessor_with_the_bare_key(gateway, fake):
    fake.add_model("llama3.1:8b")
    async with ollama.AsyncClient(host=gateway.url, headers={"Authorization": gateway.key}) as client:
        stream = await client.chat(
            model="llama3.1:8b", messages=[{"role": "user", "content": "Hello, how are you today?"}], stream=True
        )
        text = "".join([chunk.message.content async for chunk in stream])
    assert text.startswith("tok1")


async def one_record_with_the_fakes_counts(gateway, fake, path, *, stream):
    (record,) = await gateway.wait_for_records(1)
    (call,) = [call for call in fake.calls if call.path == path]
    assert (record.prompt_tokens, record.completion_tokens) == counts_of(call)
    assert (record.outcome, record.stream, record.estimated) == ("ok", stream, False)
    assert call.header("x-request-id") == record.id.hex
