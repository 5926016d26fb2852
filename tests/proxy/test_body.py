"""Rows J1–J7, J12: what is understood of a body is what goes on, and nothing else."""

import json
import random
import time

import orjson
import pytest

from proxy import body
from proxy.dialects import ollama
from proxy.dialects.base import Pin
from proxy.errors import BadRequest
from proxy.fake_ollama.gojson import decode_as_go
from proxy.fake_ollama.options import LOAD_TIME, limit_of
from proxy.fake_ollama.requests import ChatRequest
from tests.proxy.odd_bodies import KELVIN, LONG_S, odd_chat

PIN = Pin(output_cap=100, output_default=40)


def read(raw, schema=ollama.CHAT):
    return body.read(raw if isinstance(raw, bytes) else raw.encode(), schema)


def refusal(raw, schema=ollama.CHAT):
    with pytest.raises(BadRequest) as caught:
        read(raw, schema)
    assert caught.value.status == 400
    return caught.value.message


# J1, J2: keys


@pytest.mark.parametrize("spelling", ["Model", "MODEL", "mOdEl", "\\u004dodel"])
def test_j1_a_lone_key_that_folds_to_a_field_is_renamed(spelling):
    assert read(f'{{"{spelling}": "m"}}') == {"model": "m"}


@pytest.mark.parametrize(
    ("key", "field"),
    [(f"mes{LONG_S}ages", "messages"), (f"{LONG_S}tream", "stream"), (f"{KELVIN}eep_alive", "keep_alive")],
)
def test_j1_letters_that_fold_into_ascii_count_as_it(key, field):
    assert set(read(orjson.dumps({key: None}))) == {field}


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ('{"model":"allowed","MODEL":"forbidden"}', '"model"'),
        ('{"MODEL":"forbidden","model":"allowed"}', '"model"'),
        ('{"Stream":false,"stream":true}', '"stream"'),
        (f'{{"{LONG_S}tream":false,"stream":true}}', '"stream"'),
        ('{"model":"m","options":{"num_predict":1,"NUM_PREDICT":-1}}', '"options.num_predict"'),
        ('{"model":"m","messages":[{"content":"a","Content":"b"}]}', '"messages[].content"'),
    ],
)
def test_j1_two_spellings_of_one_field_are_refused_by_name(raw, named):
    assert named in refusal(raw)


def test_j1_unknown_names_are_ascii_and_quoted_briefly():
    assert "ASCII" in refusal('{"model":"m","modèle":"x"}')
    assert len(refusal(orjson.dumps({"ü" * 1_000_000: 1}))) < 500


