"""Clients that leave, in every phase of a call, and clients that stop reading (B10, M6, N6, L3)."""

import asyncio
import json
import socket
import subprocess
import sys
import time

import httpx
import psutil
import pytest
import pytest_asyncio

from tests.live.gateway import ROOT
from tests.live.seen import calls, no_calls
from tests.no_tls import NO_TLS

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINE_LENGTH = 2
STALL = 3
PATIENCE = 20


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["uvicorn wire", "uvicorn httpx", "daphne wire", "bare-daphne httpx"]
)
async def gateway(request, make_shared_gateway, shared_fake):
    """On each server and each transport: how a client's departure is heard, and how a backend is told of it."""
    server, transport = request.param.split()
    made = make_shared_gateway(server=server, LINE_LENGTH=str(LINE_LENGTH), STALL_SECONDS=str(STALL))
    made.make_backend(shared_fake.url, slots=50, transport=transport)
    made.key_row, made.key = made.make_key()
    yield await asyncio.to_thread(made.start)
    made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def fake(shared_fake):
    shared_fake.reset()
    await shared_fake.switch(slots=60)
    yield shared_fake
    shared_fake.reset()
    await shared_fake.saw_idle(timeout=PATIENCE)


class Caller:
    """One call on a connection of its own, ended by closing it, in order or by a reset."""

    def __init__(self, gateway, path="/api/chat", body=None, key=None, buffer=0):
        self.gateway = gateway
        self.body = json.dumps(chat() if body is None else body).encode()
        self.path = path
        self.key = key or gateway.key
        self.buffer = buffer

    async def __aenter__(self):
        sock = socket.socket()
        if self.buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.gateway.port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
        self.writer.write(
            f"POST {self.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.key}\r\n"
            f"content-length: {len(self.body)}\r\n\r\n".encode()
            + self.body
        )
        return self

    async def head(self):
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return self.status

    async def until(self, text):
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(text)

    def leave(self, how="reset"):
        """Returns the moment of it (monotonic)."""
        if how == "reset":
            self.writer.transport.abort()
        elif how == "half-close":
            self.writer.write_eof()
        else:
            self.writer.close()
        return time.monotonic()

    async def __aexit__(self, *exc):
        self.writer.close()


async def departed(gateway, fake, left_at):
    """Asserts that the backend was let go within 1 s; returns its call."""
    seen = await fake.saw_disconnect(timeout=PATIENCE)
    took = seen.disconnected_at - left_at
    print(f"upstream closed {took * 1000:.1f} ms after the client left")
    assert took <= 1.0
    await fake.saw_idle(timeout=PATIENCE)
    return seen


@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
async def test_b10_while_streaming_the_tokens_so_far_are_recorded(gateway, fake, how):
    fake.faults(hang_after_chunks=3)
    async with Caller(gateway) as caller:
        assert await caller.head() == 200
        await caller.until(b"tok3")
        left_at = caller.leave(how)
        await departed(gateway, fake, left_at)
    record = await gateway.record(caller.headers["x-request-id"])
    assert (record.outcome, record.status, record.error) == ("cancelled", 200, "client_gone")
    assert (record.completion_tokens, record.estimated) == (3, True)
    assert record.prompt_tokens > 0


LAST_OBJECTS = {
    "done": ("/api/chat", b'{"message":{"content":"a"},"done":true,"prompt_eval_count":5,"eval_count":2}\n', "ok"),
    "error": ("/api/chat", b'{"message":{"content":"a"},"done":false}\n{"error":"the runner died"}\n', "failed"),
    "[DONE]": (
        "/v1/chat/completions",
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\ndata: [DONE]\n\n',
        "ok",
    ),
}


@pytest.mark.parametrize("last", LAST_OBJECTS)
async def test_after_the_last_object_the_call_has_ended_though_the_backend_has_not_closed_it(gateway, fake, last):
    path, body, outcome = LAST_OBJECTS[last]
    kind = b"application/x-ndjson" if path == "/api/chat" else b"text/event-stream"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
    raw = head + b"%x\r\n%b\r\n" % (len(body), body)
    fake.faults(path=path, raw=raw.decode(), raw_close=False)
    async with Caller(gateway, path, chat(stream=True)) as caller:
        assert await caller.head() == 200
        await caller.until(body.rstrip().rpartition(b"\n")[2])
        caller.leave("close")
        record = await gateway.record(caller.headers["x-request-id"], PATIENCE)
    assert (record.outcome, record.error) == (outcome, "" if outcome == "ok" else "backend_error")
    if outcome == "ok":
        assert (record.prompt_tokens, record.completion_tokens, record.estimated) == (5, 2, False)


