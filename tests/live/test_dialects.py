"""The OpenAI- and Anthropic-compatible routes with real servers: what arrives, what comes back, what is recorded."""

import asyncio
import json

import httpx
import orjson
import pytest
import pytest_asyncio
import zstandard

from tests.live.seen import new_calls, no_calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

HI = [{"role": "user", "content": "hi"}]
FUNCTION = {"name": "get_time", "description": "x", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}

# path → the least that it takes, the field of its cap
BODIES = {
    "/api/chat": ({"messages": HI, "stream": False}, "num_predict"),
    "/api/generate": ({"prompt": "hi", "stream": False}, "num_predict"),
    "/v1/chat/completions": ({"messages": HI}, "max_tokens"),
    "/v1/completions": ({"prompt": "hi"}, "max_tokens"),
    "/v1/responses": ({"input": "hi"}, "max_output_tokens"),
    "/v1/messages": ({"messages": HI, "max_tokens": 1000}, "max_tokens"),
}
NEW = [path for path in BODIES if path.startswith("/v1")]
ALL_NEW = [*NEW, "/v1/embeddings"]


def body_of(path, **fields):
    least = BODIES[path][0] if path in BODIES else {"input": "hi"}
    return {"model": "llama3.2" if path in BODIES else "nomic-embed-text", **least, **fields}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway(MAX_OUTPUT_TOKENS="100", DEFAULT_OUTPUT_TOKENS="40")
    made.make_backend(shared_fake.url, slots=8)
    _, made.key = made.make_key()
    _, made.cloud_key = made.make_key("cloud", may_use_cloud=True)
    _, made.narrow_key = made.make_key("narrow", models_allowed=["llama3.2"])
    return await asyncio.to_thread(made.start)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway):
    async with gateway.client(gateway.key) as made:
        yield made


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    return shared_fake


async def record_of(gateway, answer):
    return await gateway.record(answer.headers["x-request-id"])


def events_of(answer):
    return [event for event in answer.text.split("\n\n") if event]


def data_of(event):
    return json.loads(event.partition("data: ")[2])


# Whole answers


@pytest.mark.parametrize("path", NEW)
@pytest.mark.parametrize("stream", [False, True])
async def test_u3_a_whole_answer_is_recorded_with_the_counts_of_the_backend(gateway, client, fake, path, stream):
    fake.faults(times=1, path=path, tokens=7)
    with new_calls(fake) as seen:
        answer = await client.post(path, json=body_of(path, stream=stream))
    (call,) = seen
    assert answer.status_code == 200
    kind = "text/event-stream" if stream else "application/json"
    assert answer.headers["content-type"] == kind
    assert answer.headers.get("x-accel-buffering") == ("no" if stream else None)
    record = await record_of(gateway, answer)
    assert (record.outcome, record.status, record.stream) == ("ok", 200, stream)
    assert (record.prompt_tokens, record.completion_tokens, record.estimated) == (call.prompt_tokens, 7, False)
    assert record.endpoint == path
    assert record.dialect == ("anthropic" if path == "/v1/messages" else "openai")
    assert record.bytes_out == len(answer.content)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_u3_embeddings_are_recorded_by_what_they_report(gateway, client, fake, encoding):
    more = {"encoding_format": encoding} if encoding else {}
    with new_calls(fake) as seen:
        answer = await client.post("/v1/embeddings", json=body_of("/v1/embeddings", input=["hi", "there"], **more))
    assert answer.status_code == 200
    vectors = [item["embedding"] for item in answer.json()["data"]]
    assert len(vectors) == 2
    assert all(isinstance(vector, str if encoding == "base64" else list) for vector in vectors)
    record = await record_of(gateway, answer)
    assert (record.outcome, record.prompt_tokens, record.completion_tokens) == ("ok", seen[0].prompt_tokens, 0)
    assert not record.estimated


