"""What holds on every server: dialects, streams, records, limits, withdrawal, the end. (Leaving: test_departures.)"""

import asyncio
import json
import signal
import sys
import time

import pytest
import pytest_asyncio

from tenants.models import IPRule, Limit
from tests.live.gateway import ROOT, SERVERS
from tests.live.raw import RawClient, bearer
from tests.live.seen import new_calls, no_calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
PATIENCE = 20
# Larger than the largest body that is sent, smaller than the one that is refused.
MAX_BODY = 12 * MIB
STREAMS = {
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}]},
    "/api/generate": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "stream": True},
    "/v1/completions": {"prompt": "hi", "stream": True},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 64, "stream": True},
}


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVERS)
async def gateway(request, make_shared_gateway, shared_fake):
    made = make_shared_gateway(server=request.param, MAX_BODY_BYTES=str(MAX_BODY))
    made.make_backend(shared_fake.url, slots=50)
    made.key_row, made.key = made.make_key()
    made.stranger_row, made.stranger = made.make_key("stranger")
    made.rows(IPRule).create(cidr="10.0.0.0/8", action="allow", key=made.stranger_row)
    made.limited_row, made.limited = made.make_key("limited")
    limit = {"metric": "requests", "window": "day", "amount": 1, "mode": "enforce"}
    made.rows(Limit).create(scope="key", key=made.limited_row, **limit)
    yield await asyncio.to_thread(made.start)
    assert "Traceback" not in made.log()
    made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def fake(shared_fake):
    shared_fake.reset()
    yield shared_fake
    shared_fake.reset()
    await shared_fake.saw_idle(timeout=PATIENCE)


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway):
    async with gateway.client(gateway.key) as made:
        yield made


# Answers


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_arrives_piece_by_piece_and_is_recorded_once(gateway, fake, client, path):
    fake.faults(path=path, tokens=12, hang_after_chunks=4)
    body = {"model": "llama3.2", **STREAMS[path]}
    async with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_raw()
        first = await anext(pieces)  # comes while the backend waits
        await fake.saw("hung", timeout=PATIENCE)
        fake.release()
        rest = b"".join([piece async for piece in pieces])
    assert first
    assert rest
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.status, record.endpoint) == ("ok", 200, path)
    assert (record.completion_tokens, record.estimated, record.stream) == (12, False, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", chat(stream=False)),
        ("/api/embed", {"model": "nomic-embed-text", "input": ["a", "b"]}),
        ("/v1/chat/completions", chat()),
        ("/v1/embeddings", {"model": "nomic-embed-text", "input": "a"}),
        ("/v1/messages", chat(max_tokens=64)),
        ("/api/show", {"model": "llama3.2"}),
    ],
)
async def test_an_answer_in_one_piece_is_recorded_once(gateway, fake, client, path, body):
    answer = await client.post(path, json=body)
    assert answer.status_code == 200
    assert answer.json()
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.status) == ("ok", 200)


@pytest.mark.parametrize(
    "path", ["/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/readyz", "/admin/login/"]
)
async def test_listings_and_pages_are_served_beside_calls(gateway, fake, client, path):
    answer = await client.get(path, follow_redirects=True)
    assert (answer.status_code, bool(answer.content)) == (200, True)
    if path in ("/", "/api/version", "/api/tags", "/readyz"):
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")


async def test_ten_mib_arrive_whole_in_either_direction(gateway, fake, client):
    fake.faults(path="/api/chat", content=["x" * 50_000] * 210, times=1)
    prompt = "y" * (10 * MIB)
    answer = await client.post("/api/chat", json=chat(messages=[{"role": "user", "content": prompt}]))
    lines = answer.content.splitlines()
    assert sum(len(json.loads(line)["message"]["content"]) for line in lines) == 210 * 50_000
    (seen,) = [call for call in fake.calls if call.path == "/api/chat"]
    assert seen.json["messages"][0]["content"] == prompt
    record = await gateway.record(answer.headers["x-request-id"])
    assert record.bytes_in > 10 * MIB
    assert record.bytes_out == len(answer.content)


async def test_n10_requests_that_were_sent_ahead_are_answered_in_their_order(gateway, fake):
    async with RawClient(gateway.port) as raw:
        for model in ("llama3.2", "qwen3:8b", "llama3.2"):
            body = json.dumps(chat(model=model, stream=False)).encode()
            head = b"POST /api/chat HTTP/1.1\r\nHost: t\r\n%b: %b\r\nContent-Length: %d\r\n\r\n"
            await raw.send(head % (*bearer(gateway.key), len(body)) + body)
        answers = [await raw.answer() for _ in range(3)]
    assert [json.loads(answer.body)["model"] for answer in answers] == ["llama3.2", "qwen3:8b", "llama3.2"]