def test_j1_free_form_parts_keep_their_keys():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"Model": 1, "model": 2, "größe": 3}}}
    call = {"function": {"name": "f", "arguments": {"STREAM": 1, "stream": 2}}}
    said = {"model": "m", "tools": [tool], "messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    said["format"] = {"type": "object", "properties": {"Model": {}, "model": {}}}
    assert read(orjson.dumps(said)) == said


def test_j2_of_a_repeated_key_the_last_wins_and_nothing_merges():
    raw = '{"model":"a","options":{"num_ctx":9,"seed":1},"model":"b","options":{"top_k":3}}'
    assert read(raw) == {"model": "b", "options": {"top_k": 3}}


def test_j2_a_null_that_go_would_ignore_is_not_sent_beside_another_value():
    assert orjson.dumps(read('{"stream":false,"model":"m","stream":null}')) == b'{"stream":null,"model":"m"}'


def test_j1_j2_the_backend_understands_what_the_gateway_decided():
    """Some thousand bodies, each decided by our functions and then read by Go's rules."""
    rng = random.Random("J1 and J2")
    accepted = 0
    for _ in range(6000):
        raw = odd_chat(rng)
        try:
            request = read(raw)
        except BadRequest:
            continue
        accepted += 1
        model, stream = request.get("model"), ollama.wants_stream(request)
        cap = ollama.govern_generation(request, PIN).output_cap
        seen = decode_as_go(orjson.dumps(request), ChatRequest)
        assert (seen.get("model"), seen.get("stream") is not False) == (model, stream), raw
        assert limit_of(seen.get("options") or {}) == cap, raw
        assert 0 < cap <= PIN.output_cap, raw
        assert not seen.keys() & {"keep_alive", "shift", "_debug_render_only"}, raw
        assert not (seen.get("options") or {}).keys() & set(LOAD_TIME), raw
        assert [(m.get("role"), m.get("content")) for m in seen.get("messages") or []] == [
            (m.get("role"), m.get("content")) for m in request.get("messages") or []
        ], raw
    print(f"{accepted} of 6000 accepted")
    assert 1000 < accepted < 5000


# J3, J10: the object alone goes on


def test_j3_what_is_written_anew_holds_no_byte_of_the_clients_layout():
    assert orjson.dumps(read('  {\n "model" :\t"m" , "x":\r\n1e2 } ')) == b'{"model":"m","x":100.0}'


# J4: strictness


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" \n\t",
        b" " * 5000,
        b"null",
        b"[]",
        b'"model"',
        b"7",
        b'{"model":"m"} {"model":"n"}',
        b'{"model":"m"}x',
        b'{"model":"m"}\x00',
        b'\xef\xbb\xbf{"model":"m"}',
        '{"model":"m"}'.encode("utf-16"),
        '{"model":"m"}'.encode("utf-16-le"),
        '{"model":"m"}'.encode("utf-32"),
        b'{"model":"\xff"}',
        b'{"model":"\xc0\xaf"}',
        b'{"model":"\xed\xa0\x80"}',
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"\\udc00\\ud800"}',
        b'{"seed":NaN}',
        b'{"seed":Infinity}',
        b'{"seed":-Infinity}',
        b'{"seed":1e400}',
        b'{"seed":' + b"9" * 5000 + b"}",
        b'{"seed":01}',
        b'{"seed":+1}',
        b'{"seed":0x10}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":1 /* no */}',
        b'{"a":"\n"}',
        b'{"a":"\x00"}',
        b'{"a"',
    ],
)
def test_j4_what_is_no_strict_json_object_is_refused(raw):
    refusal(raw, ollama.GENERATE)


def test_j4_any_bytes_are_an_object_or_a_refusal():
    rng = random.Random("J4")
    pieces = [b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"1", b"e9", b"\x00", b"\xff", b"\xed\xa0", b"nul", b"a"]
    for _ in range(5000):
        raw = b"".join(rng.choices(pieces, k=rng.randint(1, 40)))
        try:
            assert isinstance(read(raw), dict)
        except BadRequest:
            pass


# J5: depth


def nested(levels, opening=b"[", closing=b"]"):
    """An object of so many levels in all."""
    return b'{"a":' + opening * (levels - 1) + closing * (levels - 1) + b"}"


@pytest.mark.parametrize("padding", [0, body.COUNTED_ABOVE, 3 * body.SLICE])
@pytest.mark.parametrize(("levels", "fits"), [(99, True), (100, True), (101, False), (10**4, False), (10**6, False)])
def test_j5_depth_is_capped_at_100_levels(levels, fits, padding):
    raw = nested(levels)[:-1] + b',"pad":"' + b"x" * padding + b'"}'
    if fits:
        read(raw)
    else:
        refusal(raw)


@pytest.mark.parametrize("text", ["[" * 5000, '\\"[' * 5000, "\\\\" * 3 + "{" * 5000, '"' + "[" * 5000])
@pytest.mark.parametrize("padding", [0, body.COUNTED_ABOVE])
def test_j5_brackets_in_strings_are_no_depth(text, padding):
    said = {"prompt": text, "pad": "x" * padding}
    assert read(orjson.dumps(said), ollama.GENERATE) == said


def test_j5_depth_is_found_behind_strings_that_seem_not_to_end():
    for text in (b'"\\""', b'"\\\\"', b'"\\\\\\""', b'"[\\\\"'):
        refusal(b'{"a":' + text + b',"b":' + b"[" * 100 + b"]" * 100 + b"}")