async def test_u3_large_embeddings_are_counted_and_named_as_asked(gateway, client, fake):
    """More than is held back, with the model's name at the very end."""
    texts = [f"text {number}" for number in range(9000)]
    with new_calls(fake) as seen:
        answer = await client.post("/v1/embeddings", json={"model": "Nomic-Embed-Text:latest", "input": texts})
    said = answer.json()
    assert len(answer.content) > 1 << 20
    assert (len(said["data"]), said["model"]) == (9000, "Nomic-Embed-Text:latest")
    record = await record_of(gateway, answer)
    assert (record.outcome, record.prompt_tokens, record.estimated) == ("ok", seen[0].prompt_tokens, False)


@pytest.mark.parametrize("path", NEW)
@pytest.mark.parametrize("stream", [False, True])
async def test_answers_bear_the_name_that_was_asked_by(client, path, stream):
    answer = await client.post(path, json=body_of(path, model="LLAMA3.2:Latest", stream=stream))
    assert answer.status_code == 200
    assert '"model":"LLAMA3.2:Latest"' in answer.text
    assert '"model":"llama3.2' not in answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("asked", [None, {}, {"include_usage": False}, {"include_usage": True}])
async def test_u3_usage_of_a_stream_is_asked_for_and_hidden_again(gateway, client, fake, path, asked):
    more = {"stream_options": asked} if asked is not None else {}
    with new_calls(fake) as seen:
        answer = await client.post(path, json=body_of(path, stream=True, **more))
    assert seen[0].json["stream_options"] == {"include_usage": True}
    shows = bool(asked and asked.get("include_usage"))
    assert ('"usage"' in answer.text) is shows
    assert ('"choices":[]' in answer.text) is shows
    assert events_of(answer)[-1] == "data: [DONE]"
    text = "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for event in events_of(answer)[:-1]
        for choice in data_of(event)["choices"]
    )
    assert text.startswith("tok1 tok2")
    assert not (await record_of(gateway, answer)).estimated


async def test_an_empty_prompt_loads_the_model_and_uses_nothing(gateway, client):
    answer = await client.post("/v1/completions", json=body_of("/v1/completions", prompt="", stream=True))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["choices"][0]["finish_reason"] == "load"
    record = await record_of(gateway, answer)
    assert (record.outcome, record.prompt_tokens, record.completion_tokens) == ("ok", 0, 0)
    assert not record.estimated


@pytest.mark.parametrize("path", NEW)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_costs_its_prompt(gateway, client, fake, path, stream):
    fake.faults(times=1, path=path, content=[])
    answer = await client.post(path, json=body_of(path, stream=stream))
    assert answer.status_code == 200
    record = await record_of(gateway, answer)
    assert (record.outcome, record.completion_tokens, record.estimated) == ("ok", 0, False)
    assert record.prompt_tokens > 0


@pytest.mark.parametrize("path", NEW)
@pytest.mark.parametrize("stream", [False, True])
async def test_u4_u3_without_usage_the_text_is_weighed(gateway, client, fake, path, stream):
    fake.faults(times=1, path=path, no_usage=True, tokens=8)
    answer = await client.post(path, json=body_of(path, stream=stream))
    record = await record_of(gateway, answer)
    assert (record.outcome, record.estimated) == ("ok", True)
    if stream:
        assert 8 <= record.completion_tokens <= 9  # one an event
    else:
        assert record.completion_tokens == -(-len("tok1 tok2 tok3 tok4 tok5 tok6 tok7 tok8") // 4)
    assert record.prompt_tokens > 0


# What policy writes


@pytest.mark.parametrize("path", NEW)
@pytest.mark.parametrize(("asked", "cap"), [(5, 5), (100, 100), (101, 100), (10**9, 100), (2**62, 100)])
async def test_m4_the_cap_is_written_where_ollama_reads_it(client, fake, path, asked, cap):
    field = BODIES[path][1]
    with new_calls(fake) as seen:
        answer = await client.post(path, json=body_of(path, **{field: asked}))
    assert seen[0].json[field] == cap
    assert answer.headers.get("x-gateway-adjusted", "") == ("" if cap == asked else f"{field}={cap}")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_m4_without_a_cap_the_default_is_written(client, fake, path):
    field = BODIES[path][1]
    for more in ({}, {field: None}, {field: 0}, {field: -1}):
        with new_calls(fake) as seen:
            assert (await client.post(path, json=body_of(path, **more))).status_code == 200
        assert seen[0].json[field] == 40


@pytest.mark.parametrize(
    ("given", "cap"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 9}, 5),
        ({"max_completion_tokens": 9, "max_tokens": 5}, 5),
        ({"max_completion_tokens": 10**9}, 100),
        ({"Max_Completion_Tokens": 6}, 6),
        ({"max_completion_tokens": None, "max_tokens": 7}, 7),
    ],
)
async def test_m4_the_newer_name_of_the_cap_is_honoured(gateway, client, fake, given, cap):
    with new_calls(fake) as seen:
        answer = await client.post("/v1/chat/completions", json=body_of("/v1/chat/completions", **given))
    assert seen[0].json["max_tokens"] == cap
    assert "max_completion_tokens" not in seen[0].json
    assert (await record_of(gateway, answer)).completion_tokens <= cap


