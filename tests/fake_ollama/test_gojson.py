import pytest

from proxy.fake_ollama.gojson import DecodeError, EmptyBody, decode, encode
from proxy.fake_ollama.requests import ChatRequest, GenerateRequest


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ('{"model":"a"}', "a"),
        ('{"Model":"a"}', "a"),
        ('{"MODEL":"a","model":"b"}', "b"),
        ('{"model":"a","mOdEl":"b"}', "b"),
        ('{"model":"a","model":"b"}', "b"),
        ('{"model":"a","model":null}', "a"),
        ('{"model":"a"} trailing', "a"),
        ('{"model":"a"}{"model":"b"}', "a"),
        ('\n {"model":"a"}', "a"),
        ('{"model":"a","unknown":{"model":"b"}}', "a"),
        ('{"model":"\\ud800"}', "\ufffd"),
    ],
)
def test_which_model_is_read(body, model):
    assert decode(body.encode(), ChatRequest)["model"] == model


def test_letters_outside_ascii_that_fold_into_it():
    body = decode('{"mode\u017f":1,"\u017ftream":false,"meſſages":[],"\u212aeep_alive":5}'.encode(), ChatRequest)
    assert body == {"stream": False, "messages": [], "keep_alive": 5}


def test_nested_fields_fold_too():
    body = decode(b'{"messages":[{"ROLE":"user","Content":"x","content":"y"}]}', ChatRequest)
    assert body["messages"] == [{"role": "user", "content": "y"}]


def test_duplicate_objects_merge_and_keys_of_maps_are_exact():
    body = decode(b'{"options":{"num_ctx":1,"seed":2},"OPTIONS":{"num_ctx":3,"Seed":4}}', ChatRequest)
    assert body["options"] == {"num_ctx": 3, "seed": 2, "Seed": 4}
    body = decode(b'{"options":{"num_ctx":1},"options":{"seed":2}}', ChatRequest)
    assert body["options"] == {"num_ctx": 1, "seed": 2}


def test_null_of_a_pointer_is_absent():
    assert decode(b'{"stream":false,"stream":null}', ChatRequest).get("stream") is None


def test_invalid_utf8_becomes_a_replacement_character():
    assert decode(b'{"model":"a\xff"}', ChatRequest)["model"] == "a\ufffd"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("x", "invalid character 'x' looking for beginning of value"),
        ("{x", "invalid character 'x' looking for beginning of object key string"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a":1 2}', "invalid character '2' after object key:value pair"),
        ('{"a":[1 2]}', "invalid character '2' after array element"),
        ('{"a":NaN}', "invalid character 'N' looking for beginning of value"),
        ('{"a":', "unexpected EOF"),
        ('{"a":"b', "unexpected EOF"),
        ("[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        ('"x"', "json: cannot unmarshal string into Go value of type api.ChatRequest"),
        ('{"model":1}', "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"),
        ('{"MODEL":{}}', "json: cannot unmarshal object into Go struct field ChatRequest.model of type string"),
        ('{"stream":"no"}', "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool"),
        (
            '{"messages":"x"}',
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        (
            '{"messages":[{"content":[]}]}',
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
        ),
        (
            '{"messages":[{"tool_calls":[{"function":{"arguments":"{}"}}]}]}',
            "json: cannot unmarshal string into Go struct field "
            "ChatRequest.messages.tool_calls.function.arguments of type map[string]interface {}",
        ),
        (
            '{"top_logprobs":1.5}',
            "json: cannot unmarshal number 1.5 into Go struct field ChatRequest.top_logprobs of type int",
        ),
    ],
)
def test_texts_of_decoding_errors(body, text):
    with pytest.raises(DecodeError) as error:
        decode(body.encode(), ChatRequest)
    assert str(error.value) == text


@pytest.mark.parametrize("body", [b"", b" \n"])
def test_empty_body(body):
    with pytest.raises(EmptyBody):
        decode(body, ChatRequest)


def test_deep_nesting_is_an_error_and_no_crash():
    with pytest.raises(DecodeError):
        decode(b'{"model":' + b"[" * 200_000, GenerateRequest)


def test_html_is_escaped_as_go_does_it():
    assert encode({"a": "<&>\u2028\u2029é"}) == '{"a":"\\u003c\\u0026\\u003e\\u2028\\u2029é"}'.encode()


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/api/chat", {"error": "missing request body"}),
        (
            "/v1/chat/completions",
            {"error": {"message": "EOF", "type": "invalid_request_error", "param": None, "code": None}},
        ),
    ],
)
async def test_answer_to_an_empty_body(wire, path, shape):
    answer = await wire.post(path, b"")
    assert (answer.status, answer.lines[0]) == (400, shape)


async def test_content_type_of_the_request_is_ignored(wire):
    headers = [("Content-Type", "application/x-www-form-urlencoded")]
    answer = await wire.post("/api/generate", b'{"MODEL":"llama3.2","Prompt":"x","STREAM":false} junk', headers)
    assert answer.lines[0]["done"] is True


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"keep_alive": "-1"}, 400, 'time: missing unit in duration "-1"'),
        ({"keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ({"keep_alive": True}, 400, "Unsupported type: 'bool'"),
        ({"options": {"num_ctx": "big"}}, 500, 'option "num_ctx" must be of type integer'),
        ({"format": "xml"}, 500, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
        ({"think": True}, 400, '"llama3.2" does not support thinking'),
        ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ({"suffix": "x"}, 400, "registry.ollama.ai/library/llama3.2:latest does not support insert"),
        ({"raw": True, "system": "x"}, 400, "raw mode does not support template, system, or context"),
        ({"model": "nomic-embed-text"}, 400, '"nomic-embed-text" does not support generate'),
        ({"images": ["!"]}, 400, "illegal base64 data at input byte 0"),
    ],
)
async def test_values_that_are_refused(wire, fields, status, text):
    answer = await wire.post("/api/generate", {"model": "llama3.2", "prompt": "x", **fields})
    assert (answer.status, answer.lines[0]["error"]) == (status, text)