def test_j5_j6_slices_count_as_the_whole_would():
    """Cut anywhere, also between a backslash and what it escapes."""
    raw = b'{"a":"x\\\\\\"[,:{","b":[{"c":"\\\\"},[1,2]],"d":"\\\\\\\\","e":{"f":[]}}'
    whole = body.Outline()
    whole.add(raw)
    for first in range(len(raw)):
        for second in range(first, len(raw)):
            parts = body.Outline()
            for part in (raw[:first], raw[first:second], raw[second:]):
                parts.add(part)
            assert parts.counted == whole.counted == (5, 6, 6, 0), (first, second)


# J6: breadth

MEGABYTES = 20 << 20


def filled(before, unit, after):
    return before + unit * ((MEGABYTES - len(before) - len(after)) // len(unit)) + after


def listed(before, unit, after, count):
    return before + b",".join([unit] * count) + after


def keyed(before, key, after, count):
    return before + b",".join(b'"%b%d":0' % (key, number) for number in range(count)) + after


TOO_BROAD = {
    "lists": listed(b'{"a":[', b"[]", b"]}", 200_000),
    "objects": listed(b'{"a":[', b"{}", b"]}", 200_000),
    "messages": listed(b'{"messages":[', b"{}", b"]}", 100_000),
    "messages with fields": listed(b'{"messages":[', b'{"role":"","z":1}', b"]}", 100_000),
    "keys": keyed(b"{", b"k", b"}", 300_000),
    "keys that fold": keyed(b"{", b"\xc3\xbc", b"}", 300_000),
    "options": keyed(b'{"options":{', b"k", b"}}", 300_000),
    "numbers": listed(b'{"context":[', b"1", b"]}", 500_000),
    "openings": b"[" * (4 << 20),
    "quotes": b"[" * 101 + b'"' * (4 << 20),
}
WORST_THAT_PASS = {
    "lists": listed(b'{"a":[', b"[]", b"]}", 29_000),
    "messages": listed(b'{"messages":[', b"{}", b"]}", 29_000),
    "messages with fields": listed(b'{"messages":[', b'{"role":"","z":1,"y":2}', b"]}", 29_000),
    "keys": keyed(b"{", b"k", b"}", 99_000),
    "keys in other cases": keyed(b'{"Model":"m",', b"K", b"}", 99_000),
    "options": keyed(b'{"options":{', b"k", b"}}", 99_000),
    "numbers": listed(b'{"context":[', b"1", b"]}", 399_000),
    "strings": listed(b'{"images":[', b'""', b"]}", 399_000),
    "small lists": listed(b'{"a":[', b"[]", b"]}", body.COUNTED_ABOVE // 3 - 5),
    "small messages": listed(b'{"messages":[', b"{}", b"]}", body.COUNTED_ABOVE // 3 - 10),
    "small keys": keyed(b"{", b"", b"}", body.COUNTED_ABOVE // 10),
    "text": filled(b'{"prompt":"', b"x", b'"}'),
    "commas in a text": filled(b'{"prompt":"', b",[{", b'"}'),
    "quotes in a text": filled(b'{"prompt":"' + b"[" * 101, b'\\"', b'"}'),
    "escapes in a text": filled(b'{"prompt":"', b"\\u4e16", b'"}'),
    "wide letters in a text": filled('{"prompt":"\U0001f600'.encode(), b"x", b'"}'),
    "blanks": filled(b"{", b" ", b'"prompt":"x"}'),
}


@pytest.mark.parametrize("name", TOO_BROAD)
def test_j6_broad_bodies_are_refused_before_they_are_parsed(name):
    raw = TOO_BROAD[name]
    started = time.thread_time()
    assert "the body" in refusal(raw)
    print(f"{len(raw) / 1e6:.1f} MB refused after {(time.thread_time() - started) * 1000:.1f} ms")


def longest_step(raw, schema):
    """Seconds of the longest step between two chances for other calls, as proxy/requests.py takes them."""
    longest, at = 0.0, time.thread_time()

    def step():
        nonlocal longest, at
        now = time.thread_time()
        longest, at = max(longest, now - at), now

    if len(raw) > body.COUNTED_ABOVE:
        for _ in body.weighing(raw):
            step()
        value = body.parsed(raw)
        step()
        value = body.conform("", value, schema)
    else:
        value = body.read(raw, schema)
    ollama.govern_generation(value, PIN)
    orjson.dumps(value)
    step()
    return longest


@pytest.mark.parametrize("name", WORST_THAT_PASS)
def test_j6_no_body_that_passes_holds_the_loop_for_long(name):
    raw = WORST_THAT_PASS[name]
    schema = ollama.CHAT if b'"messages"' in raw[:20] else ollama.GENERATE
    held = min(longest_step(raw, schema) for _ in range(3))
    print(f"{len(raw) / 1e6:.1f} MB hold the loop for {held * 1000:.1f} ms")
    # The bar is 50 ms on a quiet machine; with one emoji, 20 MB of text are 80 MB in memory, and that takes its time.
    assert held < 0.5


# J7: types


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("model", [7, [], {}, True]),
        ("stream", ["false", 0, [], {}]),
        ("messages", ["hi", {}, 7, [7], ["hi"], [[]]]),
        ("options", ["x", [], 7, True]),
        ("keep_alive", [True, [], {}]),
        ("think", ["loud", 7, [], {}]),
        ("format", ["yaml", 7, [], True]),
        ("truncate", ["true", 1]),
        ("shift", ["true", 1]),
        ("logprobs", ["true", 1]),
        ("top_logprobs", [-1, 21, 1.5, "3", True]),
        ("tools", [{}, "x", 7]),
    ],
)
def test_j7_a_wrong_type_is_refused_by_the_name_of_its_field(field, values):
    for value in values:
        assert field in refusal(orjson.dumps({field: value})), value


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("num_predict", ["1", 1.5, True, [], {}, 2**63, -(2**63) - 1, 1e300]),
        ("num_ctx", ["4096", False]),
        ("temperature", ["0", True, []]),
        ("stop", ["x", [1], {}]),
        ("use_mmap", [1, "true"]),
    ],
)
def test_j7_a_wrong_option_is_refused_by_its_name(option, values):
    for value in values:
        assert f"options.{option}" in refusal(json.dumps({"options": {option: value}}), ollama.GENERATE), value