@pytest.mark.parametrize("path", ALL_NEW)
async def test_m3_switches_of_ollamas_own_routes_do_not_pass(client, fake, path):
    more = {"keep_alive": 0, "Options": {"num_ctx": 8}, "num_ctx": 9, "shift": True}
    with new_calls(fake) as seen:
        answer = await client.post(path, json=body_of(path, **more))
    assert answer.status_code == 200
    assert not {name.lower() for name in seen[0].json} & {"keep_alive", "options", "num_ctx", "shift"}
    told = answer.headers["x-gateway-adjusted"]
    assert told.startswith("keep_alive, num_ctx, options, shift")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_m3_a_prompt_is_not_shown_instead_of_answered(client, fake, path):
    with new_calls(fake) as seen:
        answer = await client.post(path, json=body_of(path, _debug_render_only=True))
    assert "_debug_render_only" not in seen[0].json
    assert "_debug_render_only" in answer.headers["x-gateway-adjusted"]


STEERING = {
    "api_base": "http://evil.example",
    "base_url": "http://evil.example",
    "backend": "two",
    "store": True,
    "id": "0" * 32,
    "request_id": "x",
    "tenant": "other",
    "service_tier": "priority",
    "n": 3,
    "best_of": 4,
}


@pytest.mark.parametrize("path", ALL_NEW)
async def test_j12_no_field_chooses_a_destination_an_account_or_an_id(gateway, client, fake, path):
    more = {**STEERING, "user": "root", "metadata": {"user_id": "root", "tenant": "other"}}
    if path == "/v1/responses":
        more |= {"previous_response_id": "resp_1", "conversation": "conv_1", "background": True}
    with new_calls(fake) as seen:
        answer = await client.post(path, json=body_of(path, **more))
    assert [call.path for call in seen] == [path]
    assert answer.status_code == 200
    record = await record_of(gateway, answer)
    assert (record.tenant_name, record.key_name, record.backend) == ("acme", "key", "one")
    assert record.end_user == "root"
    assert record.id.hex != "0" * 32


async def test_j12_whom_an_app_calls_for_is_a_label_and_the_header_comes_first(gateway, client):
    async def label(path, headers=(), **more):
        answer = await client.post(path, json=body_of(path, **more), headers=dict(headers))
        assert answer.status_code == 200
        return (await record_of(gateway, answer)).end_user

    chat, messages = "/v1/chat/completions", "/v1/messages"
    assert await label(chat, user="a\u0000b") == "a\\x00b"
    assert await label(chat, user="older", safety_identifier="newer") == "newer"
    assert await label(chat, user="x" * 1000) == "x" * 128
    assert await label(chat, user="body", headers={"x-openwebui-user-id": "header"}) == "header"
    assert await label(chat, user=7) == ""
    assert await label(messages, metadata={"user_id": "claude"}) == "claude"
    assert await label(messages, metadata={"User_Id": "claude"}) == "claude"
    assert await label(messages, metadata=None) == ""


WEB = [{"type": "web_search_20250305", "name": "web_search"}, {"TYPE": "Web_Search"}, {"type": "web_fetch_1"}]
OWN = {"/v1/messages": {"name": "f", "input_schema": {}}, "/v1/responses": {"type": "function", "name": "f"}}


