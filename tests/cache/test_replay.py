"""A kept answer in the other mode, against what the fake itself sends in it; and again back."""

import orjson
import pytest
import pytest_asyncio

from proxy.cache.entries import Entry
from proxy.cache.replay import replayed
from proxy.dialects import ENDPOINTS
from tests.proxy.transcripts import STREAMS, record_all

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What differs between two answers to one question: times and made-up ids.
VOLATILE = {
    "id", "created", "created_at", "completed_at", "total_duration", "load_duration", "prompt_eval_duration",
    "eval_duration", "call_id", "item_id",
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streams():
    return await record_all(stream=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answers():
    return await record_all(stream=False)


def entry_of(transcript, *, stream, body=None):
    return Entry(transcript.body if body is None else body, stream, transcript.content_type, "m", "m", "d", "t1", 0.0)


def lasting(value):
    if isinstance(value, dict):
        return {name: lasting(item) for name, item in value.items() if name not in VOLATILE}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def metered(transcript, kind, body):
    meter = ENDPOINTS[transcript.path].meter(kind, 100, False)
    meter.feed(body)
    meter.finish()
    counts = meter.counts()
    return meter.complete, counts.prompt_tokens, counts.completion_tokens, counts.estimated


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_in_one_piece_is_what_the_backend_would_have_said(streams, answers, name):
    stream, answer = streams[name], answers[name]
    body, kind = replayed(entry_of(stream, stream=True), stream.path, stream=False, hides_usage=False)
    assert kind == answer.content_type
    assert lasting(orjson.loads(body)) == lasting(orjson.loads(answer.body))
    assert metered(stream, kind, body) == metered(answer, kind, answer.body)


@pytest.mark.parametrize("name", STREAMS)
async def test_an_answer_in_one_piece_becomes_a_whole_stream_and_back(streams, answers, name):
    stream, answer = streams[name], answers[name]
    events, kind = replayed(entry_of(answer, stream=False), answer.path, stream=True, hides_usage=False)
    assert kind == stream.content_type
    assert metered(stream, kind, events) == metered(answer, answer.content_type, answer.body)
    again, _ = replayed(entry_of(stream, stream=True, body=events), answer.path, stream=False, hides_usage=False)
    assert orjson.loads(again) == orjson.loads(answer.body)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_without_usage_is_what_a_client_gets_that_did_not_ask_for_it(streams, name):
    stream = streams[name]
    body, _ = replayed(entry_of(stream, stream=True), stream.path, stream=True, hides_usage=False)
    assert body == stream.body
    if stream.path in ("/v1/chat/completions", "/v1/completions"):
        body, _ = replayed(entry_of(stream, stream=True), stream.path, stream=True, hides_usage=True)
        assert b'"usage"' not in body
        assert b'"choices":[]' not in body
        assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("odd", [b"", b"{}", b"[]", b"null", b"data: {}\n\n", b"{\n"])
async def test_what_has_not_the_form_is_asked_for_again(streams, name, odd):
    stream = streams[name]
    for was_stream in (True, False):
        entry = entry_of(stream, stream=was_stream, body=odd)
        assert replayed(entry, stream.path, stream=not was_stream, hides_usage=False) is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("count", [0, 2])
async def test_an_answer_with_other_than_one_choice_is_asked_for_again_as_a_stream(answers, path, count):
    [answer] = [answer for answer in answers.values() if answer.path == path][:1]
    whole = orjson.loads(answer.body)
    several = orjson.dumps({**whole, "choices": whole["choices"] * count})
    entry = entry_of(answer, stream=False, body=several)
    assert replayed(entry, path, stream=True, hides_usage=False) is None
    assert replayed(entry, path, stream=False, hides_usage=False) == (several, entry.content_type)