# Refusals


@pytest.mark.parametrize(
    ("path", "key", "body", "status", "code"),
    [
        ("/api/chat", "ogw_nobody", chat(), 401, "invalid_key"),
        ("/v1/chat/completions", "ogw_nobody", chat(), 401, "invalid_key"),
        ("/v1/messages", "ogw_nobody", chat(max_tokens=1), 401, "invalid_key"),
        ("/api/nothing", None, {}, 404, "unknown_route"),
        ("/api/chat", None, chat(model="absent"), 404, "model_not_found"),
        ("/api/chat", None, chat(messages=1), 400, "invalid_request"),
        ("/v1/chat/completions", None, chat(messages=1), 400, "invalid_request"),
    ],
)
async def test_a_refusal_speaks_the_dialect_of_its_path(gateway, fake, client, path, key, body, status, code):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with no_calls(fake):
        answer = await client.post(path, json=body, headers=headers)
    assert (answer.status_code, answer.headers["x-gateway-error"]) == (status, code)
    error = answer.json()["error"]
    assert isinstance(error, str if path.startswith("/api") else dict)


async def test_n7_a_body_above_the_cap_is_refused(gateway, fake, client):
    async def pieces():
        for _ in range(14):
            yield bytes(MIB)

    with no_calls(fake):
        answer = await client.post("/api/chat", content=pieces())
    assert answer.status_code == 413
    assert "error" in answer.json()
    assert (await client.post("/api/chat", json=chat(stream=False))).status_code == 200


async def test_n7_a_body_that_says_it_is_above_the_cap_is_refused_at_once_where_the_server_can(gateway, fake):
    waits_for_it = gateway.server in ("bare-daphne", "runserver")
    async with RawClient(gateway.port) as raw:
        head = b"POST /api/chat HTTP/1.1\r\nHost: t\r\n%b: %b\r\nContent-Length: %d\r\n\r\n"
        await raw.send(head % (*bearer(gateway.key), MAX_BODY + 1) + bytes(MAX_BODY + 1 if waits_for_it else 0))
        answer = await raw.answer()
    assert answer.status == 413
    assert "error" in json.loads(answer.body)


async def test_a_used_up_limit_is_told_with_the_time_to_wait(gateway, fake):
    async with gateway.client(gateway.limited) as limited:
        assert (await limited.post("/api/chat", json=chat(stream=False))).status_code == 200
        with no_calls(fake):
            answer = await limited.post("/api/chat", json=chat(stream=False))
    assert (answer.status_code, answer.headers["x-gateway-error"]) == (429, "limit_requests")
    assert int(answer.headers["retry-after"]) >= 1


async def test_i1_what_a_client_says_of_its_address_is_not_believed(gateway, fake):
    forged = {"x-forwarded-for": "10.1.2.3", "x-real-ip": "10.1.2.3", "forwarded": "for=10.1.2.3"}
    async with gateway.client(gateway.stranger) as stranger:
        with no_calls(fake):
            answer = await stranger.post("/api/chat", json=chat(), headers=forged)
    assert answer.status_code == 401


@pytest.mark.parametrize("header", ["Daphne-Root-Path", "Script-Name", "X-Original-URL"])
async def test_p5_no_header_moves_a_call(gateway, fake, client, header):
    with no_calls(fake):
        assert (await client.post("/v/api/chat", json=chat(), headers={header: "/v"})).status_code == 404
        if gateway.server in ("uvicorn", "daphne"):  # the others leave this to a proxy in front
            assert (await client.get("/v/admin/login/", headers={header: "/v"})).status_code == 404


# Answers that break off


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_b3_a_stream_that_breaks_off_ends_with_an_error(gateway, fake, client, path):
    fake.faults(path=path, reset_after_chunks=2, times=1)
    answer = await client.post(path, json={"model": "llama3.2", **STREAMS[path]})
    assert answer.status_code == 200
    assert "error" in answer.text
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.estimated) == ("failed", True)