@pytest.mark.parametrize("path", OWN)
async def test_m2_searches_of_the_web_are_taken_out_unless_the_key_may(gateway, client, fake, path):
    tools = [*WEB, OWN[path]]
    if path == "/v1/responses":
        tools.append({"type": "namespace", "name": "n", "tools": [OWN[path], *WEB]})
    with new_calls(fake) as seen:
        answer = await client.post(path, json=body_of(path, tools=tools))
        assert answer.status_code == 200
        only = await client.post(path, json=body_of(path, tools=WEB))
        allowed = await client.post(
            path, json=body_of(path, tools=WEB), headers={"authorization": f"Bearer {gateway.cloud_key}"}
        )
        assert (only.status_code, allowed.status_code) == (200, 200)
    assert b"eb_" not in seen[0].body
    assert b'"f"' in seen[0].body
    assert "tools.web_search" in answer.headers["x-gateway-adjusted"]
    assert "tools" not in seen[1].json
    assert len(seen[2].json["tools"]) == 3
    assert "tools.web_search" not in allowed.headers.get("x-gateway-adjusted", "")


@pytest.mark.parametrize("path", [*BODIES, "/v1/embeddings", "/api/embed", "/api/embeddings", "/api/show"])
@pytest.mark.parametrize("name", ["glm-4.7:cloud", "gpt-oss:120b-cloud", "LLAMA3.2:CLOUD", "x/llama3.2:1b-Cloud"])
async def test_m2_models_of_the_cloud_do_not_exist_for_a_key_that_may_not_use_it(client, fake, path, name):
    with no_calls(fake):
        answer = await client.post(path, json=body_of(path, model=name))
    assert answer.status_code == 404
    assert name in answer.text


# Errors


@pytest.mark.parametrize("path", ALL_NEW)
@pytest.mark.parametrize("name", ["nope", "nope:7b"])
async def test_an_unknown_model_reads_as_ollama_puts_it(client, path, name):
    answer = await client.post(path, json=body_of(path, model=name))
    assert answer.status_code == 404
    text = f"model '{name}' not found" if path in NEW else f'model "{name}" not found, try pulling it first'
    assert error_of(path, answer) == ("not_found_error", text)