@pytest.mark.parametrize(
    ("schema", "field", "value"),
    [
        (ollama.GENERATE, "prompt", 7),
        (ollama.GENERATE, "context", ["1"]),
        (ollama.GENERATE, "context", [True]),
        (ollama.GENERATE, "images", [1]),
        (ollama.EMBED, "input", 7),
        (ollama.EMBED, "input", [1]),
        (ollama.EMBED, "input", {}),
        (ollama.EMBED, "dimensions", "3"),
        (ollama.EMBEDDINGS, "prompt", ["x"]),
        (ollama.SHOW, "name", 7),
        (ollama.CHAT, "messages", [{"content": ["parts"]}]),
        (ollama.CHAT, "messages", [{"role": 7}]),
    ],
)
def test_j7_each_route_checks_its_own_fields(schema, field, value):
    assert field in refusal(orjson.dumps({field: value}), schema)


def test_j7_null_stands_for_an_absent_field():
    said = dict.fromkeys(ollama.CHAT.names)
    assert read(orjson.dumps(said)) == said


# J12


def test_j12_no_field_of_a_request_steers_the_gateway():
    steering = {"api_base": "http://evil/", "backend": "two", "user": "root", "metadata": {"id": 1}, "id": "x"}
    plain, steered = {"model": "m", "stream": True}, {"model": "m", "stream": True, **steering}
    assert ollama.govern_generation(read(orjson.dumps(plain)), PIN) == ollama.govern_generation(
        read(orjson.dumps(steered)), PIN
    )
