"""Rows J1, J2, J12, M2–M4: what the gateway decided about a body is what a decoder in Go reads from what it sends."""

import random
import time

import pytest

from proxy import body, model_names
from proxy.dialects import ENDPOINTS
from proxy.dialects.base import Pin
from proxy.errors import Refusal
from tests import go
from tests.proxy.odd_bodies import DIALECTS, odd_body

BODIES = 10_000
PIN = Pin(output_cap=100, output_default=40)
PATHS = ["/api/chat", *DIALECTS]
STREAMS_WITH_USAGE = ("/v1/chat/completions", "/v1/completions")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    began = time.monotonic()
    built = go.build(tmp_path_factory.mktemp("go"))
    print(f"built in {time.monotonic() - began:.1f} s")
    return built


def sent(path, raw):
    """(what goes to the backend, what the gateway decided) as the steps of a call do it; raises Refusal."""
    endpoint = ENDPOINTS[path]
    request = body.read(raw, endpoint.schema)
    asked = request.get("model")
    if not asked or model_names.parse(asked).canonical != "llama3.2:latest":
        raise Refusal("model_not_allowed", "")
    request["model"] = "llama3.2"
    decided = {"model": "llama3.2", "stream": endpoint.wants_stream(request)}
    governed = endpoint.govern(request, PIN)
    decided |= {"cap": governed.output_cap, "debug": False, "loads": None, "error": ""}
    decided["usage"] = path in STREAMS_WITH_USAGE and decided["stream"]
    return endpoint.written(request)[1], decided


@pytest.mark.parametrize("path", PATHS)
def test_j1_j2_go_reads_what_the_gateway_decided(decoder, path):
    rng = random.Random(path)
    began = time.monotonic()
    originals, questions, decisions = [], [], []
    for _ in range(BODIES):
        raw = odd_body(rng, path)
        try:
            payload, decided = sent(path, raw)
        except (Refusal, model_names.InvalidModelName):
            continue  # any other exception would be a 500
        originals.append(raw)
        questions.append((path, payload))
        decisions.append(decided)
    ours = time.monotonic() - began
    answers = go.understood(decoder, questions)
    assert len(answers) == len(questions)
    for raw, decided, answer in zip(originals, decisions, answers, strict=True):
        tools = answer.pop("tools") or []
        assert not [kind for kind in tools if kind.startswith("web_")], raw
        if not answer["stream"]:
            answer["usage"] = False  # it tells without being asked
        assert answer == decided, raw
        assert 0 < answer["cap"] <= PIN.output_cap or path == "/v1/embeddings", raw
    took = time.monotonic() - began
    print(f"{path}: {len(questions)} of {BODIES} accepted; {ours:.1f} s of ours, {took:.1f} s in all")
    assert len(questions) > BODIES / 20


def test_the_judge_can_condemn(decoder):
    """What a gateway that forwards the client's bytes would let through."""
    questions = [
        (
            "/v1/chat/completions",
            b'{"model":"a","MODEL":"b","max_tokens":1,"Max_Tokens":9,"STREAM":true}',
        ),
        ("/api/chat", b'{"model":"a","options":{"num_predict":1},"OPTIONS":{"num_ctx":9},"\\u212aeep_alive":0}'),
        ("/v1/messages", b'{"model":"a","max_tokens":1,"TOOLS":[{"TYPE":"web_search"}]}'),
        ("/v1/responses", b'{"model":"a","tools":[{"tools":[{"type":"web_search"}]}]}'),
        ("/v1/completions", b'{"prompt":[1]}'),
    ]
    chat, native, messages, responses, completions = go.understood(decoder, questions)
    assert (chat["model"], chat["cap"], chat["stream"]) == ("b", 9, True)
    assert (native["cap"], native["loads"]) == (1, ["num_ctx", "keep_alive"])
    assert messages["tools"] == ["web_search"]
    assert responses["tools"] == ["", "web_search"]
    assert "cannot unmarshal array" in completions["error"]