def error_of(path, answer):
    """(type, message); the shape is held to that of the dialect."""
    said = answer.json()
    assert answer.headers["content-type"].startswith("application/json")
    if path == "/v1/messages":
        assert said.keys() == {"type", "error", "request_id"}
        assert said["type"] == "error"
        assert said["error"].keys() == {"type", "message"}
        assert said["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    else:
        assert said.keys() == {"error"}
        assert said["error"].keys() == {"message", "type", "param", "code"}
    return said["error"]["type"], said["error"]["message"]


MISSING = {
    "/v1/chat/completions": (400, "invalid_request_error", "model is required"),
    "/v1/completions": (404, "not_found_error", "model '' not found"),
    "/v1/embeddings": (404, "not_found_error", "model '' not found"),
    "/v1/responses": (400, "invalid_request_error", "model is required"),
    "/v1/messages": (400, "invalid_request_error", "model is required"),
}


@pytest.mark.parametrize("path", MISSING)
@pytest.mark.parametrize("value", ["", None])
async def test_a_missing_model_is_told_as_ollama_tells_it(client, fake, path, value):
    status, kind, text = MISSING[path]
    with no_calls(fake):
        answer = await client.post(path, json=body_of(path, model=value))
    assert answer.status_code == status
    assert error_of(path, answer)[0] == kind
    assert error_of(path, answer)[1].startswith(text)


WRONG = {
    "/v1/chat/completions": [
        ({"messages": []}, "[] is too short - 'messages'"),
        ({"messages": None}, "[] is too short - 'messages'"),
        ({"messages": "hi"}, '"messages" must be a list'),
        (
            {"messages": [{"role": "user", "content": {"text": "hi"}}]},
            '"messages[].content" must be a string or',
        ),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, '"messages[].content[]" must be an object'),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "text"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
                ]
            },
            "data: URI",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]}, "arguments"),
        ({"stream": "yes"}, '"stream" must be true or false'),
        ({"max_tokens": "9"}, '"max_tokens" must be a whole number'),
        ({"max_completion_tokens": 1.5}, '"max_completion_tokens" must be a whole number'),
        ({"temperature": "hot"}, '"temperature" must be a number'),
        ({"stop": 1}, '"stop" must be'),
        ({"tools": [{"function": {"parameters": []}}]}, '"tools[].function.parameters" must be an object'),
        ({"response_format": "json"}, '"response_format" must be an object'),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"stream_options": True}, '"stream_options" must be an object'),
        ({"reasoning_effort": 1}, '"reasoning_effort" must be a string'),
    ],
    "/v1/completions": [
        ({"prompt": ["a", "b"]}, '"prompt" must be a string'),
        ({"prompt": [1, 2]}, '"prompt" must be a string'),
        ({"temperature": 1e300}, '"temperature" is out of range'),
        ({"logprobs": True}, '"logprobs" must be a whole number'),
    ],
    "/v1/embeddings": [
        ({"input": []}, "invalid input"),
        ({"input": None}, "invalid input"),
        ({"input": [1, 2]}, "invalid input type"),
        ({"input": [[1, 2]]}, "invalid input type"),
        ({"encoding_format": "hex"}, '"encoding_format" must be'),
        ({"dimensions": "8"}, '"dimensions" must be a whole number'),
    ],
    "/v1/responses": [
        ({"input": None}, '"input" is required'),
        ({"input": 7}, '"input" must be a list'),
        ({"input": [{"role": "user", "content": 7}]}, '"input[].content" must be a list'),
        ({"input": ["hi"]}, '"input[0]" must be an object'),
        ({"tools": [{"type": 1}]}, '"tools[].type" must be a string'),
        ({"reasoning": "low"}, '"reasoning" must be an object'),
        ({"text": {"format": "json"}}, '"text.format" must be an object'),
        ({"max_output_tokens": "9"}, '"max_output_tokens" must be a whole number'),
    ],
    "/v1/messages": [
        ({"max_tokens": None}, "max_tokens is required and must be positive"),
        ({"max_tokens": 0}, "max_tokens is required and must be positive"),
        ({"max_tokens": -5}, "max_tokens is required and must be positive"),
        ({"messages": []}, "messages is required"),
        ({"messages": [{"role": "user", "content": 7}]}, '"messages[].content" must be a list'),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": "x"}]}]}, "source"),
        ({"system": {"text": "x"}}, '"system" must be a list'),
        ({"stop_sequences": "x"}, '"stop_sequences" must be a list of strings'),
        ({"thinking": True}, '"thinking" must be an object'),
        ({"top_k": 1.5}, '"top_k" must be a whole number'),
        ({"tools": [{"input_schema": "x"}]}, '"tools[].input_schema" must be an object'),
    ],
}


@pytest.mark.parametrize(("path", "fields", "text"), [(path, *case) for path, cases in WRONG.items() for case in cases])
async def test_j7_a_field_of_the_wrong_type_is_named(client, fake, path, fields, text):
    with no_calls(fake):
        answer = await client.post(path, json=body_of(path, **fields))
    assert answer.status_code == 400
    kind, message = error_of(path, answer)
    assert kind == "invalid_request_error"
    assert text in message


@pytest.mark.parametrize("path", ALL_NEW)
async def test_every_refusal_is_in_the_dialect_of_the_path(gateway, client, fake, path):
    async def refused(status, kind, **request):
        answer = await client.request(request.pop("method", "POST"), path, **request)
        assert answer.status_code == status
        assert error_of(path, answer)[0] == kind
        assert len(answer.headers["x-gateway-error"]) > 3

    openai = path != "/v1/messages"
    with no_calls(fake):
        await refused(401, "authentication_error", headers={"authorization": "Bearer nope"}, json=body_of(path))
        await refused(400, "invalid_request_error", content=b"{")
        await refused(400, "invalid_request_error", content=b"")
        await refused(405, "invalid_request_error", method="GET")
        await refused(415, "invalid_request_error", headers={"content-encoding": "gzip"}, content=b"x")
        await refused(
            413,
            "invalid_request_error" if openai else "request_too_large",
            headers={"content-encoding": "zstd"},
            content=zstandard.compress(b'{"x":"%b"}' % (b"x" * (21 << 20))),
        )
        if path == "/v1/embeddings":
            narrow = {"authorization": f"Bearer {gateway.narrow_key}"}
            await refused(404, "not_found_error", headers=narrow, json=body_of(path))
    fake.faults(times=1, path=path, busy_503=True)
    await refused(503, "api_error" if openai else "overloaded_error", json=body_of(path))
    fake.faults(times=1, path=path, status=429, error="slow down")
    await refused(429, "api_error" if openai else "rate_limit_error", json=body_of(path))  # as the backend says
    fake.faults(times=1, path=path, load_error_500=True)
    await refused(502, "api_error", json=body_of(path))


