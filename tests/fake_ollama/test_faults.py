"""Each way in which the fake can be made to fail."""

import asyncio
import base64
import gzip
import json

import httpx
import pytest

from proxy.fake_ollama import Fault

from .conftest import chat, read_answer

NATIVE, OPENAI, MESSAGES, RESPONSES = "/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses"


async def test_rules_for_some_calls_come_before_those_for_all(fake, wire):
    fake.faults(status=500, error="always")
    fake.faults(status=502, error="twice", times=2)
    fake.faults(status=503, error="then once", times=1)
    answers = [await wire.post(NATIVE, chat()) for _ in range(4)]
    assert [answer.status for answer in answers] == [502, 502, 503, 500]
    fake.clear_faults()
    assert (await wire.post(NATIVE, chat())).status == 200


async def test_rules_for_a_path_a_model_and_later_calls(fake, wire):
    fake.faults(path=["/api/tags", "/api/p*"], status=500)
    fake.faults(model="M", status=501)
    fake.faults(path="/api/version", after=1, status=502)
    assert (await wire.call("GET", "/api/tags")).status == 500
    assert (await wire.call("GET", "/api/ps")).status == 500
    assert (await wire.post(NATIVE, chat("m"))).status == 501
    assert (await wire.post(NATIVE, chat("llava"))).status == 200
    assert (await wire.call("GET", "/api/version")).status == 200
    assert (await wire.call("GET", "/api/version")).status == 502


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ({"busy_503": True}, 503, "server busy, please try again.  maximum pending requests exceeded"),
        ({"load_error_500": True}, 500, "llama-server process has terminated: exit status 2"),
        ({"lacks_model": True}, 404, "model 'llama3.2' not found"),
        ({"status": 429, "error": "slow down"}, 429, "slow down"),
        (
            {"status": 400, "error": "no", "error_as_json": True},
            400,
            '{"error":{"code":400,"message":"no","type":"server_error"}}',
        ),
        ({"error_after_chunks": 0, "error": "broken"}, 500, "broken"),
    ],
)
@pytest.mark.parametrize("path", [NATIVE, OPENAI, MESSAGES])
async def test_refusals_in_the_shape_of_the_family(fake, wire, fault, status, text, path):
    fake.faults(**fault)
    answer = await wire.post(path, chat(max_tokens=5))
    assert answer.status == status
    error = answer.lines[0]["error"]
    assert (error if path == NATIVE else error["message"]) == text


@pytest.mark.parametrize("path", [NATIVE, OPENAI, MESSAGES, RESPONSES])
@pytest.mark.parametrize("fault", ["eof_after_chunks", "repetition_stop_after"])
async def test_a_stream_that_ends_without_its_end(fake, wire, path, fault):
    fake.faults(**{fault: 2})
    answer = await wire.post(path, {**chat(max_tokens=5, stream=True), "input": "x"})
    assert (answer.status, answer.ended) == (200, True)
    assert b"tok2" in answer.body
    assert b"tok3" not in answer.body
    assert not any(end in answer.body for end in (b'"done":true', b"[DONE]", b"message_stop", b"response.completed"))
    assert fake.counts()["generations_failed"] == 1


async def test_a_silent_stop_of_an_unstreamed_answer(fake, wire):
    fake.faults(repetition_stop_after=2, times=1)
    value = (await wire.post(NATIVE, chat(stream=False))).lines[0]
    assert value["done"] is False
    assert value["message"]["content"] == "tok1 tok2"
    assert "eval_count" not in value
    fake.faults(repetition_stop_after=0)
    assert (await wire.post(NATIVE, chat(stream=False))).body == b""


async def test_hanging_before_headers_and_after_chunks(fake, wire):
    fake.faults(hang_before_headers=True, times=1)
    reader, _ = await wire.send("POST", NATIVE, chat())
    await fake.saw("hung")
    assert fake.counts()["generations_running"] == 1
    fake.release()
    assert (await read_answer(reader)).status == 200
    fake.faults(hang_after_chunks=2)
    reader, _ = await wire.send("POST", NATIVE, chat())
    await reader.readuntil(b"tok2")
    await fake.saw("hung")
    assert fake.calls[-1].tokens == 2
    fake.release()
    assert b'"done":true' in await reader.readuntil(b"0\r\n\r\n")


async def test_probes_can_hang_alone(fake, wire):
    fake.faults(path="/api/ps", hang_before_headers=True)
    await wire.send("GET", "/api/ps")
    await fake.saw("hung")
    assert (await wire.call("GET", "/api/version")).status == 200


async def test_slow_first_byte_and_gaps(fake, wire):
    fake.faults(slow_first_byte=0.03, gap=0.01, tokens=3)
    began = asyncio.get_running_loop().time()
    await wire.post(NATIVE, chat())
    assert asyncio.get_running_loop().time() - began >= 0.055


