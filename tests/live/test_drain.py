"""L1: SIGTERM ends nobody's answer that can end in time, and tells the others in their dialect."""

import asyncio
import json
import time

import pytest

from tests.live.crashes import Clients, FakeProcess, judge

pytestmark = pytest.mark.slow


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


async def lines_of(client, tokens):
    """(request id, all lines of a stream)"""
    async with client.stream("POST", "/api/chat", json=chat(options={"num_predict": tokens})) as answer:
        return answer.headers["x-request-id"], [json.loads(line) async for line in answer.aiter_lines()]


async def until_refused(port, seconds=10):
    deadline = time.monotonic() + seconds
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:  # refused; reset, if it was in the backlog
            return
        writer.close()
        assert time.monotonic() < deadline, "the port is still open"
        await asyncio.sleep(0.01)


async def exit_code(gateway, seconds=30):
    code = await asyncio.to_thread(gateway.process.wait, seconds)
    gateway.process = None
    return code


@pytest.mark.parametrize("workers", [1, 3])
async def test_l1_sigterm_lets_streams_end_and_tells_those_that_do_not(make_gateway, fake, workers, capsys):
    await fake.switch(slots=100)
    gateway = make_gateway(workers=workers, DRAIN_SECONDS="2")
    gateway.make_backend(fake.url, slots=100)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    fake.faults(path="/api/chat", tokens_per_second=20, tokens=10_000)
    async with gateway.client(key) as client:
        short = [asyncio.create_task(lines_of(client, 25)) for _ in range(6)]
        long = [asyncio.create_task(lines_of(client, 5000)) for _ in range(6)]
        await fake.saw_running(12, timeout=30)
        # A request that has begun to arrive may still be answered when the listener is closed.
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /readyz HTTP/1.1\r\n")
        await asyncio.sleep(0.1)
        began = time.monotonic()
        gateway.process.terminate()
        await until_refused(gateway.port)
        closed = time.monotonic() - began
        writer.write(b"Host: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        ended, cut = await asyncio.gather(*short), await asyncio.gather(*long)
        assert await exit_code(gateway) == 0
        took = time.monotonic() - began
    with capsys.disabled():
        print(f"\n  port closed after {closed:.2f} s, ended after {took:.2f} s", end=" ")
    assert all(lines[-1]["done"] is True and lines[-1]["eval_count"] == 25 for _, lines in ended)
    assert all(list(lines[-1]) == ["error"] and lines[-2]["done"] is False for _, lines in cut)
    records = {record.pk.hex: record for record in gateway.records()}
    assert {records[request_id].outcome for request_id, _ in ended} == {"ok"}
    for request_id, lines in cut:
        record = records[request_id]
        assert (record.outcome, record.error, record.estimated) == ("interrupted", "draining", True)
        assert record.completion_tokens >= len(lines) - 1 > 0
    assert len(records) == 12
    assert not list((gateway.directory / "spool").iterdir())  # all of it is in the database
    assert "Traceback" not in gateway.log()


async def test_l1_a_call_whose_body_arrives_during_the_drain_is_refused_or_served_whole(make_gateway, fake):
    gateway = make_gateway(DRAIN_SECONDS="10")
    gateway.make_backend(fake.url)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    body = json.dumps(chat(stream=False, options={"num_predict": 3})).encode()
    head = f"POST /api/chat HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head.encode() + body[:10])
    await asyncio.sleep(0.2)
    gateway.process.terminate()
    await until_refused(gateway.port)
    writer.write(body[10:])
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert await exit_code(gateway) == 0
    status = int(answer.split()[1])
    calls = [call for call in fake.calls if call.path == "/api/chat"]
    assert status in (200, 503)
    assert len(calls) == len(gateway.records()) == (status == 200)
    if status == 200:
        assert b'"done":true' in answer
        assert [record.outcome for record in gateway.records()] == ["ok"]


async def test_l1_restarts_under_streams_break_no_answer(make_gateway, capsys):
    fake = FakeProcess()
    try:
        gateway = make_gateway()
        gateway.make_backend(fake.url, slots=256)
        _, key = gateway.make_key()
        await asyncio.to_thread(gateway.start)
        clients = Clients(gateway, key, 20, seed=7)
        for _ in range(5):
            await clients.until_running(12)
            gateway.process.terminate()
            assert await exit_code(gateway) == 0
            gateway.start(wait=False)
            await asyncio.to_thread(gateway.wait_until_ready)
        await clients.until_running(12)
        account = await clients.stop()
        verdict = await judge(gateway, fake.ids_since_last_time(), account)
    finally:
        fake.close()
    with capsys.disabled():
        print(f"\n  {verdict.whole} calls, refused {dict(account.refused)}", end=" ")
    assert account.begun == account.whole.keys(), "answers that had begun were cut"
    assert account.refused.keys() <= {503}
    assert (verdict.is_clean, verdict.interrupted) == (True, 0), verdict
    assert "Traceback" not in gateway.log()