async def test_an_unknown_route_answers_in_the_dialect_of_its_prefix(client):
    for path in ("/v1/nope", "/v1/images/generations"):
        assert error_of(path, await client.post(path)) == ("not_found_error", "404 page not found")
    answer = await client.post("/v1/messages/nope")
    assert error_of("/v1/messages", answer) == ("not_found_error", "404 page not found")


@pytest.mark.parametrize("path", NEW)
@pytest.mark.parametrize("stream", [False, True])
async def test_b9_a_backends_refusal_keeps_its_text_and_type(gateway, client, fake, path, stream):
    """A model without tools."""
    tools = {"/v1/chat/completions": [TOOL], "/v1/responses": [{"type": "function", "name": "f"}]}
    fake.faults(times=1, path=path, status=400, error="this model (/root/.ollama/x) does not support tools")
    answer = await client.post(path, json=body_of(path, stream=stream, tools=tools.get(path, [])))
    assert answer.status_code == 400
    assert error_of(path, answer) == ("invalid_request_error", "this model (…) does not support tools")
    assert (await record_of(gateway, answer)).outcome == "failed"


@pytest.mark.parametrize("path", ALL_NEW)
async def test_b9_an_early_error_of_the_cloud_comes_in_the_callers_shape(gateway, fake, path):
    """On the routes of others, too, Ollama says these its own way."""
    raw = b'{"error":"unauthorized","signin_url":"https://ollama.com/connect?name=host&key=c3No"}'
    head = b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw)
    fake.faults(times=1, path=path, raw=(head + raw).decode())
    async with gateway.client(gateway.cloud_key) as client:
        answer = await client.post(path, json=body_of(path))
    assert answer.status_code == 401
    assert error_of(path, answer) == ("authentication_error", "unauthorized")
    assert "ollama.com" not in answer.text


async def test_b9_param_and_code_of_a_backend_pass_if_they_are_names(client, fake):
    async def error(**said):
        raw = json.dumps({"error": {"message": "no", **said}}).encode()
        head = b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw)
        fake.faults(times=1, path="/v1/chat/completions", raw=(head + raw).decode())
        answer = await client.post("/v1/chat/completions", json=body_of("/v1/chat/completions"))
        return answer.json()["error"]

    assert await error(type="tool_error", param="tools[0].name", code="bad_tool") == {
        "message": "no",
        "type": "tool_error",
        "param": "tools[0].name",
        "code": "bad_tool",
    }
    assert await error(type="see /root/x", param=["x"], code={"a": 1}) == {
        "message": "no",
        "type": "invalid_request_error",
        "param": None,
        "code": "backend_refused",
    }


async def test_sdks_are_told_whether_to_try_again(client, fake):
    """They repeat 429 and 5xx by themselves, and with them the work (ollama-api §8.2)."""

    async def advice(**fault):
        fake.faults(times=1, path="/v1/chat/completions", **fault)
        answer = await client.post("/v1/chat/completions", json=body_of("/v1/chat/completions"))
        return answer.status_code, answer.headers.get("retry-after"), answer.headers.get("x-should-retry")

    assert await advice(load_error_500=True) == (502, None, "false")
    assert await advice(reset_before_headers=True) == (502, None, "false")
    assert await advice(busy_503=True) == (503, "1", None)
    assert await advice(status=429, error="x", headers=[("Retry-After", "7")]) == (429, "7", None)
    assert await advice(status=429, error="x", headers=[("Retry-After", "3600")]) == (429, "3600", "false")
    assert await advice(status=400, error="x") == (400, None, None)