PHASES = {
    "before the head of a stream": ("/api/chat", chat(), {"hang_before_headers": True}, "hung"),
    "while the model loads": ("/api/chat", chat(model="qwen3:8b"), {"hang_load": True}, "hung"),
    "while a unary answer is generated": ("/api/chat", chat(stream=False), {"hang_after_chunks": 2}, "hung"),
    "while generate generates": (
        "/api/generate",
        {"model": "llama3.2", "prompt": "x", "stream": False},
        {"hang_after_chunks": 2},
        "hung",
    ),
    "while it embeds": (
        "/api/embed",
        {"model": "nomic-embed-text", "input": "x"},
        {"hang_before_headers": True},
        "hung",
    ),
    "while it shows": ("/api/show", {"model": "llama3.2"}, {"hang_before_headers": True}, "hung"),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["reset", "half-close"])
async def test_b10_before_there_is_an_answer_the_backend_is_let_go_at_once(gateway, fake, phase, how):
    path, body, fault, event = PHASES[phase]
    fake.faults(path=path, **fault)
    label = f"{phase} {how}".replace(" ", "-")
    before = {record.id for record in gateway.records(endpoint=path)}
    async with Caller(gateway, path, body) as caller:
        await fake.saw(event, timeout=PATIENCE)
        await departed(gateway, fake, caller.leave(how))
    found = []
    async with asyncio.timeout(PATIENCE):
        while not found:
            found = [record for record in gateway.records(endpoint=path) if record.id not in before]
            await asyncio.sleep(0.05)
    (record,) = found
    assert (record.outcome, record.status, record.error) == ("cancelled", 499, "client_gone"), label
    assert record.completion_tokens == 0
    if path != "/api/show":
        # Nobody can say how far it came: the prompt may have been worked on.
        assert record.prompt_tokens > 0
        assert record.estimated
    if fault.get("hang_load"):
        assert fake.counts()["loads_aborted"] == 1


async def test_m6_b10_waiting_in_line_a_client_that_leaves_frees_its_place_at_once(make_gateway, fake):
    gateway = make_gateway(LINE_LENGTH=str(LINE_LENGTH))
    gateway.make_backend(fake.url, slots=1)
    _, gateway.key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    fake.faults(path="/api/chat", hang_after_chunks=1)
    async with (
        Caller(gateway) as first,
        Caller(gateway, body=chat(options={"seed": 2})) as second,
        Caller(gateway, body=chat(options={"seed": 3})) as third,
    ):
        await first.head()
        refusal = await refused_in_line(gateway)
        assert refusal.status_code == 503
        assert refusal.headers["x-gateway-error"] == "line_full"
        assert int(refusal.headers["retry-after"]) >= 1
        assert "error" in refusal.json()
        left_at = second.leave()
        # Its place is free as soon as the gateway has heard of it: the next one is let in.
        fourth = await let_in(gateway, left_at)
        fake.clear_faults()
        fake.release()
        assert await third.head() == 200
        assert (await fourth).status_code == 200
    seen = [call.json["options"].get("seed") for call in calls(fake)]
    assert seen == [None, 3, 4], "who left never reached the backend, the others came in their order"
    records = {record.error: record for record in gateway.records(outcome__in=["cancelled", "refused_in_line"])}
    assert {"client_gone", "line_full"} == set(records)
    gone = records["client_gone"]
    assert (gone.status, gone.prompt_tokens, gone.completion_tokens, gone.attempts) == (499, 0, 0, 0)
    assert records["line_full"].outcome == "refused_in_line"
    await gateway.wait_for_records(3, outcome="ok")


async def refused_in_line(gateway):
    """Calls, each given up after a moment, until one is refused because the line is full."""
    async with asyncio.timeout(PATIENCE), gateway.client(gateway.key) as client:
        while True:
            try:
                return await client.post("/api/chat", json=chat(options={"seed": 9}), timeout=0.3)
            except httpx.ReadTimeout:
                continue


async def let_in(gateway, left_at):
    """A call that is let into the line; how long that took since someone left is printed."""
    while time.monotonic() - left_at < PATIENCE:
        call = asyncio.create_task(post(gateway, chat(options={"seed": 4})))
        done, _ = await asyncio.wait([call], timeout=0.3)
        if not done:
            print(f"let in within {(time.monotonic() - left_at - 0.3) * 1000:.1f} ms after the other left")
            assert time.monotonic() - left_at < 1.3
            return call
        assert call.result().status_code == 503
    raise AssertionError("never let in")


async def post(gateway, body):
    async with gateway.client(gateway.key) as client:
        return await client.post("/api/chat", json=body, timeout=PATIENCE)


