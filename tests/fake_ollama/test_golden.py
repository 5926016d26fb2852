"""The golden transcripts of the API contract, one test each."""

import json
import re

import pytest

from proxy.fake_ollama import Model

from .conftest import chat, serving

JSON_UTF8 = "application/json; charset=utf-8"
NUMBERS = (
    "_duration",
    "prompt_eval_count",
    "eval_count",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
)
TEXTS = ("created_at", "expires_at", "modified_at", "id", "request_id", "digest", "modelfile", "license", "template")
TIMES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def settled(value):
    """With what differs from run to run replaced, after a look at its form."""
    if isinstance(value, list):
        return [settled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: settled_field(key, item) for key, item in value.items()}


def settled_field(key, value):
    if key in ("created_at", "expires_at", "modified_at"):
        assert TIMES.fullmatch(value), value
    if key in TEXTS:
        assert isinstance(value, str) and value
        return key
    if key == "created" or key.endswith(NUMBERS):
        assert type(value) is int and value >= 0
        return 0 if value == 0 else 1
    return settled(value)


def same(answer, expected):
    assert [settled(line) for line in answer.lines] == [settled(json.loads(line)) for line in expected.split("\n")]


def same_events(answer, expected):
    frames = [data if data == b"[DONE]" else settled(data) for _, data in answer.events]
    wanted = [line.removeprefix("data: ") for line in expected.split("\n")]
    assert frames == [b"[DONE]" if line == "[DONE]" else settled(json.loads(line)) for line in wanted]


async def test_chat_stream(fake, wire):
    fake.faults(content=["Hi"])
    answer = await wire.post("/api/chat", chat())
    assert answer.status == 200
    assert answer.names == ["Content-Type", "Transfer-Encoding"]
    assert answer.header("Content-Type") == "application/x-ndjson"
    assert len(answer.chunks) == 2
    same(
        answer,
        '{"model":"llama3.2","created_at":"2026-08-22T10:00:00.1Z","message":{"role":"assistant","content":"Hi"},"done":false}\n'
        '{"model":"llama3.2","created_at":"2026-08-22T10:00:00.2Z","message":{"role":"assistant","content":""},"done":true,'
        '"done_reason":"stop","total_duration":210000000,"load_duration":8000000,"prompt_eval_count":26,'
        '"prompt_eval_duration":40000000,"eval_count":2,"eval_duration":60000000}',
    )


async def test_chat_with_unknown_model(wire):
    answer = await wire.post("/api/chat", chat("nope"))
    assert (answer.status, answer.header("Content-Type")) == (404, JSON_UTF8)
    assert answer.names == ["Content-Type", "Content-Length"]
    assert answer.body == b"""{"error":"model 'nope' not found"}"""


async def test_openai_chat_with_unknown_model(wire):
    answer = await wire.post("/v1/chat/completions", chat("nope"))
    assert (answer.status, answer.header("Content-Type")) == (404, "application/json")
    assert answer.body == (
        b"""{"error":{"message":"model 'nope' not found","type":"not_found_error","param":null,"code":null}}\n"""
    )


async def test_messages_with_unknown_model(wire):
    answer = await wire.post("/v1/messages", chat("nope", max_tokens=16))
    assert (answer.status, answer.header("Content-Type")) == (404, "application/json")
    (value,) = answer.lines
    assert re.fullmatch("req_[0-9a-f]{24}", value.pop("request_id"))
    assert value == {"type": "error", "error": {"type": "not_found_error", "message": "model 'nope' not found"}}


async def test_generate_with_a_full_load_queue():
    async with serving(models=["a", "b", "c"], load_seconds=60, max_queue=1) as (fake, wire):
        await wire.send("POST", "/api/generate", {"model": "a", "prompt": "x"})
        await fake.saw("load")
        await wire.send("POST", "/api/generate", {"model": "b", "prompt": "x"})
        await fake.saw("queued")
        answer = await wire.post("/api/generate", {"model": "c", "prompt": "x"})
    assert (answer.status, answer.header("Content-Type")) == (503, JSON_UTF8)
    assert answer.body == b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
    assert answer.header("Retry-After") is None


async def test_unload(wire):
    answer = await wire.post("/api/generate", {"model": "llama3.2", "keep_alive": 0})
    assert (answer.status, answer.header("Content-Type")) == (200, JSON_UTF8)
    same(
        answer,
        '{"model":"llama3.2","created_at":"2026-08-22T10:00:00Z","response":"","done":true,"done_reason":"unload"}',
    )


async def test_pull_of_an_unknown_model(wire):
    answer = await wire.post("/api/pull", {"model": "nope"})
    assert (answer.status, answer.header("Content-Type")) == (200, "application/x-ndjson")
    assert answer.body == (b'{"status":"pulling manifest"}\n{"error":"pull model manifest: file does not exist"}\n')


