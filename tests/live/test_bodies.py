"""Rows J1–J10 with real servers: the backend reads what the gateway decided, and odd bodies harm nobody else."""

import asyncio
import json
import random
import time

import orjson
import pytest
import pytest_asyncio

from proxy.fake_ollama.gojson import decode_as_go
from proxy.fake_ollama.options import limit_of
from proxy.fake_ollama.requests import ChatRequest
from tests.live.raw import RawClient
from tests.live.seen import new_calls, no_calls
from tests.proxy.odd_bodies import odd_chat
from tests.proxy.test_body import TOO_BROAD, WORST_THAT_PASS

pytestmark = pytest.mark.asyncio(loop_scope="module")


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway(MAX_OUTPUT_TOKENS="100", DEFAULT_OUTPUT_TOKENS="40", MAX_BODY_BYTES=str(21 << 20))
    made.make_backend(shared_fake.url, slots=8)
    _, made.key = made.make_key(models_allowed=["llama3.2"])
    return await asyncio.to_thread(made.start)


@pytest.fixture
def fake(shared_fake):
    shared_fake.clear_faults()
    return shared_fake


async def post(raw, gateway, body, *headers, path="/api/chat"):
    body = body if isinstance(body, bytes) else orjson.dumps(body)
    return await raw.ask("POST", path, (b"Authorization", b"Bearer " + gateway.key.encode()), *headers, body=body)


async def test_j1_j2_the_fake_reads_what_the_gateway_decided(gateway, fake, raw):
    """What the key may use, whether the answer streams, and how long it may become."""
    rng = random.Random("live")
    accepted, statuses, streamed = 0, {}, {}
    for _ in range(1500):
        body = odd_chat(rng)
        with new_calls(fake) as seen:
            answer = await post(raw, gateway, body)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        if not seen:
            assert answer.status in (400, 404), (body, answer)
            continue
        accepted += 1
        (call,) = seen
        understood = decode_as_go(call.body, ChatRequest)
        assert understood["model"] == "llama3.2", body
        assert 0 < limit_of(understood["options"]) <= 100, body
        assert not understood.keys() & {"keep_alive", "shift"}, body
        assert answer.status < 500, body
        if answer.status == 200 and understood.get("messages"):
            streams = understood.get("stream") is not False
            assert answer.all("content-type")[0].startswith("application/x-ndjson") is streams, body
            streamed[answer.all("x-request-id")[0]] = streams
    records = await gateway.wait_for_records(len(streamed), id__in=list(streamed))
    assert {record.id.hex: record.stream for record in records} == streamed
    assert {record.model for record in records} == {"llama3.2:latest"}
    print(f"{accepted} of 1500 reached the fake: {statuses}")
    assert accepted > 150


async def test_j1_a_forbidden_model_hides_behind_no_spelling(gateway, fake, raw):
    with no_calls(fake):
        for body in (
            b'{"model":"llama3.2","MODEL":"qwen3:8b","messages":[]}',
            b'{"MODEL":"qwen3:8b","messages":[]}',
            b'{"model":"llama3.2","model":"qwen3:8b","messages":[]}',
            b'{"model":"llama3.2","\\u006dodel":"qwen3:8b","messages":[]}',
        ):
            assert (await post(raw, gateway, body)).status in (400, 404), body


async def test_j3_the_backend_gets_only_what_was_written_anew(gateway, fake, raw):
    body = b'\r\n {  "messages"\t:[ {"role":"user","content":"hi"} ],\n"Model":"LLAMA3.2:latest", "Stream":false,'
    body += b'"x":1.50}  '
    with new_calls(fake) as seen:
        assert (await post(raw, gateway, body)).status == 200
    assert seen[0].body == (
        b'{"messages":[{"role":"user","content":"hi"}],"model":"llama3.2:latest","stream":false,"x":1.5,'
        b'"options":{"num_predict":40}}'
    )
    assert seen[0].header("content-length") == str(len(seen[0].body))


