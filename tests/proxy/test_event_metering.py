"""Token counts read from server-sent events as they pass (ollama-api §2.6–2.9), and what may be odd about them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import anthropic, openai, responses
from proxy.errors import BrokenAnswer
from proxy.metering import MAX_LINE, MAX_TOKENS, AnswerMeter, EventMeter

PROMPT_BYTES = 101  # 26 tokens by the estimate
DONE = b"data: [DONE]\n\n"
NASTY = [
    "next\u0085line",
    "line\u2028separator\u2029paragraph",
    'imitates "usage":{"prompt_tokens":9,"completion_tokens":999999}',
    "\ndata: [DONE]\n\n",
    '"delta":{"content":"x"}',
    "event: message_stop\ndata: {}\n\n",
    'data: {"error":"none"}\n\n',
    "vertical\x0btab\x0cfeed\x1cfile",
    "\u00e9\u4e16\U0001f600",
    ": comment\n\n",
    ".delta\n",
]


def data(value, name=None):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: %b\n\n" % text


def delta(text, reason=None, **more):
    said = {"role": more.pop("role")} if "role" in more else {}
    said |= {"content": text} if text is not None else {}
    choice = {"index": 0, "delta": {**said, **more}, "finish_reason": reason}
    return data({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


def usage_of(prompt=26, completion=14, **more):
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0}
    return data({"id": "chatcmpl-1", "model": "m", "choices": [], "usage": {**counts, **more}})


def completion(text, reason=None, usage=(0, 0)):
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    choices = [] if text is None else [{"text": text, "index": 0, "finish_reason": reason}]
    return data({"id": "cmpl-1", "choices": choices, "model": "m", "usage": counts})


def response(kind, **fields):
    return data({**fields, "sequence_number": 1, "type": f"response.{kind}"}, f"response.{kind}")


def response_end(kind="completed", usage=True, **more):
    counts = {"input_tokens": 26, "output_tokens": 14, "output_tokens_details": {"reasoning_tokens": 0}}
    tools = [{"name": "f", "parameters": {"usage": {"type": "object"}, "delta": ".delta\n"}}]
    inner = {"id": "resp_1", "status": kind, "tools": tools, "usage": counts if usage else None, **more}
    return response(kind, response=inner)


def message(kind, **fields):
    return data({"type": kind, **fields}, kind)


TEXT = message("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"})
START = message("message_start", message={"model": "m", "usage": {"input_tokens": 900, "output_tokens": 5}})
MESSAGE_END = message(
    "message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 26, "output_tokens": 14}
)
STOP = message("message_stop")
SAID = response("output_text.delta", delta="Hi")

FORMS = {"chat": openai.CHAT_EVENTS, "completions": openai.COMPLETION_EVENTS}
FORMS |= {"responses": responses.EVENTS, "messages": anthropic.EVENTS}
# form, stream, tokens by events where nothing is reported
WHOLE = {
    "chat": ("chat", delta("Hi", role="assistant") + delta(" you") + delta(None, "stop") + usage_of() + DONE, 2),
    "thinking": ("chat", delta("", reasoning="Hm") + delta("Hi") + delta(None, "stop") + usage_of() + DONE, 2),
    "the role alone": ("chat", delta("", role="assistant") + delta("Hi") + delta(None, "stop") + usage_of() + DONE, 1),
    "before 0.32.6": ("chat", delta("Hi", role="assistant") + delta("!", "stop", role="x") + usage_of() + DONE, 2),
    "nasty": ("chat", b"".join(map(delta, NASTY)) + delta(None, "stop") + usage_of() + DONE, len(NASTY)),
    "comments": ("chat", b": x\n\n" + delta("Hi") + b":\n\n" + usage_of() + DONE + b": bye\n\n", 1),
    "blank lines": ("chat", b"\n\n" + delta("Hi") + b"\n" + usage_of() + b"\n\n\n" + DONE + b"\n", 1),
    "usage on two": ("chat", delta("Hi") + usage_of(3, 3) + usage_of() + DONE, 1),
    "more counts": ("chat", delta("Hi") + usage_of(prompt_tokens_details={"cached_tokens": 5}) + DONE, 1),
    "completions": (
        "completions",
        completion("Hi") + completion(" you") + completion("", "stop") + completion(None, usage=(26, 14)) + DONE,
        2,
    ),
    "responses": ("responses", response_end("in_progress") + SAID * 3 + response_end(), 3),
    "responses, cut by length": ("responses", SAID * 2 + response_end("incomplete"), 2),
    "messages": ("messages", START + TEXT * 2 + MESSAGE_END + STOP, 2),
    "messages, pings": ("messages", START + message("ping") + TEXT + MESSAGE_END + STOP + b": x\n\n", 1),
    "messages, two ends": ("messages", START + TEXT + MESSAGE_END.replace(b"14", b"3") + MESSAGE_END + STOP, 1),
}


def meter_of(form, stream, **options):
    meter = EventMeter(FORMS[form], PROMPT_BYTES, **options)
    passed = b"".join(meter.feed(chunk) for chunk in (stream if isinstance(stream, list) else [stream]))
    meter.finish()
    return meter, passed


def events_in(stream):
    return [event.strip(b"\n") for event in stream.split(b"\n\n") if event.strip(b"\n")]


def tokens(meter):
    counts = meter.counts()
    return counts.prompt_tokens, counts.completion_tokens, counts.estimated


@pytest.mark.parametrize("name", WHOLE)
def test_u3_a_whole_stream_is_metered_by_its_last_report(name):
    form, stream, pieces = WHOLE[name]
    for body in (stream, stream.replace(b"\n", b"\r\n")):
        meter, passed = meter_of(form, body)
        assert meter.complete
        assert not meter.error
        assert tokens(meter) == (26, 14, False)
        assert meter.counted == pieces
        assert events_in(passed) == events_in(stream)
        assert name == "blank lines" or passed == stream


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.integers(1, 90), min_size=1, max_size=40),
    st.integers(0, 500),
    st.booleans(),
)
def test_b8_any_chunking_of_any_prefix_means_the_same(name, sizes, cut, hides):
    form, stream, _ = WHOLE[name]
    stream = stream[: len(stream) - cut]
    chunks, at = [], 0
    while at < len(stream):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(stream[at : at + size])
        at += size
    meter, passed = meter_of(form, chunks, hides_usage=hides)
    whole, passed_whole = meter_of(form, [stream] if stream else [], hides_usage=hides)
    assert events_in(passed) == events_in(passed_whole)
    assert tokens(meter) == tokens(whole)
    assert (meter.complete, meter.error, meter.counted) == (whole.complete, whole.error, whole.counted)
    assert not passed or passed.endswith(b"\n\n"), "only whole events leave"


@pytest.mark.parametrize(
    ("form", "stream", "pieces"),
    [
        ("chat", delta("Hi") + delta(None, "stop") + DONE, 1),
        ("chat", delta("Hi") + delta(None, "stop") + usage_of(0, 0) + DONE, 1),
        ("chat", delta("Hi") + data({"choices": [], "usage": None}) + DONE, 1),
        ("completions", completion("Hi") + completion("", "stop") + DONE, 1),
        ("responses", SAID * 3 + response_end(usage=False), 3),
        ("messages", START + TEXT * 2 + message("message_delta", delta={}) + STOP, 2),
        ("messages", START + TEXT * 2 + STOP, 2),
    ],
)
def test_u3_without_a_report_the_pieces_count(form, stream, pieces):
    """What message_start says is a guess, and a completion's zeros say nothing."""
    meter, _ = meter_of(form, stream)
    assert meter.complete
    assert tokens(meter) == (26, pieces, True)