async def test_resets(fake, wire):
    fake.faults(reset_before_headers=True, times=1)
    assert await wire.all_bytes("POST", NATIVE, chat()) == (b"", True)
    fake.faults(close_before_headers=True, times=1)
    assert await wire.all_bytes("POST", NATIVE, chat()) == (b"", False)
    assert not any(call.disconnected for call in fake.calls)
    fake.faults(reset_after_chunks=2, times=1)
    reader, _ = await wire.send("POST", NATIVE, chat())
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readuntil(b"tok3")
    assert fake.counts()["generations_failed"] == 1
    await fake.saw_idle()


@pytest.mark.parametrize(("fault", "reset"), [("reset_mid_chunk", True), ("truncate_chunk", False)])
async def test_a_chunk_that_breaks_off(fake, wire, fault, reset):
    fake.faults(**{fault: 1})
    reader, _ = await wire.send("POST", NATIVE, chat())
    data = b""
    try:
        while part := await reader.read(9999):
            data += part
        assert not reset
    except ConnectionResetError:
        assert reset
    if not reset:
        assert b"tok1" in data
        assert b'"done"' in data
        assert not data.endswith(b"\r\n")


@pytest.mark.parametrize("size", [0, 1, 17, 150, 400])
@pytest.mark.parametrize("cut", ["fin", "rst"])
async def test_cut_after_exactly_so_many_bytes(fake, wire, size, cut):
    fake.faults(cut_after_bytes=size, cut_with=cut)
    reader, _ = await wire.send("POST", NATIVE, chat())
    data = b""
    try:
        while part := await reader.read(9999):
            data += part
        assert cut == "fin"
    except ConnectionResetError:
        assert cut == "rst"
    # What a reset leaves unread is up to the reader; what was sent is not.
    assert len(data) == size or (cut == "rst" and len(data) < size)


async def test_cut_that_counts_the_body_only(fake, wire):
    fake.faults(cut_after_bytes=10, cut_counts_body_only=True, cut_with="fin")
    data, _ = await wire.all_bytes("POST", NATIVE, chat(stream=False))
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body == b'{"model":"'


@pytest.mark.parametrize(
    "fault",
    [{"trickle": True}, {"write_sizes": [3, 1, 7]}, {"write_sizes": [1000], "packet_gap": 0.0005}, {"coalesce": 3}],
)
async def test_packets_change_nothing_about_the_content(fake, wire, fault):
    fake.faults(nasty_content=True, **fault)
    answer = await wire.post(NATIVE, chat())
    assert "".join(line["message"]["content"] for line in answer.lines) == "".join(Fault(nasty_content=True).pieces)
    assert len(answer.chunks) == (3 if "coalesce" in fault else 8)