@pytest.mark.parametrize(
    "kind",
    [
        *(b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"text/plain", b"text/html"),
        *(b"application/json; charset=utf-16", b"", b"application/octet-stream", b"\xff", None),
    ],
)
async def test_j10_json_is_read_whatever_the_type_says(gateway, fake, raw, kind):
    headers = [] if kind is None else [(b"Content-Type", kind)]
    with new_calls(fake) as seen:
        assert (await post(raw, gateway, chat(stream=False), *headers)).status == 200
    assert seen[0].header("content-type") == "application/json"
    with no_calls(fake):
        assert (await post(raw, gateway, b"model=llama3.2&prompt=x", *headers)).status == 400


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b'{"model":"llama3.2"}{}', b"\xef\xbb\xbf{}", b'{"model":"\xff"}', b'{"seed":NaN}'),
        *(b'{"seed":' + b"9" * 5000 + b"}", b'{"a":' * 5000 + b"1" + b"}" * 5000, b"[" * 1_000_000),
        *('{"model":"llama3.2"}'.encode("utf-16"), b'{"model":"llama3.2","options":"x"}', b'{"model":7}'),
    ],
)
async def test_j4_j5_j7_what_is_malformed_is_400_in_the_dialect(gateway, fake, raw, body):
    with no_calls(fake):
        for path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"):
            answer = await post(raw, gateway, body, path=path)
            assert answer.status == 400, (path, answer)
            assert isinstance(json.loads(answer.body)["error"], str)
            assert len(answer.body) < 1000


async def test_j6_broad_bodies_do_not_hold_up_a_stream(gateway, fake, raw):
    """A stream of 50 chunks a second goes on while the worst bodies come in."""
    fake.faults(times=1, path="/api/chat", infinite=True, tokens_per_second=50)
    gaps, done = {}, asyncio.Event()
    current = ["nothing"]

    async def listen():
        call = chat(options={"num_predict": 100})
        async with gateway.client(gateway.key) as client, client.stream("POST", "/api/chat", json=call) as answer:
            last = time.perf_counter()
            async for _ in answer.aiter_raw():
                now = time.perf_counter()
                gaps[current[0]] = max(gaps.get(current[0], 0), now - last)
                last = now
                if done.is_set():
                    return

    bodies = {**TOO_BROAD, **{f"{name} that pass": body for name, body in WORST_THAT_PASS.items()}}
    listener = asyncio.create_task(listen())
    await fake.saw_running()
    for name, body in bodies.items():
        current[0] = name
        async with RawClient(gateway.port) as other:
            answer = await post(other, gateway, body, path="/api/generate")
            assert answer.status in (400, 404), (name, answer)
            assert name not in TOO_BROAD or b"the body" in answer.body, (name, answer)
    done.set()
    await listener
    worst = max(gaps, key=gaps.get)
    print(f"longest gap {gaps[worst] * 1000:.0f} ms, beside {worst!r}")
    assert gaps[worst] < 1.5


NUL_IN_NAMES = [
    "llama3.2\x00",
    "\x00llama3.2",
    "llama\x003.2",
    "llama3.2:\x00",
    "llama\n3.2",
    "llama3.2\x1b[31m",
    "\x7f",
]


@pytest.mark.parametrize("name", NUL_IN_NAMES)
async def test_j8_control_characters_in_a_name_are_refused(gateway, fake, raw, name):
    with no_calls(fake):
        for path, field in (
            ("/api/chat", "model"),
            ("/api/show", "name"),
            ("/api/show", "model"),
            ("/api/embed", "model"),
        ):
            answer = await post(raw, gateway, {field: name, "input": "x"}, path=path)
            assert (answer.status, json.loads(answer.body)["error"]) == (400, "invalid model name")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request):
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


async def test_j8_nul_in_prompts_and_odd_bytes_in_headers_are_stored_safely(make_gateway, fake, database_url):
    made = make_gateway(database_url=database_url)
    made.make_backend(fake.url)
    _, made.key = made.make_key()
    await asyncio.to_thread(made.start)
    odd = [(b"User-Agent", b"x\xff\xc3\xbc" * 200), (b"X-OpenWebUI-User-Id", b"\xed\xa0\x80'\"<" * 50)]
    body = chat(stream=False, system="\x00", messages=[{"role": "user", "content": "a\x00b\ud7ff\U0001f600"}])
    with new_calls(fake) as seen:
        async with RawClient(made.port) as client:
            answer = await post(client, made, body, *odd)
            spaced = await post(client, made, {**body, "model": " \tLLAMA3.2\n"})
            longest = await post(client, made, {**body, "model": "h" * 300 + "/n/" + "m" * 80})
    assert (answer.status, spaced.status, longest.status) == (200, 200, 404)
    assert seen[0].json["messages"][0]["content"] == body["messages"][0]["content"]
    record = await made.record(answer.all("x-request-id")[0])
    assert record.user_agent == ("xÿÃ¼" * 200)[:256]
    assert len(record.end_user) == 128
    assert (await made.record(spaced.all("x-request-id")[0])).model_asked == "LLAMA3.2"
    assert (await made.record(longest.all("x-request-id")[0])).model.startswith("hhh")
    assert "no column" not in made.log()