async def test_messages_carry_the_id_where_its_sdk_looks_for_it(client):
    for stream in (False, True):
        answer = await client.post("/v1/messages", json=body_of("/v1/messages", stream=stream))
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
    answer = await client.post("/v1/chat/completions", json=body_of("/v1/chat/completions"))
    assert "request-id" not in answer.headers


# J9


@pytest.mark.parametrize("path", ALL_NEW)
async def test_j9_a_body_in_zstd_is_expanded_by_us(gateway, client, fake, path):
    text = orjson.dumps(body_of(path))
    with new_calls(fake) as seen:
        for name in ("zstd", "ZSTD"):
            answer = await client.post(path, content=zstandard.compress(text), headers={"content-encoding": name})
            assert answer.status_code == 200
    for call in seen:
        assert call.header("content-encoding") is None
        assert call.json["model"].startswith(("llama3.2", "nomic"))
    record = await record_of(gateway, answer)
    assert record.bytes_in == len(zstandard.compress(text))


ENCODINGS = [
    [(b"content-encoding", b"gzip")],
    [(b"content-encoding", b"deflate")],
    [(b"content-encoding", b"br")],
    [(b"content-encoding", b"zstd, zstd")],
    [(b"content-encoding", b"zstd"), (b"content-encoding", b"zstd")],
    [(b"content-encoding", b"zstd"), (b"content-encoding", b"identity")],
    [(b"content-encoding", b"gzip, zstd")],
    [(b"content-encoding", b"x")],
    [(b"content-encoding", b"")],
]


@pytest.mark.parametrize("headers", ENCODINGS)
async def test_j9_any_other_encoding_is_415(client, fake, headers):
    body = zstandard.compress(orjson.dumps(body_of("/v1/messages")))
    with no_calls(fake):
        answer = await client.post("/v1/messages", content=body, headers=httpx.Headers(headers))
    assert answer.status_code == 415
    assert error_of("/v1/messages", answer)[0] == "invalid_request_error"


async def test_j9_ollamas_own_routes_take_no_encoding(client, fake):
    body = zstandard.compress(orjson.dumps(body_of("/api/chat")))
    with no_calls(fake):
        answer = await client.post("/api/chat", content=body, headers={"content-encoding": "zstd"})
    assert answer.status_code == 415


async def test_j9_broken_zstd_is_400(client, fake):
    whole = zstandard.compress(orjson.dumps(body_of("/v1/messages")) * 100)
    with no_calls(fake):
        for body in (b"", b"junk", whole[:-9], whole[:3], b"\x28\xb5\x2f\xfd" + b"\xff" * 50, whole + b"junk"):
            answer = await client.post("/v1/messages", content=body, headers={"content-encoding": "zstd"})
            assert answer.status_code == 400, body


# Routes that Ollama lacks, or answers in its own way


async def test_tokens_are_counted_by_us_and_the_count_is_marked(gateway, client, fake):
    request = {
        "model": "llama3.2",
        "system": [{"type": "text", "text": "s" * 400}],
        "messages": [
            {"role": "user", "content": "x" * 4000},
            {"role": "user", "content": [{"type": "text", "text": "y" * 400}, {"type": "image", "source": PICTURE}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": "z" * 400}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r" * 400}]},
        ],
        "tools": [{"name": "f", "description": "d" * 400, "input_schema": {"type": "object"}}],
    }
    before = len(gateway.records())
    with no_calls(fake):
        answer = await client.post("/v1/messages/count_tokens?beta=true", json=request)
    assert answer.status_code == 200
    assert answer.headers["x-gateway-estimated"] == "true"
    assert answer.headers["content-type"].startswith("application/json")
    count = answer.json()["input_tokens"]
    assert 1500 + 800 <= count <= 1520 + 800
    last = await client.post("/v1/messages", json=body_of("/v1/messages"))
    await record_of(gateway, last)
    assert len(gateway.records()) == before + 1, "counting is no call"


