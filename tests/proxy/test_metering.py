"""Token counts read from the bytes of an answer as they pass (ollama-api §2.4)."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import ollama
from proxy.errors import BrokenAnswer
from proxy.metering import MAX_LINE, MAX_TOKENS, AnswerMeter, EmbeddingMeter, LineMeter, Meter

PROMPT_BYTES = 101  # 26 tokens by the estimate
STAMP = "2026-08-22T10:00:00.12Z"


def text(content, **more):
    message = {"role": "assistant", "content": content, **more}
    return {"model": "m", "created_at": STAMP, "message": message, "done": False}


def final(**fields):
    end = text("")
    counts = {"prompt_eval_count": 26, "eval_count": 14, "load_duration": 7, "eval_duration": 9}
    return {**end, "done": True, "done_reason": "stop", **counts, **fields}


def ndjson(*objects, end=b"\n"):
    return b"".join(json.dumps(value, ensure_ascii=False).encode() + end for value in objects)


TOOL = {"id": "call_1", "function": {"index": 0, "name": "get_time", "arguments": {"tz": "UTC"}}}
NASTY = [
    "next\u0085line",
    "line\u2028separator\u2029paragraph",
    'imitates {"done":true,"eval_count":999999}',
    "\ndata: [DONE]\n\n",
    '"done":true',
    "vertical\x0btab\x0cfeed\x1cfile",
    "\u00e9\u4e16\U0001f600",
    '{"error":"no error at all"}',
]
GENERATED = {"model": "m", "created_at": STAMP, "response": "Blue", "done": False}
GOLDEN = {
    "chat": ndjson(text("Hi"), text(" there"), final()),
    "thinking": ndjson(text("", thinking="Hm."), text("", thinking=" So."), text("Hi"), final()),
    "tools": ndjson(text("", tool_calls=[TOOL]), final()),
    "generate": ndjson(GENERATED, {**GENERATED, "response": "", **final(context=list(range(128000, 128040)))}),
    "nasty": ndjson(*map(text, NASTY), final()),
    "crlf": ndjson(text("Hi"), text(" there"), final(), end=b"\r\n"),
    "blank lines": b"\n" + ndjson(text("Hi"), end=b"\n\n \n") + ndjson(final(), end=b"\n\r\n\n"),
    "no last newline": ndjson(text("Hi"), final())[:-1],
    "blanks before objects": b"  " + ndjson(text("Hi")) + b"   " + ndjson(final()),
    "repeated final": ndjson(text("Hi"), final(eval_count=3), final(eval_count=9), final()),
    "keys in another order": ndjson(text("Hi"), {"done": True, "eval_count": 14, "prompt_eval_count": 26}),
}


def meter_of(stream, meter=LineMeter, **options):
    made = meter(ollama.usage, PROMPT_BYTES, **options)
    for chunk in stream if isinstance(stream, list) else [stream]:
        made.feed(chunk)
    made.finish()
    return made


def outcome(meter):
    counts = meter.counts()
    values = {name: getattr(counts, name) for name in counts.__slots__}
    return {**values, "complete": meter.complete, "error": meter.error, "counted": meter.counted}


def tokens(meter):
    counts = meter.counts()
    return counts.prompt_tokens, counts.completion_tokens, counts.estimated


@pytest.mark.parametrize("name", GOLDEN)
def test_b8_a_whole_stream_is_metered_by_its_last_object(name):
    meter = meter_of(GOLDEN[name])
    assert meter.complete
    assert tokens(meter) == (26, 14, False)


@pytest.mark.parametrize("name", GOLDEN)
def test_b3_cut_at_every_byte_it_is_never_complete_and_never_free(name):
    stream = GOLDEN[name]
    end = stream.rstrip().rfind(b"}")  # without this byte the last object is not whole
    first = stream.index(b"}\n" if b"}\n" in stream else b"}\r\n")
    if name == "repeated final":  # each of the three is an end
        end = stream.index(b"}\n", stream.index(b'"done": true'))
    for size in range(end + 1):
        meter = meter_of(stream[:size])
        assert not meter.complete, stream[:size][-80:]
        prompt, completion, estimated = tokens(meter)
        assert estimated
        assert prompt == 26
        assert completion > 0 or size <= first


@pytest.mark.parametrize("name", GOLDEN)
def test_b8_every_chunking_means_the_same_and_passes_the_same_bytes(name):
    stream = GOLDEN[name]
    whole = outcome(meter_of(stream))
    splits = [[stream[:size], stream[size:]] for size in range(1, len(stream))]
    splits.append([stream[at : at + 1] for at in range(len(stream))])
    splits.append(stream.splitlines(keepends=True))
    for chunks in splits:
        meter = LineMeter(ollama.usage, PROMPT_BYTES)
        passed = b"".join(meter.feed(chunk) for chunk in chunks)
        meter.finish()
        assert outcome(meter) == whole
        assert passed + meter.rest == stream
        assert not passed or passed.endswith(b"\n"), "only whole lines leave before the end"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(GOLDEN)), st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(0, 400))
def test_b8_any_chunking_of_any_prefix_means_the_same(name, sizes, cut):
    stream = GOLDEN[name][: len(GOLDEN[name]) - cut]
    chunks, at = [], 0
    while at < len(stream):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(stream[at : at + size])
        at += size
    assert outcome(meter_of(chunks)) == outcome(meter_of(stream))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_b8_whatever_a_backend_sends_the_meter_does_not_fall_over(junk, size):
    chunks = [junk[at : at + size] for at in range(0, len(junk), size)]
    for kind in (LineMeter, AnswerMeter, EmbeddingMeter):
        prompt, completion, _ = tokens(meter_of(chunks, kind))
        assert prompt >= 0
        assert completion >= 0


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        # 1: cut off, an error line, a crash: no final object, and nothing partial is ever reported
        (ndjson(text("a"), text("b"), text("c")), (26, 3, True)),
        (ndjson(text("a"), text("b"), {"error": "unexpected EOF"}), (26, 2, True)),
        (ndjson({"error": "at once"}), (26, 0, True)),
        (b"", (26, 0, True)),
        # 2: the repetition guard ends a stream without a word
        (ndjson(*[text("x")] * 31), (26, 31, True)),
        # 3: two generations of which one is reported: the report counts
        (ndjson(text("", thinking="a"), text("b"), final(eval_count=1, prompt_eval_count=30)), (30, 1, False)),
        # 4: load and unload replies cost nothing
        (ndjson({"model": "m", "response": "", "done": True, "done_reason": "load"}), (0, 0, False)),
        (ndjson({"model": "m", "response": "", "done": True, "done_reason": "unload"}), (0, 0, False)),
        # a report that says nothing, or zero, where there was text
        (ndjson(text("a"), text("b"), {"done": True}), (26, 2, True)),
        (ndjson(text("a"), final(eval_count=0, prompt_eval_count=0)), (26, 1, True)),
        (ndjson(text("a"), final(eval_count=None)), (26, 1, True)),
        (ndjson(text("a"), final(prompt_eval_count=None)), (26, 14, True)),
        # the whole answer in its last object, without counts
        (ndjson({"model": "m", "response": "eight by", "done": True}), (26, 2, True)),
        (ndjson({**text("", tool_calls=[TOOL]), "done": True}), (26, -(-len(json.dumps([TOOL])) // 4), True)),
    ],
)
def test_u3_where_usage_is_missing_it_is_estimated_and_never_free(stream, expected):
    got = tokens(meter_of(stream))
    assert got[::2] == expected[::2]
    assert abs(got[1] - expected[1]) <= (3 if expected[1] > 10 and b"tool_calls" in stream else 0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (final(), (26, 14, False)),
        # the repetition guard, unstreamed: done is false and nothing is counted
        ({**text("four" * 5), "done": False}, (26, 5, True)),
        ({"model": "m", "response": "12345", "done": True}, (26, 2, True)),
        ({"model": "m", "response": "", "thinking": "12345678", "done": True}, (26, 2, True)),
        ({"model": "m", "response": "", "done": True, "done_reason": "load"}, (0, 0, False)),
        ({**final(eval_count=0), "message": {"content": "abcd"}}, (26, 1, True)),
        ({"error": "it broke"}, (26, 0, True)),
    ],
)
def test_u3_unary_answers(answer, expected):
    raw = json.dumps(answer).encode()
    assert tokens(meter_of(raw, AnswerMeter)) == expected
    for size in range(1, len(raw)):
        cut = meter_of([raw[: size // 2], raw[size // 2 : size]], AnswerMeter)
        assert not cut.complete
        assert not cut.whole
        assert cut.counts().completion_tokens > 0
        assert cut.counts().estimated


@pytest.mark.parametrize(
    ("answer", "reports", "expected"),
    [
        (b'{"model":"m","embeddings":[[0.1,-2e-3]],"prompt_eval_count":8}', True, (8, 0, False)),
        (b'{"model":"m","embeddings":[[0.1],[0.2]],"total_duration":5,"prompt_eval_count":8}\n', True, (8, 0, False)),
        (b'{"model":"m","embeddings":[]}', True, (0, 0, False)),
        (b'{"model":"m","embeddings":[[0.1]]}', True, (26, 0, True)),
        (b'{"embedding":[0.1,0.2]}', False, (26, 0, True)),
        (b'{"embedding":[]}', False, (26, 0, True)),
        (b'{"embeddings":[[0.1]],"prompt_eval_count":-8}', True, (26, 0, True)),
        (b'{"embeddings":[[' + b"0.123," * 300_000 + b'0.5]],"prompt_eval_count":8}', True, (8, 0, False)),
    ],
)
def test_u3_embeddings_are_read_from_their_tail(answer, reports, expected):
    for size in (1, 7, 4096, 1 << 16, 1 << 24):
        if len(answer) // size > 300_000:
            continue
        chunks = [answer[at : at + size] for at in range(0, len(answer), size)]
        meter = meter_of(chunks, EmbeddingMeter, reports=reports)
        assert meter.whole
        assert meter.complete
        assert tokens(meter) == expected


def test_b3_embeddings_cut_at_every_byte_are_not_whole():
    answer = b'{"model":"m","embeddings":[[0.1,0.2],[0.3]],"total_duration":5,"prompt_eval_count":8}'
    for size in range(len(answer)):
        assert not meter_of(answer[:size], EmbeddingMeter).whole


ODD = [-1, -(10**18), MAX_TOKENS + 1, 10**15, 10**30, 1.5, 1e300, "5", True, [], {}, [7], {"a": 1}]


@pytest.mark.parametrize("field", ["prompt_eval_count", "eval_count"])
@pytest.mark.parametrize("value", ODD)
def test_u4_counts_that_cannot_be_are_flagged_and_estimated(field, value):
    counts = meter_of(ndjson(text("a"), text("b"), final(**{field: value}))).counts()
    assert (counts.prompt_tokens, counts.completion_tokens) == (26, 2)
    assert counts.estimated
    assert counts.odd


@pytest.mark.parametrize("field", ["prompt_eval_count", "eval_count"])
@pytest.mark.parametrize("value", ODD)
def test_u4_the_same_in_a_unary_answer(field, value):
    answer = {**final(eval_count=2), "message": {"content": "12345678"}, field: value}
    counts = meter_of(json.dumps(answer).encode(), AnswerMeter).counts()
    assert (counts.prompt_tokens, counts.completion_tokens) == (26, 2)
    assert counts.estimated
    assert counts.odd


@pytest.mark.parametrize("field", ["load_duration", "prompt_eval_duration", "eval_duration"])
@pytest.mark.parametrize("value", [-1, 10**16, "5", True, []])
def test_u4_durations_that_cannot_be_are_flagged_and_zero(field, value):
    counts = meter_of(ndjson(text("a"), final(**{field: value}))).counts()
    assert counts.odd
    assert min(counts.load_ns, counts.prefill_ns, counts.decode_ns) == 0


def test_u4_whole_numbers_written_as_floats_are_taken():
    assert tokens(meter_of(ndjson(text("a"), final(eval_count=14.0)))) == (26, 14, False)


def test_u4_absent_is_no_oddity():
    counts = meter_of(ndjson(text("a"), {"done": True, "eval_count": 2, "prompt_eval_count": 3})).counts()
    assert not counts.odd
    assert (counts.load_ns, counts.decode_ns) == (0, 0)


def test_b3_an_end_that_is_followed_by_more_is_no_end():
    assert not meter_of(ndjson(text("a"), final(), text("b"))).complete


@pytest.mark.parametrize("value", [1, "true", None, [], {}])
def test_b3_done_must_be_true_itself(value):
    assert not meter_of(ndjson(text("a"), final(done=value))).complete


def test_b6_a_line_without_end_is_cut_at_the_cap_and_held_once():
    meter = LineMeter(ollama.usage, 0)
    chunk = b"x" * 65536
    for _ in range(MAX_LINE // len(chunk)):
        assert meter.feed(chunk) == b""
    assert len(meter.rest) == MAX_LINE
    with pytest.raises(BrokenAnswer):
        meter.feed(chunk)


def test_b6_a_unary_answer_without_end_is_cut_at_the_cap():
    meter = AnswerMeter(ollama.usage, 0)
    with pytest.raises(BrokenAnswer):
        for _ in range(10_000):
            assert meter.feed(b"x" * 65536)


def test_b2_before_there_is_an_answer_the_prompt_may_have_been_worked_on():
    assert tokens(Meter(ollama.usage, PROMPT_BYTES)) == (26, 0, True)