async def test_b3_an_answer_in_one_piece_that_breaks_off_late_closes_its_connection(gateway, fake):
    """Its head has left, so there is nothing to say; but the client must not wait, nor take it for whole."""
    content = ["x" * 50_000] * 40
    fake.faults(path="/api/chat", content=content, cut_after_bytes=1_900_000, cut_with="fin", times=1)
    body = json.dumps(chat(stream=False)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=8 * MIB)
    head = b"POST /api/chat HTTP/1.1\r\nHost: t\r\n%b: %b\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % (*bearer(gateway.key), len(body)) + body)
    async with asyncio.timeout(PATIENCE):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        try:
            rest = await reader.read()
        except ConnectionResetError:
            rest = b""
    writer.close()
    assert head.startswith("http/1.1 200")
    assert not rest.endswith(b"0\r\n\r\n")
    request_id = next(line.split(": ")[1] for line in head.splitlines() if line.startswith("x-request-id"))
    record = await gateway.record(request_id)
    assert (record.outcome, record.status) == ("failed", 200)
    async with gateway.client(gateway.key) as client:
        assert (await client.post("/api/chat", json=chat(stream=False))).status_code == 200


# Withdrawal


async def test_a7_a_key_that_is_revoked_ends_its_stream(gateway, fake):
    row, key = gateway.make_key(f"revoked-{time.monotonic_ns()}")
    fake.faults(path="/api/chat", infinite=True, gap=0.02)
    async with gateway.client(key) as mine:
        async with asyncio.timeout(PATIENCE):
            while (await mine.get("/api/version")).status_code != 200:
                await asyncio.sleep(0.05)
        async with mine.stream("POST", "/api/chat", json=chat(options={"num_predict": 10_000})) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            began = time.monotonic()
            gateway.rows(type(row)).filter(pk=row.pk).update(enabled=False)
            async with asyncio.timeout(PATIENCE):
                rest = [json.loads(line) async for line in lines]
    print(f"cut after {time.monotonic() - began:.2f} s")
    assert "error" in rest[-1]
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.estimated) == ("cut", True)
    await fake.saw_idle(timeout=PATIENCE)


async def test_a_call_that_fails_in_us_is_500_and_the_next_is_answered(gateway, fake, client):
    """An exception that escaped would kill the reaper of Daphne, and later failures would hang (design §1)."""
    for _ in range(3):
        # Neither UTF-8 nor JSON, cut bodies, odd paths: none may reach the server as an exception.
        assert (await client.post("/api/chat", content=b"\xff\xfe{")).status_code == 400
        assert (await client.get("/admin/%ff/")).status_code in (302, 400, 404)
    await asyncio.sleep(1.1)  # the reaper looks once a second
    assert (await client.post("/api/chat", json=chat(stream=False))).status_code == 200


# The end. Each with a gateway of its own.


async def streaming(gateway, key, tokens, count):
    """Calls under way, as tasks of (request id, lines or None where the connection broke)."""

    async def one():
        async with gateway.client(key) as client:
            body = chat(options={"num_predict": tokens})
            async with client.stream("POST", "/api/chat", json=body, timeout=60) as answer:
                try:
                    lines = [json.loads(line) async for line in answer.aiter_lines()]
                except Exception:
                    lines = None
                return answer.headers["x-request-id"], lines

    return [asyncio.create_task(one()) for _ in range(count)]


async def until_streaming(gateway, fake, count):
    await fake.saw_running(count, timeout=30)
    await asyncio.sleep(0.2)


async def test_l1_daphne_behind_our_drain_lets_answers_end(make_gateway, fake):
    gateway = make_gateway(server="daphne", DRAIN_SECONDS="3")
    gateway.make_backend(fake.url, slots=100)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    await fake.switch(slots=100)
    fake.faults(path="/api/chat", tokens_per_second=20, tokens=10_000)
    short = await streaming(gateway, key, 25, 4)
    long = await streaming(gateway, key, 5000, 4)
    await until_streaming(gateway, fake, 8)
    began = time.monotonic()
    gateway.signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            except OSError:
                break
            writer.close()
            await asyncio.sleep(0.02)
    ended, cut = await asyncio.gather(*short), await asyncio.gather(*long)
    code = await asyncio.to_thread(gateway.process.wait, 30)
    gateway.process = None
    print(f"ended after {time.monotonic() - began:.1f} s")
    assert code == 0
    assert all(lines[-1]["done"] is True and lines[-1]["eval_count"] == 25 for _, lines in ended)
    assert all(list(lines[-1]) == ["error"] for _, lines in cut)
    records = {record.pk.hex: record.outcome for record in gateway.records()}
    assert {records[request_id] for request_id, _ in ended} == {"ok"}
    assert {records[request_id] for request_id, _ in cut} == {"interrupted"}
    assert len(records) == 8
    assert not list((gateway.directory / "spool").iterdir())
    assert "Traceback" not in gateway.log()