async def test_packets_really_are_small(fake, wire):
    sizes = []

    class Client(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

        def data_received(self, data):
            sizes.append(len(data))

        def connection_lost(self, exc):
            lost.set_result(None)

    loop = asyncio.get_running_loop()
    lost = loop.create_future()
    fake.faults(trickle=True, packet_gap=0.0002)
    await loop.create_connection(Client, "127.0.0.1", fake.port)
    await lost
    assert max(sizes) == 1


@pytest.mark.parametrize(
    ("path", "find"),
    [
        (NATIVE, lambda answer: [answer.lines[-1].get(name) for name in ("prompt_eval_count", "eval_count")]),
        (OPENAI, lambda answer: answer.events[-2][1]["usage"]),
        (MESSAGES, lambda answer: answer.events[-2][1].get("usage")),
        (RESPONSES, lambda answer: answer.events[-1][1]["response"]["usage"]),
    ],
)
async def test_usage_that_lies_or_is_missing(fake, wire, path, find):
    body = {**chat(max_tokens=5, stream=True, stream_options={"include_usage": True}), "input": "x"}
    lie = {"prompt_eval_count": -5, "eval_count": 10**15, "prompt_tokens": -5, "output_tokens": 10**15}
    fake.faults(usage=lie, times=1)
    found = find(await wire.post(path, body))
    assert found[0] == -5 if isinstance(found, list) else -5 in found.values() or 10**15 in found.values()
    fake.faults(no_usage=True, times=1)
    answer = await wire.post(path, body)
    assert b"_count" not in answer.body
    assert b'_tokens":5' not in answer.body
    fake.faults(repeat_final=3, times=1)
    answer = await wire.post(path, body)
    assert answer.body.count(b'"output_tokens"' if path in (MESSAGES, RESPONSES) else b'_tokens"') >= 3 or (
        answer.body.count(b'"done":true') == 3
    )
    fake.faults(usage_drop=["eval_count", "completion_tokens"], times=1)
    answer = await wire.post(path, body)
    assert b'"eval_count"' not in answer.body
    assert b"completion_tokens" not in answer.body


async def test_big_lines(fake, wire):
    fake.faults(final_context=100_000, times=1)
    assert len((await wire.post("/api/generate", {"model": "m", "prompt": "x"})).lines[-1]["context"]) == 100_000
    fake.faults(giant_line_mb=3, times=1)
    assert len((await wire.post(NATIVE, chat())).lines[0]["message"]["content"]) == 3_000_000


async def test_an_infinite_stream_ignores_its_limit(fake, wire):
    fake.faults(infinite=True)
    reader, writer = await wire.send("POST", NATIVE, chat(options={"num_predict": 3}))
    await reader.readuntil(b"tok500")
    writer.close()
    await fake.saw_disconnect()
    await fake.saw_idle()


async def test_writing_stops_while_nobody_reads(fake, wire):
    fake.faults(infinite=True)
    _, writer = await wire.send("POST", NATIVE, chat())
    await fake.saw_running()
    writer.transport.pause_reading()
    await fake.saw("paused", timeout=10)
    made = fake.calls[0].tokens
    assert (await wire.call("GET", "/api/version")).status == 200
    assert fake.calls[0].tokens == made
    assert not fake.calls[0].disconnected
    writer.transport.abort()
    await fake.saw_disconnect()


@pytest.mark.parametrize(
    ("fault", "start"),
    [
        ({"garbage_status_line": "NONSENSE"}, b"NONSENSE\r\n"),
        ({"http_status": 999}, b"HTTP/1.1 999 Odd\r\n"),
        ({"early_responses": 3}, b"HTTP/1.1 103 Early\r\nX-Early: 1\r\n\r\nHTTP/1.1 103 Early\r\n"),
        ({"switching_protocols": True}, b"HTTP/1.1 101 Switching Protocols\r\n"),
        (
            {"redirect": 307, "location": "http://evil.example/"},
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://evil",
        ),
        ({"raw": "anything\r\n"}, b"anything\r\n"),
        ({"raw_base64": base64.b64encode(b"\x00\xff").decode()}, b"\x00\xff"),
    ],
)
async def test_odd_heads(fake, wire, fault, start):
    fake.faults(**fault)
    reader, _ = await wire.send("POST", NATIVE, chat())
    assert await reader.readexactly(len(start)) == start


async def test_hostile_headers(fake, wire):
    fake.faults(hostile_headers=True, header_bomb=100, content_type="text/html", headers=[("X-Mine", "1")])
    answer = await wire.post(NATIVE, chat())
    assert answer.header("Set-Cookie") and answer.header("Clear-Site-Data")
    assert answer.header("Content-Type") == "text/html"
    assert answer.header("X-Mine") == "1"
    assert sum(name.startswith("X-Bomb-") for name in answer.names) == 100


async def test_both_framings(fake, wire):
    fake.faults(both_framings=True)
    for stream in (True, False):
        answer = await wire.post(NATIVE, chat(stream=stream))
        assert (answer.header("Transfer-Encoding"), answer.header("Content-Length")) == ("chunked", "7")


@pytest.mark.parametrize("stream", [True, False])
async def test_gzip(fake, wire, stream):
    fake.faults(gzip=True)
    answer = await wire.post(NATIVE, chat(stream=stream))
    assert answer.header("Content-Encoding") == "gzip"
    assert json.loads(gzip.decompress(answer.body).splitlines()[-1])["done"] is True


async def test_gzip_bomb(fake, wire):
    fake.faults(gzip=True, gzip_bomb_mb=8)
    answer = await wire.post(NATIVE, chat(stream=False))
    assert len(gzip.decompress(answer.body)) == 8 << 20
    assert len(answer.body) < 100_000


async def test_idle_connections_close_without_a_word(fake, wire):
    fake.faults(close_idle_after_ms=10)
    reader, writer = await wire.connect()
    writer.write(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await read_answer(reader)
    assert answer.header("Connection") is None
    assert await reader.read() == b""


async def test_connections_can_be_refused_and_dropped(fake, wire, client):
    reader, _ = await wire.connect()
    await fake.switch(refuse_connections=True, drop_connections=True)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    with pytest.raises(httpx.ConnectError):
        await client.get("/api/version")
    await fake.switch(listen=True)
    assert (await client.get("/api/version")).status_code == 200
    await fake.switch(refuse_for=0.01)
    for _ in range(500):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", fake.port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.005)
        else:
            writer.close()
            await writer.wait_closed()
            return
    pytest.fail("It listens no more.")


async def test_single_routes(fake, wire):
    fake.faults(path="/api/version", version="0.5.1")
    assert (await wire.call("GET", "/api/version")).lines == [{"version": "0.5.1"}]
    await wire.post("/api/generate", {"model": "m"})
    fake.faults(path="/api/ps", ps_omits=["m:latest"], times=1)
    assert (await wire.call("GET", "/api/ps")).lines == [{"models": []}]
    fake.faults(model="llava", hang_load=True)
    fake.faults(path="/api/ps", ps_lists_loading=True)
    await wire.send("POST", NATIVE, chat("llava"))
    await fake.saw("hung")
    names = [model["name"] for model in (await wire.call("GET", "/api/ps")).lines[0]["models"]]
    assert names == ["llava:latest", "m:latest"]


async def test_progress_streams_meet_the_same_faults(fake, wire):
    fake.faults(error_after_chunks=1, error="disk full")
    answer = await wire.post("/api/pull", {"model": "llama3.2"})
    assert answer.lines == [{"status": "pulling manifest"}, {"error": "disk full"}]
