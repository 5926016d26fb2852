"""What of a call is a text, in every dialect; what is taken out of it before it is stored."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.texts import STREAM_BYTES, UNARY_BYTES, Listening, answer_of, prompt_of
from tenants.keys import make_clear_text
from usage.models.texts import ANSWER_CHARACTERS, PROMPT_CHARACTERS
from usage.redaction import REDACTED, fit, source

PARTS = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:x"}}, {"text": "here"}]


@pytest.mark.parametrize(
    ("request_", "prompt"),
    [
        ({"messages": [{"role": "user", "content": "first"}, {"role": "user", "content": "last"}]}, "last"),
        ({"messages": [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}]}, "asked"),
        ({"messages": [{"role": "system", "content": "be kind"}], "prompt": "p"}, "p"),
        ({"messages": [{"role": "user", "content": PARTS}]}, "look\nhere"),
        ({"prompt": "why?", "images": ["aGk="]}, "why?"),
        ({"prompt": ["one", "two"]}, "one\ntwo"),
        ({"input": "embed me"}, "embed me"),
        ({"input": ["a", "b"]}, "a\nb"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]}, "hello"),
        ({"input": [1, 2, [3]], "prompt": 7, "messages": {}}, ""),
        ({"messages": [None, "x", {"role": "user"}]}, ""),
        ({}, ""),
    ],
)
def test_what_was_asked(request_, prompt):
    assert prompt_of(request_) == prompt


def lines(*objects):
    return b"".join(json.dumps(each).encode() + b"\n" for each in objects)


def events(*objects):
    return b"".join(b"event: x\ndata: " + json.dumps(each).encode() + b"\n\n" for each in objects)


OPENAI = [{"choices": [{"delta": {"content": piece}}]} for piece in ("he", "llo")]
ANTHROPIC = [
    {"type": "message_start", "message": {"type": "message", "content": []}},
    {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hello"}},
]
RESPONSES = [
    {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
    {"type": "response.output_text.delta", "delta": "hello"},
    {"type": "response.output_text.done", "text": "hello"},
    {"type": "response.completed", "response": {"output": [{"content": [{"text": "hello"}]}]}},
]


@pytest.mark.parametrize(
    "heard",
    [
        lines({"message": {"content": "he"}}, {"message": {"content": "llo"}, "done": False}, {"done": True}),
        lines({"response": "hello", "done": True}),
        lines({"message": {"thinking": "hm"}}, {"message": {"content": "hello"}}),
        lines({"choices": [{"message": {"content": "hello"}}]}),
        lines({"choices": [{"text": "hello"}]}),
        lines({"type": "message", "content": [{"type": "text", "text": "hello"}]}),
        lines({"object": "response", "output": [{"type": "reasoning"}, {"content": [{"text": "hello"}]}]}),
        lines({"text": "hello"}),
        events(*OPENAI) + b"data: [DONE]\n\n",
        events(*ANTHROPIC),
        events(*RESPONSES),
        lines({"response": "hello"}) + b'{"response": "cut o',
    ],
)
def test_what_was_answered(heard):
    assert answer_of(heard) == "hello"


def test_of_a_model_that_only_thought_it_is_the_thoughts():
    assert answer_of(lines({"message": {"thinking": "hm"}})) == "hm"


@pytest.mark.parametrize("heard", [b"", b"RIFF", b"[1]", b"{", lines({"embedding": [1.0]}), lines({"choices": [7]})])
def test_what_is_no_text_says_nothing(heard):
    assert answer_of(heard) == ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "delta", "message", "content", "text", "choices", "response", "output", "role"])
            | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["type", "message", "choices", "output", "delta", "content"]), json_values))
def test_l11_no_answer_and_no_request_is_too_odd(value):
    assert isinstance(answer_of(json.dumps(value).encode()), str)
    assert isinstance(prompt_of({**value, "messages": value.get("content"), "input": value.get("output")}), str)


@pytest.mark.parametrize(("stream", "most"), [(True, STREAM_BYTES), (False, UNARY_BYTES)])
def test_no_more_of_an_answer_is_kept_than_is_needed(stream, most):
    passed = []
    client = SimpleNamespace(send=passed.append)
    listening = Listening(SimpleNamespace(stream=stream), client, {})
    piece = b"x" * 50_000
    for _ in range(20):
        client.send({"type": "http.response.body", "body": piece, "more_body": True})
    assert len(listening._heard) == most
    assert b"".join(event["body"] for event in passed) == piece * 20


# Redaction

KEY = "ogw_aiywt8dD_5sPcUTlyXb9CHSjMsCvLLQx3T6ctZAwaiwQAfiADtuG3tD1hN"  # not random: xdist compares the names of tests


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        "ogm_abcd1234_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
        "Authorization: Bearer abc.def-123~x/y==",
        "authorization: basic dXNlcjpwYXNz",
        "ahP7DieD7rNpTUa6No--iJpOaXY3TDK8dIjKg0cp-hI=",
        "ahP7DieD7rNpTUa6No--iJpOaXY3TDK8dIjKg0cp-hI",
        'password="hunter2"',
        "X-Api-Key: hunter2",
        "sk-proj-abcdefghijklmnop1234",
        "ghp_abcdefghijklmnopqrstuvwx",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sflKxwRJSMeKKF2QT4",
        "alice.smith+x@mail.example.org",
        "andré@example.org",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIEow and no end",
        "redis://:hunter2@localhost:6379/0",
    ],
)
def test_l7_secrets_and_addresses_are_taken_out(secret):
    told = fit(f"before {secret}\nafter", 1000)
    assert secret.rpartition(" ")[2] not in told
    assert REDACTED in told
    assert told.startswith("before ")


@pytest.mark.parametrize(
    "text",
    [
        "What is 2+2?",
        "Visual Basic programming",
        "the bearer of it",
        "a secret is one",
        "ogw is a name",
        "a sk- b",
        "x" * 500,
        "日本語 " * 50,
        "a@b",
        "base64",
    ],
)
def test_ordinary_words_stay(text):
    assert fit(text, 1000) == text


def test_l7_no_half_of_a_key_is_left_wherever_the_text_is_cut():
    secret = KEY.split("_")[2]
    for at in range(0, 2100, 7):
        text = ("word " * 500)[:at] + KEY + " more" * 500
        for told in (fit(text, 1000), fit(source(text, 1000), 1000)):
            assert secret[:6] not in told, at
            assert len(told) <= 1000


def test_l7_a_text_of_nothing_but_keys_leaves_none():
    told = fit(" ".join(make_clear_text()[1] for _ in range(200)), 1000)
    assert set(told.replace(REDACTED, "").split()) <= {"[redact", "[reda", "["} or not told.replace(REDACTED, "").strip(
        " [redact"
    )


def test_texts_fit_their_columns_on_every_database():
    assert fit("a\x00b", 10) == "ab"
    assert len(fit("é" * 5000, PROMPT_CHARACTERS)) == PROMPT_CHARACTERS
    assert len(fit("word " * 500, ANSWER_CHARACTERS)) == ANSWER_CHARACTERS


def test_redaction_takes_no_time_whatever_the_text():
    import time

    began = time.process_time()
    fit("://" + ":" * 100_000, 50_000)
    for text in ("a" * 2001, "a." * 1000, "a@" * 1000, "-" * 2001, "Bearer " * 300, "eyJ" * 700, "://a:" * 400):
        fit(text, 1000)
    took = time.process_time() - began
    print(f"redacting hostile texts: {1000 * took:.1f} ms")
    assert took < 2


def test_a_call_that_breaks_off_leaves_what_was_heard():
    async def send(event):
        pass

    client = SimpleNamespace(send=send)
    listening = Listening(SimpleNamespace(stream=True), client, {"prompt": "why?"})
    asyncio.run(client.send({"type": "http.response.body", "body": lines({"response": "because"}) + b'{"resp'}))
    call = SimpleNamespace(
        id="0" * 32, started_epoch=1.0, status=200, model=None, key=SimpleNamespace(tenant_id=1, user_id=None, id=3)
    )
    assert listening.text(call) == ("0" * 32, 1.0, 1, None, 3, "", "why?", "because")