async def test_generate_whose_runner_dies(fake, wire):
    fake.faults(content=["The", " end"], error_after_chunks=1)
    answer = await wire.post("/api/generate", {"model": "llama3.2", "prompt": "x"})
    assert (answer.status, answer.header("Content-Type")) == (200, "application/x-ndjson")
    same(
        answer,
        '{"model":"llama3.2","created_at":"2026-08-22T10:00:00.1Z","response":"The","done":false}\n'
        '{"error":"an error was encountered while running the model: unexpected EOF"}',
    )


async def test_openai_stream_whose_runner_dies(fake, wire):
    fake.faults(content=["The", " end"], error_after_chunks=1)
    answer = await wire.post("/v1/chat/completions", chat(stream=True))
    assert (answer.status, answer.header("Content-Type")) == (200, "text/event-stream")
    same_events(
        answer,
        'data: {"id":"chatcmpl-88","object":"chat.completion.chunk","created":1787392800,"model":"llama3.2",'
        '"system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"The"},"finish_reason":null}]}\n'
        'data: {"id":"chatcmpl-88","object":"chat.completion.chunk","created":1787392800,"model":"",'
        '"system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}',
    )


async def test_completion_stream_with_usage(fake, wire):
    fake.faults(content=[" there"])
    body = {"model": "m", "prompt": "Hi", "stream": True, "stream_options": {"include_usage": True}}
    answer = await wire.post("/v1/completions", body)
    assert (answer.status, answer.header("Content-Type")) == (200, "text/event-stream")
    same_events(
        answer,
        'data: {"id":"cmpl-7","object":"text_completion","created":1787392800,'
        '"choices":[{"text":" there","index":0,"finish_reason":null}],'
        '"model":"m","system_fingerprint":"fp_ollama","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n'
        'data: {"id":"cmpl-7","object":"text_completion","created":1787392801,'
        '"choices":[{"text":"","index":0,"finish_reason":"stop"}],'
        '"model":"m","system_fingerprint":"fp_ollama","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}\n'
        'data: {"id":"cmpl-7","object":"text_completion","created":1787392801,'
        '"choices":[],"model":"m","system_fingerprint":"fp_ollama",'
        '"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}\n'
        "data: [DONE]",
    )


async def test_ps(wire):
    await wire.post("/api/generate", {"model": "llama3.2"})
    answer = await wire.call("GET", "/api/ps")
    assert (answer.status, answer.header("Content-Type")) == (200, JSON_UTF8)
    same(
        answer,
        '{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest","size":3338801152,"digest":"a80c4f17",'
        '"details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"3.2B",'
        '"quantization_level":"Q4_K_M"},"expires_at":"2026-08-22T12:05:00.123456789+02:00","size_vram":3338801152,"context_length":4096}]}',
    )
    assert re.fullmatch("[0-9a-f]{64}", answer.lines[0]["models"][0]["digest"])


async def test_show(wire):
    answer = await wire.post("/api/show", {"model": "llama3.2"})
    assert (answer.status, answer.header("Content-Type")) == (200, JSON_UTF8)
    value = answer.lines[0]
    assert value["model_info"].pop("general.parameter_count") > 3_000_000_000
    assert settled(value) == settled(
        {
            "license": "…",
            "modelfile": '# Modelfile generated by "ollama show"\n…',
            "parameters": 'stop                           "<|eot_id|>"',
            "template": "{{ .Prompt }}",
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": "llama",
                "families": ["llama"],
                "parameter_size": "3.2B",
                "quantization_level": "Q4_K_M",
            },
            "model_info": {
                "general.architecture": "llama",
                "llama.context_length": 131072,
                "llama.embedding_length": 3072,
                "tokenizer.ggml.tokens": [],
            },
            "capabilities": ["completion", "tools"],
            "modified_at": "2026-05-10T08:06:48.639712648-07:00",
        }
    )
    assert b"\\u003c|eot_id|\\u003e" in answer.body


async def test_v1_models_with_nothing_installed():
    async with serving(models=[]) as (_, wire):
        answer = await wire.call("GET", "/v1/models")
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json")
    assert answer.body == b'{"object":"list","data":null}\n'


@pytest.mark.parametrize("target", ["/api/tags", "/nowhere", "/_fakery"])
async def test_foreign_origin(wire, target):
    answer = await wire.call("GET", target, headers=[("Origin", "https://evil.example")])
    assert answer.status == 403
    assert answer.names == ["Content-Length"]
    assert answer.header("Content-Length") == "0"


def test_defaults_follow_from_the_name():
    assert Model("mxbai-embed-large").capabilities == ("embedding",)
    assert Model("qwen3:0.6b").capabilities == ("completion", "tools", "thinking")
    assert Model("qwen3:0.6b").parameter_size == "0.6B"
    assert Model("llava").capabilities == ("completion", "tools", "vision")
    assert Model("user/m").name == "user/m:latest"
