"""/_fake/ over HTTP, the server as a process, and the official client."""

import asyncio
import base64
import signal
import sys

import ollama
import pytest

from .conftest import chat


async def test_calls_show_what_was_sent(fake, wire, client):
    await wire.post("/api/chat?x=1", chat(), [("Authorization", "Bearer secret"), ("X-a", "1"), ("x-A", "2")])
    (call,) = (await client.get("/_fake/calls")).json()
    assert (call["method"], call["target"], call["status"]) == ("POST", "/api/chat?x=1", 200)
    assert ["Authorization", "Bearer secret"] in call["headers"]
    assert [value for name, value in call["headers"] if name.lower() == "x-a"] == ["1", "2"]
    assert call["json"] == chat()
    assert base64.b64decode(call["body"]).startswith(b'{"model"')
    assert (call["tokens"], call["prompt_tokens"]) == (16, 1)
    assert call["complete"] and call["generated"] and not call["disconnected"]
    assert call["started"] < call["ended"]


async def test_counts(fake, wire, client):
    await wire.post("/api/chat", chat())
    await wire.post("/api/chat", chat("nope"))
    counts = (await client.get("/_fake/counts")).json()
    assert (counts["calls"], counts["generations_started"], counts["generations_finished"]) == (2, 1, 1)
    assert counts["loads"] == {"llama3.2:latest": 1}
    # The connection that asks is not among them.
    assert (counts["connections_opened"], counts["connections_open"]) == (2, 2)


async def test_waiting_for_a_disconnect(fake, wire, client):
    answer = await client.get("/_fake/calls?wait=disconnect&timeout=0.01")
    assert answer.status_code == 504
    await client.post("/_fake/faults", json={"hang_after_chunks": 1})
    reader, writer = await wire.send("POST", "/api/chat", chat())
    await reader.readuntil(b"tok1")
    waiting = asyncio.create_task(client.get("/_fake/calls?wait=disconnect&timeout=5"))
    writer.close()
    (call,) = (await waiting).json()
    assert call["disconnected"] and call["tokens"] == 1


async def test_faults_release_models_and_reset(fake, wire, client):
    answer = await client.post("/_fake/faults", json=[{"status": 500, "times": 1}, {"hang_before_headers": True}])
    assert answer.json() == {"faults": 2}
    assert (await client.post("/_fake/faults", json={"nonsense": 1})).status_code == 400
    assert (await wire.post("/api/chat", chat())).status == 500
    waiting = asyncio.create_task(wire.post("/api/chat", chat()))
    await client.get("/_fake/counts?wait=hung")
    await client.post("/_fake/release")
    assert (await waiting).status == 200
    body = {
        "add": ["extra", {"name": "big:70b", "context_length": 100}],
        "remove": ["m"],
        "digest": {"llava": "f" * 64},
    }
    names = (await client.post("/_fake/models", json=body)).json()["models"]
    assert "extra:latest" in names and "big:70b" in names and "m:latest" not in names
    await client.post("/_fake/faults", json={"log_bodies": False, "tokens": 3})
    await client.post("/_fake/reset")
    assert (await wire.post("/api/chat", chat(stream=False))).lines[0]["eval_count"] == 3
    (call,) = (await client.get("/_fake/calls")).json()
    assert (call["body"], call["tokens"]) == ("", 3)
    assert (await client.get("/_fake/nowhere")).status_code == 404


async def test_official_client(fake):
    client = ollama.AsyncClient(host=fake.url)
    message = [{"role": "user", "content": "hi"}]
    answer = await client.chat("llama3.2", message)
    assert answer.message.content.startswith("tok1 tok2") and answer.eval_count == 16
    parts = [part async for part in await client.chat("qwen3:8b", message, stream=True)]
    assert parts[0].message.thinking == "thought1" and parts[-1].done
    answer = await client.generate("llama3.2", "hi")
    assert answer.response.endswith("tok16") and answer.context
    parts = [part async for part in await client.generate("llama3.2", "hi", stream=True)]
    assert len(parts) == 17
    assert len((await client.embed("nomic-embed-text", ["a", "b"])).embeddings) == 2
    assert "llama3.2:latest" in [model.model for model in (await client.list()).models]
    assert (await client.show("llama3.2")).details.family == "llama"
    assert {model.name for model in (await client.ps()).models} >= {"llama3.2:latest", "qwen3:8b"}
    assert [part.status async for part in await client.pull("llama3.2", stream=True)][-1] == "success"
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        await client.chat("nope", message)
    fake.faults(error_after_chunks=1, error="broken")
    with pytest.raises(ollama.ResponseError, match="broken"):
        _ = [part async for part in await client.chat("llama3.2", message, stream=True)]
    await client._client.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_as_a_process(number):
    arguments = ["-m", "proxy.fake_ollama", "--port", "0", "--models", "a,b:7b", "--slots", "2"]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    line = (await process.stdout.readline()).decode()
    assert line.startswith("listening on http://127.0.0.1:")
    client = ollama.AsyncClient(host=line.split()[-1])
    assert {model.model for model in (await client.list()).models} == {"a:latest", "b:7b"}
    # uvloop, unlike asyncio, writes at the end of a turn: the stream must arrive all the same.
    parts = [part async for part in await client.chat("a", [{"role": "user", "content": "hi"}], stream=True)]
    assert len(parts) == 17
    await client._client.aclose()
    process.send_signal(number)
    assert await process.wait() == 0
    process._transport.close()