PICTURE = {"type": "base64", "media_type": "image/png", "data": "A" * 40_000}


async def test_counting_tokens_needs_the_same_rights_as_using_them(gateway, client, fake):
    path, least = "/v1/messages/count_tokens", {"model": "llama3.2", "messages": HI}

    async def refused(status, kind, key=gateway.key, **fields):
        headers = {"authorization": f"Bearer {key}"}
        answer = await client.post(path, json={**least, **fields}, headers=headers)
        assert (answer.status_code, error_of("/v1/messages", answer)[0]) == (status, kind)

    _, no_key = gateway.make_key("lists", may_infer=False)
    with no_calls(fake):
        await refused(401, "authentication_error", key="nope")
        await refused(404, "not_found_error", key=gateway.narrow_key, model="qwen3:8b")
        await refused(404, "not_found_error", model="x:cloud")
        await refused(400, "invalid_request_error", messages=[])
        await refused(400, "invalid_request_error", model="")
        for _ in range(50):  # until the rules are there
            answer = await client.post(path, json=least, headers={"authorization": f"Bearer {no_key}"})
            if answer.status_code != 401:
                break
            await asyncio.sleep(0.1)
        assert answer.status_code == 403


SOUND = b"RIFF\r\n--x\x00\xff" * 1000


@pytest.mark.parametrize("wanted", [None, "json", "text", "verbose_json"])
async def test_j11_sound_goes_on_in_a_form_of_our_own(gateway, client, fake, wanted):
    fields = {"model": "LLAMA3.2", "language": "de", "prompt": "p" * 40, "temperature": "0", "api_base": "http://evil"}
    if wanted:
        fields["response_format"] = wanted
    fake.faults(times=1, path="/v1/audio/transcriptions", tokens=9)
    with new_calls(fake) as seen:
        answer = await client.post(
            "/v1/audio/transcriptions", data=fields, files={"file": ("../../etc/passwd", SOUND, "text/html")}
        )
    assert answer.status_code == 200
    text = " ".join(f"tok{number}" for number in range(1, 10))
    if wanted == "text":
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text == text
    else:
        assert answer.json() == {"text": text}
    (call,) = seen
    assert call.header("content-type").startswith("multipart/form-data; boundary=")
    assert SOUND in call.body
    assert b'name="model"\r\n\r\nllama3.2\r\n' in call.body
    for dropped in (b"temperature", b"api_base", b"evil", b"passwd", b"html"):
        assert dropped not in call.body
    record = await record_of(gateway, answer)
    assert (record.outcome, record.estimated, record.stream) == ("ok", True, False)
    assert record.completion_tokens == -(-len(text) // 4)
    assert record.prompt_tokens == 10 + -(-len(SOUND) // 640) + -(-len("de" + (wanted or "")) // 4)
    assert record.bytes_in > len(SOUND)


async def test_j11_a_form_that_is_none_is_told_in_the_dialect(gateway, client, fake):
    path = "/v1/audio/transcriptions"

    async def refused(status, text, **request):
        answer = await client.post(path, **request)
        assert answer.status_code == status, answer.text
        assert text in error_of(path, answer)[1]

    form = {"files": {"file": ("a.wav", SOUND)}}
    with no_calls(fake):
        await refused(400, "multipart", json={"model": "llama3.2"})
        await refused(400, "model is required", **form)
        await refused(400, '"file" is required', data={"model": "llama3.2"}, files={"x": ("a", b"b")})
        await refused(400, "audio file is empty", data={"model": "llama3.2"}, files={"file": ("a.wav", b"")})
        await refused(400, "twice", data={"model": ["llama3.2", "qwen3:8b"]}, **form)
        await refused(404, "model 'nope' not found", data={"model": "nope"}, **form)
        await refused(404, "not found", data={"model": "x:cloud"}, **form)
        await refused(415, "Content-Encoding", data={"model": "llama3.2"}, headers={"content-encoding": "zstd"}, **form)
        both = httpx.Headers([("content-type", "multipart/form-data; boundary=a")] * 2)
        await refused(400, "multipart", content=b"--a--\r\n", headers=both)