@pytest.mark.parametrize(
    ("counts", "odd"),
    [
        ((-1, 14), True),
        ((26, -14), True),
        ((26, MAX_TOKENS + 1), True),
        ((26, 1.5), True),
        (("26", "14"), True),
        ((True, 14), True),
        (([], {}), True),
        ((26.0, 14.0), False),
        ((None, None), False),
    ],
)
def test_u4_absurd_counts_are_replaced_by_an_estimate(counts, odd):
    meter, _ = meter_of("chat", delta("Hi") * 3 + usage_of(*counts) + DONE)
    assert meter.counts().odd is odd
    assert tokens(meter) == ((26, 14, False) if counts == (26.0, 14.0) else (26, 3, True))


def test_an_answer_without_text_costs_its_prompt_only():
    meter, _ = meter_of("chat", delta(None, "stop") + usage_of(26, 0) + DONE)
    assert (meter.complete, tokens(meter)) == (True, (26, 0, False))


@pytest.mark.parametrize(
    ("form", "stream", "text"),
    [
        ("chat", delta("Hi") + data({"error": {"message": "it broke", "type": "x"}}), "it broke"),
        ("chat", delta("Hi") + data({"error": "it broke"}), "it broke"),
        ("chat", delta("Hi") + data({"error": {"message": "it broke"}}) + DONE, "it broke"),
        ("chat", delta("Hi") + data({"error": {}}), ""),
        ("responses", SAID + response_end("failed", error={"message": "it broke", "code": "x"}), "it broke"),
        ("responses", SAID + response_end("failed"), "failed"),
        ("responses", SAID + data({"type": "error", "message": "it broke"}, "error"), "it broke"),
        ("messages", START + TEXT + data({"type": "error", "error": {"message": "it broke"}}, "error"), "it broke"),
    ],
)
def test_b3_an_error_in_the_stream_is_a_failure_and_what_came_is_paid(form, stream, text):
    meter, _ = meter_of(form, stream)
    assert not meter.complete
    assert meter.error == text
    assert tokens(meter) == (26, 1, True)