async def test_l1_a_second_signal_cuts_and_still_ends_well(make_gateway, fake):
    gateway = make_gateway(server="daphne", DRAIN_SECONDS="60")
    gateway.make_backend(fake.url, slots=100)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    fake.faults(path="/api/chat", infinite=True, gap=0.05)
    running = await streaming(gateway, key, 10_000, 2)
    await until_streaming(gateway, fake, 2)
    gateway.signal(signal.SIGTERM)
    await asyncio.sleep(1.2)  # sooner it would count as the same
    assert gateway.process.poll() is None
    gateway.signal(signal.SIGTERM)
    code = await asyncio.to_thread(gateway.process.wait, 30)
    gateway.process = None
    await asyncio.gather(*running)
    await asyncio.to_thread(gateway.start)
    records = await gateway.wait_for_records(2)
    assert (code, {record.outcome for record in records}) == (0, {"interrupted"})


@pytest.mark.parametrize("server", ["bare-daphne", "runserver"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=["TERM", "INT", "KILL"])
async def test_u1_the_end_of_a_server_that_knows_no_drain_loses_no_record(make_gateway, fake, server, how):
    gateway = make_gateway(server=server)
    gateway.make_backend(fake.url, slots=100)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    async with gateway.client(key) as client:
        whole = [(await client.post("/api/chat", json=chat())).headers["x-request-id"] for _ in range(3)]
    fake.faults(path="/api/chat", infinite=True, gap=0.02)
    running = await streaming(gateway, key, 10_000, 3)
    await until_streaming(gateway, fake, 3)
    gateway.signal(how)
    await asyncio.to_thread(gateway.process.wait, 30)
    cut = [request_id for request_id, _ in await asyncio.gather(*running)]
    if how is not signal.SIGKILL:
        assert len(gateway.records()) == 6, "what ends in order stores its records itself"
    fake.clear_faults()
    await asyncio.to_thread(gateway.start)
    records = {record.pk.hex: record for record in await gateway.wait_for_records(6, seconds=20)}
    assert {records[request_id].outcome for request_id in whole} == {"ok"}
    assert {records[request_id].outcome for request_id in cut} == {"interrupted"}
    assert len(records) == 6


async def test_a_server_is_ready_without_a_first_call(make_gateway, fake):
    """Nobody would send a call to one that is not ready."""
    gateway = make_gateway(server="bare-daphne")
    gateway.make_backend(fake.url)
    with new_calls(fake) as seen:
        await asyncio.to_thread(gateway.start)
    assert not seen


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--workers", "2"), "leave out --workers"), (("--tls-cert", "a", "--tls-key", "b"), "does not speak TLS")],
)
async def test_what_daphne_cannot_is_refused_with_what_to_do(make_gateway, arguments, says):
    gateway = make_gateway(server="daphne")
    command = [sys.executable, *gateway.command(), *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=gateway.env, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert says in said.decode()


@pytest.mark.slow
async def test_n5_a_connection_that_says_nothing_or_little_is_closed(make_gateway, fake):
    gateway = make_gateway(server="daphne")
    gateway.make_backend(fake.url)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)

    async def closed_after(first, then):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        began = time.monotonic()
        writer.write(first)
        reading = asyncio.create_task(reader.read())
        async with asyncio.timeout(60):
            while not reading.done():
                try:
                    writer.write(then)
                except OSError:
                    pass
                await asyncio.wait([reading], timeout=0.5)
        writer.close()
        said = b"" if reading.exception() else reading.result()
        return said[:12], time.monotonic() - began

    slow_head = closed_after(b"POST /api/chat HTTP/1.1\r\nhost: x\r\n", b"x: y\r\n")
    slow_body = closed_after(b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n", b"1")
    results = await asyncio.gather(closed_after(b"", b""), slow_head, slow_body)
    print([f"{said!r} after {took:.1f} s" for said, took in results])
    assert [said for said, _ in results] == [b"HTTP/1.1 408"] * 3
    assert all(9 < took < 40 for _, took in results)
    async with gateway.client(key) as client:
        assert (await client.post("/api/chat", json=chat(stream=False))).status_code == 200
