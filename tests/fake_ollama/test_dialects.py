"""What the dialects make of one and the same generation."""

import pytest

from .conftest import chat

TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {"tz": {"type": "string"}, "hour": {"type": "integer"}}},
    },
}
USER = [{"role": "user", "content": "use the tool <now>"}]


async def test_chunks_are_numbered_and_counted(wire):
    answer = await wire.post("/api/chat", chat(options={"num_predict": 5}))
    texts = [line["message"]["content"] for line in answer.lines]
    assert texts == ["tok1", " tok2", " tok3", " tok4", " tok5", ""]
    assert len(answer.chunks) == 6
    last = answer.lines[-1]
    assert (last["eval_count"], last["done_reason"]) == (5, "length")
    answer = await wire.post("/api/chat", chat(stream=False, text="x" * 41))
    last = answer.lines[-1]
    assert (last["eval_count"], last["prompt_eval_count"], last["done_reason"]) == (16, 11, "stop")
    assert answer.header("Content-Type") == "application/json; charset=utf-8"
    assert not answer.body.endswith(b"\n")


async def test_seed_and_stop(wire):
    answer = await wire.post("/api/generate", {"model": "m", "prompt": "x", "stream": False, "options": {"seed": 7}})
    assert answer.lines[0]["response"].startswith("tok1s7 tok2s7")
    answer = await wire.post(
        "/api/generate", {"model": "m", "prompt": "x", "stream": False, "options": {"stop": ["tok3"]}}
    )
    assert answer.lines[0]["response"] == "tok1 tok2 "


async def test_thinking_comes_first_and_counts(wire):
    lines = (await wire.post("/api/chat", chat("qwen3:8b", options={"num_predict": 6}))).lines
    assert [line["message"].get("thinking", "") for line in lines[:4]] == [
        "thought1",
        " thought2",
        " thought3",
        " thought4",
    ]
    assert [line["message"]["content"] for line in lines[4:6]] == ["tok1", " tok2"]
    assert lines[-1]["eval_count"] == 6
    lines = (await wire.post("/api/chat", chat("qwen3:8b", think=False))).lines
    assert not any("thinking" in line["message"] for line in lines)


async def test_a_format_hides_the_first_pass_of_a_thinker(wire):
    last = (await wire.post("/api/chat", chat("qwen3:8b", format="json", stream=False))).lines[0]
    assert last["message"]["content"] == '{"tok1":"tok1"}'
    assert (last["eval_count"], last["prompt_eval_count"]) == (4, 5)


async def test_structured_output(wire, client):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
    }
    text = (await wire.post("/api/chat", chat(format=schema, stream=False))).lines[0]["message"]["content"]
    assert text == '{"n":1,"tags":["a"]}'
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    answer = await client.post("/v1/chat/completions", json=chat(response_format=wanted))
    assert answer.json()["choices"][0]["message"]["content"] == text


async def test_native_tool_call(wire):
    lines = (await wire.post("/api/chat", {"model": "m", "messages": USER, "tools": [TOOL]})).lines
    (call,) = lines[0]["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "get_time", "arguments": {"tz": "tok1", "hour": 1}}
    assert lines[-1]["done_reason"] == "stop"
    answer = await wire.post("/api/chat", {"model": "nomic-embed-text", "messages": USER, "tools": [TOOL]})
    assert answer.lines == [{"error": '"nomic-embed-text" does not support chat'}]


async def test_openai_tool_call(wire):
    body = {"model": "m", "messages": USER, "tools": [TOOL]}
    choice = (await wire.post("/v1/chat/completions", body)).lines[0]["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"tz":"tok1","hour":1}'
    events = (await wire.post("/v1/chat/completions", body | {"stream": True})).events
    assert events[0][1]["choices"][0]["delta"]["tool_calls"][0]["type"] == "function"
    assert events[-2][1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    assert events[-1][1] == b"[DONE]"


async def test_openai_stream_has_usage_only_if_asked(wire):
    events = (await wire.post("/v1/chat/completions", chat(stream=True, max_tokens=2))).events
    assert not any("usage" in data for _, data in events[:-1])
    assert [data["choices"][0]["delta"] for _, data in events[:-1]] == [
        {"role": "assistant", "content": "tok1"},
        {"content": " tok2"},
        {},
    ]
    body = chat(stream=True, max_tokens=2, stream_options={"include_usage": True})
    events = (await wire.post("/v1/chat/completions", body)).events
    assert events[-2][1]["choices"] == []
    assert events[-2][1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


async def test_fields_that_openai_has_and_ollama_ignores(wire):
    answer = await wire.post("/v1/chat/completions", chat(max_completion_tokens=2, n=3))
    value = answer.lines[0]
    assert value["usage"]["completion_tokens"] == 16
    assert len(value["choices"]) == 1
    assert answer.body.endswith(b"\n")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"model": "m", "messages": []}, "[] is too short - 'messages'"),
        (chat(reasoning_effort="huge"), "invalid reasoning value"),
        (
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]},
            "invalid image input",
        ),
        ({"messages": USER}, "model is required"),
    ],
)
async def test_openai_refusals(wire, body, text):
    answer = await wire.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.lines[0]["error"]["message"].startswith(text)