def test_b3_the_chunk_in_which_ollama_loses_an_error_is_no_token():
    meter, _ = meter_of("chat", delta("Hi") + delta("").replace(b'"m"', b'""'))
    assert (meter.complete, tokens(meter)) == (False, (26, 1, True))
    assert meter.fault
    assert not meter_of("chat", delta("Hi"))[0].fault, "a model that repeats itself is stopped, and nobody failed"


def test_b6_an_event_without_an_end_is_not_collected_for_ever():
    meter = EventMeter(openai.CHAT_EVENTS, PROMPT_BYTES)
    with pytest.raises(BrokenAnswer):
        for _ in range(MAX_LINE // (1 << 20) + 2):
            meter.feed(b"data: " + b"x" * (1 << 20))


def test_b6_an_event_in_single_bytes_takes_no_quadratic_time():
    meter = EventMeter(openai.CHAT_EVENTS, PROMPT_BYTES)
    event = delta("x" * 200_000)
    passed = b"".join(meter.feed(event[at : at + 1]) for at in range(len(event)))
    assert passed == event


# Answers in one piece

TOOL = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
PIECE = {"index": 0, "finish_reason": "stop"}
COUNTED = {"prompt_tokens": 26, "completion_tokens": 14}
COUNTED_BY_OTHERS = {"input_tokens": 3, "output_tokens": 4}
ITEMS = [{"content": [{"text": "x" * 36}]}, {"arguments": "x" * 4}, {"summary": [{"text": "y" * 4}]}]
ANSWERS = [
    (openai, {"choices": [{**PIECE, "message": {"content": "Hi"}}], "usage": COUNTED}, (26, 14, False)),
    (openai, {"choices": [{**PIECE, "message": {"content": "x" * 40, "reasoning": "y" * 20}}]}, (26, 15, True)),
    (openai, {"choices": [{**PIECE, "message": {"content": "", "tool_calls": TOOL}}]}, (26, 14, True)),
    (openai, {"choices": [{**PIECE, "text": "x" * 40}], "usage": {"prompt_tokens": 7}}, (7, 10, True)),
    (openai, {"choices": [{**PIECE, "text": ""}], "usage": {"completion_tokens": 0}}, (0, 0, False)),
    (responses, {"status": "completed", "output": ITEMS, "usage": None}, (26, 11, True)),
    (responses, {"status": "incomplete", "usage": COUNTED_BY_OTHERS}, (3, 4, False)),
    (anthropic, {"stop_reason": "end_turn", "content": None, "usage": COUNTED_BY_OTHERS}, (3, 4, False)),
    (anthropic, {"stop_reason": "end_turn", "content": [{"text": "x" * 40}, {"input": {"a": "b"}}]}, (26, 13, True)),
]


@pytest.mark.parametrize(("dialect", "answer", "expected"), ANSWERS)
def test_u3_answers_in_one_piece(dialect, answer, expected):
    meter = AnswerMeter(dialect.usage, PROMPT_BYTES, dialect.generated)
    meter.feed(json.dumps(answer).encode())
    meter.finish()
    assert meter.complete
    assert tokens(meter) == expected


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        # A model that repeated itself: nothing says why it ended, and nothing is counted.
        (
            openai,
            {"choices": [{"finish_reason": None, "message": {"content": "x" * 40}}], "usage": {"prompt_tokens": 0}},
        ),
        (responses, {"status": "in_progress", "output": [{"content": [{"text": "x" * 40}]}]}),
        (anthropic, {"content": [{"text": "x" * 40}]}),
    ],
)
def test_u3_an_answer_that_was_not_brought_to_its_end_is_weighed(dialect, answer):
    meter = AnswerMeter(dialect.usage, PROMPT_BYTES, dialect.generated)
    meter.feed(json.dumps(answer).encode())
    meter.finish()
    assert (meter.whole, meter.complete) == (True, False)
    assert tokens(meter) == (26, 10, True)


ODD = [1, None, "x", [], {}, [1], {"a": 1}, [None], [[]], True, -1.5]


@pytest.mark.parametrize("dialect", [openai, responses, anthropic])
def test_u4_no_shape_of_an_answer_breaks_the_meter(dialect):
    names = ("choices", "usage", "output", "content", "response", "status", "stop_reason", "error")
    for name in names:
        for value in ODD:
            for inner in ODD:
                for answer in ({name: value}, {name: [{"message": value, "content": inner, "input": inner}]}):
                    dialect.usage(answer)
                    meter = AnswerMeter(dialect.usage, PROMPT_BYTES, dialect.generated)
                    meter.feed(json.dumps(answer).encode())
                    meter.finish()
                    meter.counts()