async def test_m6_the_line_is_bounded_and_the_refused_reach_no_backend(make_gateway, fake):
    gateway = make_gateway(LINE_LENGTH="3", LINE_SECONDS="1.5")
    gateway.make_backend(fake.url, slots=1)
    _, gateway.key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    fake.faults(path="/api/chat", hang_after_chunks=1, times=1)
    async with Caller(gateway) as first:
        await first.head()
        with no_calls(fake):
            began = time.monotonic()
            answers = await asyncio.gather(*(post(gateway, chat()) for _ in range(20)))
            took = time.monotonic() - began
        codes = [answer.headers["x-gateway-error"] for answer in answers]
        assert (codes.count("line_timeout"), codes.count("line_full")) == (3, 17)
        assert {answer.status_code for answer in answers} == {503}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        print(f"those let in waited {took:.1f} s of 1.5 s")
        assert 1.5 <= took < 10
    records = await gateway.wait_for_records(20, outcome="refused_in_line")
    assert {record.prompt_tokens for record in records} == {0}


# Clients that stop reading


async def test_n6_a_client_that_stops_reading_costs_little_and_is_let_go(gateway, fake):
    streams = 30
    process = psutil.Process(gateway.process.pid)
    # Far more than the sockets of both sides can hold.
    fake.faults(path="/api/chat", content=["x" * 50_000] * 2000)
    before = process.memory_info().rss
    callers = [Caller(gateway, body=chat(options={"num_predict": 4000}), buffer=16384) for _ in range(streams)]
    try:
        for caller in callers:
            await caller.__aenter__()
            caller.writer.transport.pause_reading()
        await fake.saw("paused", streams, timeout=PATIENCE)
        grown = (process.memory_info().rss - before) // streams
        print(f"grown by {grown >> 10} KiB for each stalled stream")
        assert grown <= 512 << 10
        began = time.monotonic()
        await fake.saw("disconnect", streams, timeout=PATIENCE + STALL)
        print(f"let go after {time.monotonic() - began:.1f} s, STALL_SECONDS={STALL}")
    finally:
        for caller in callers:
            caller.leave()
    records = await gateway.wait_for_records(streams, outcome="cancelled", bytes_out__gt=50_000)
    assert len(records) == streams
    assert all(record.completion_tokens > 0 and record.estimated for record in records)
    assert all(call.tokens < 1500 for call in calls(fake)), "the backend was slowed down, not drained"


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_l3_b10_three_thousand_idle_streams_are_cheap_and_gone_when_their_clients_are(make_gateway):
    streams = 3000
    fake = subprocess.Popen(
        [sys.executable, "-m", "proxy.fake_ollama", "--port", "0", "--slots", "4000", "--no-log-bodies"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        url = fake.stdout.readline().decode().split()[-1]
        gateway = make_gateway(MAX_CONNECTIONS_PER_ADDRESS="8000")
        gateway.make_backend(url, slots=6000)
        _, gateway.key = gateway.make_key()
        await asyncio.to_thread(gateway.start)
        process = psutil.Process(gateway.process.pid)
        async with httpx.AsyncClient(base_url=url, trust_env=False, verify=NO_TLS, timeout=60) as steering:
            await steering.post("/_fake/faults", json={"path": "/api/chat", "hang_after_chunks": 1})
            warm = [await streaming(gateway) for _ in range(50)]
            for caller in warm:
                caller.leave()
            await until_few(process, 60)
            descriptors, before = process.num_fds(), process.memory_info().rss
            callers = []
            for _ in range(0, streams, 50):
                callers += await asyncio.gather(*(streaming(gateway) for _ in range(50)))
            each = (process.memory_info().rss - before) / streams
            print(f"{each / 1024:.1f} KiB for each of {streams} idle streams")
            assert each <= 64 << 10
            assert process.num_fds() >= descriptors + 2 * streams
            began = time.monotonic()
            for caller in callers:
                caller.leave()
            await until_few(process, descriptors + 20)
            print(f"descriptors are back to normal after {time.monotonic() - began:.2f} s")
            counts = (await steering.get("/_fake/counts")).json()
            assert counts["running_calls"] == 0
            assert counts["disconnected_calls"] == streams + 50
        records = await gateway.wait_for_records(streams + 50, 60, outcome="cancelled")
        assert {(record.completion_tokens, record.estimated) for record in records} == {(1, True)}
    finally:
        fake.terminate()
        fake.wait()
        fake.stdout.close()


async def streaming(gateway):
    """A stream of which the first line has come."""
    caller = await Caller(gateway).__aenter__()
    await caller.head()
    await caller.until(b"tok1")
    return caller


async def until_few(process, descriptors):
    async with asyncio.timeout(PATIENCE):
        while process.num_fds() > descriptors:
            await asyncio.sleep(0.02)