async def test_images_need_a_model_that_sees(wire):
    for model, status in (("llava", 200), ("m", 500)):
        body = {"model": model, "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}
        answer = await wire.post("/api/chat", body)
        assert answer.status == status
    # The rejection of llama-server is a document within a string.
    assert answer.lines[0]["error"].startswith('{"error":{"code":500,')


async def test_completions_take_one_string(wire):
    answer = await wire.post("/v1/completions", {"model": "m", "prompt": ["a"]})
    assert answer.lines[0]["error"]["message"] == (
        "json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string"
    )
    value = (await wire.post("/v1/completions", {"model": "m", "prompt": ""})).lines[0]
    assert value["choices"][0]["finish_reason"] == "load"
    value = (await wire.post("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 1})).lines[0]
    assert value["choices"] == [{"text": "tok1", "index": 0, "finish_reason": "length"}]


async def test_anthropic_stream(wire):
    answer = await wire.post("/v1/messages", chat("qwen3:8b", max_tokens=5, stream=True))
    assert answer.header("Cache-Control") == "no-cache"
    assert [name for name, _ in answer.events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 4,
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, last = answer.events[0][1]["message"], answer.events[-2][1]
    assert start["usage"]["output_tokens"] == 0 and start["usage"]["input_tokens"] > 1
    assert last == {
        "type": "message_delta",
        "delta": {"stop_reason": "max_tokens"},
        "usage": {"input_tokens": 1, "output_tokens": 5},
    }


async def test_anthropic_whole(fake, wire):
    tool = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}
    value = (await wire.post("/v1/messages", {"model": "m", "max_tokens": 9, "messages": USER, "tools": [tool]})).lines[
        0
    ]
    assert value["stop_reason"] == "tool_use"
    assert value["content"][0]["name"] == "get_time"
    fake.faults(content=[], times=1)
    value = (await wire.post("/v1/messages", chat("m", max_tokens=9))).lines[0]
    assert value["content"] is None
    for missing, text in (
        ("model", "model is required"),
        ("max_tokens", "max_tokens is required and must be positive"),
        ("messages", "messages is required"),
    ):
        body = {"model": "m", "max_tokens": 9, "messages": USER}
        del body[missing]
        answer = await wire.post("/v1/messages", body)
        assert (answer.status, answer.lines[0]["error"]["message"]) == (400, text)


async def test_responses_stream(wire):
    answer = await wire.post("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 2, "stream": True})
    assert [name.removeprefix("response.") for name, _ in answer.events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [data["sequence_number"] for _, data in answer.events] == list(range(10))
    done = answer.events[-1][1]["response"]
    assert done["status"] == "completed" and done["incomplete_details"] is None
    assert done["output"][0]["content"][0]["text"] == "tok1 tok2"
    assert done["usage"]["total_tokens"] == 3


async def test_responses_with_tools_and_thinking(wire):
    tool = {"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}}}
    body = {"model": "qwen3:8b", "input": USER, "tools": [tool]}
    value = (await wire.post("/v1/responses", body)).lines[0]
    assert [item["type"] for item in value["output"]] == ["reasoning", "function_call"]
    names = [name for name, _ in (await wire.post("/v1/responses", body | {"stream": True})).events]
    assert "response.reasoning_summary_text.done" in names
    assert "response.function_call_arguments.done" in names
    assert names[-1] == "response.completed"


async def test_special_requests(wire):
    for path, field in (("/api/generate", "response"), ("/api/chat", "message")):
        for extra, reason in (({}, "load"), ({"keep_alive": 0}, "unload")):
            answer = await wire.post(path, {"model": "m", **extra})
            value = answer.lines[0]
            assert answer.header("Content-Type") == "application/json; charset=utf-8"
            assert (value["done"], value["done_reason"]) == (True, reason)
            assert field in value and "total_duration" not in value


async def test_context_discloses_the_prompt_unless_raw(wire):
    for raw in (False, True):
        body = {"model": "m", "prompt": "hello", "stream": False, "raw": raw}
        assert ("context" in (await wire.post("/api/generate", body)).lines[0]) is not raw


async def test_debug_render_only(wire):
    value = (await wire.post("/api/chat", chat(_debug_render_only=True))).lines[0]
    assert value["done"] is False
    assert "hi" in value["_debug_info"]["rendered_template"]
