"""One line of JSON a call; who reads it slowly holds up nothing (threats L7, T11)."""

import asyncio
import json
import os

import pytest

from proxy import access_log
from proxy.access_log import AccessLog
from tests.proxy.test_metrics import ended_call


@pytest.fixture
def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    os.close(read)
    os.close(write)


def all_of(read: int) -> bytes:
    found = b""
    while True:
        try:
            found += os.read(read, 1 << 20)
        except BlockingIOError:
            return found


async def test_lines_are_written_soon_and_at_the_end(pipe):
    read, write = pipe
    log = AccessLog(write)
    for number in range(30):
        log.ended(*ended_call(bytes_in=number))
    assert all_of(read) == b""  # not on the path of a call
    async with asyncio.timeout(20):
        lines = b""
        while lines.count(b"\n") < 30:
            await asyncio.sleep(0.02)
            lines += all_of(read)
    assert [json.loads(line)["bytes_in"] for line in lines.splitlines()] == list(range(30))
    log.ended(*ended_call(bytes_in=99))
    await log.close()
    assert json.loads(all_of(read))["bytes_in"] == 99


async def test_a_line_says_how_the_call_ended_when_it_did(pipe):
    read, write = pipe
    log = AccessLog(write)
    call, row = ended_call()
    log.ended(call, row)
    # As for a client that leaves over the last bytes of an answer whose record is closed.
    call.outcome, call.error, call.status = "cancelled", "client_gone", 499
    await log.close()
    line = json.loads(all_of(read))
    assert (line["outcome"], line["error"], line["status"]) == ("ok", "", 200)


async def test_l5_a_call_of_which_no_line_can_be_made_costs_no_other_call(pipe, caplog):
    read, write = pipe
    log = AccessLog(write)
    log.ended(*ended_call(tenant=object()))
    log.ended(*ended_call())
    await log.close()
    assert all_of(read).count(b"\n") == log.dropped == 1
    assert "There is no line" in caplog.text


async def test_lines_that_nobody_can_read_are_counted():
    read, write = os.pipe()
    os.close(read)
    log = AccessLog(write)
    for _ in range(20):
        log.ended(*ended_call())
    await log.close()
    os.close(write)
    assert log.dropped == 20


async def test_t11_what_is_no_ascii_is_escaped(pipe):
    read, write = pipe
    log = AccessLog(write)
    log.ended(*ended_call(tenant="a\nb\x1b[31m\x9b31m\u2028\u202ecme"))
    await log.close()
    line = all_of(read)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line)["tenant"] == "a\nb\x1b[31m\x9b31m\u2028\u202ecme"
    assert not set(line[:-1]) & set(range(32))


async def test_a_reader_that_does_not_read_costs_lines_and_no_call(pipe, monkeypatch):
    read, write = pipe
    monkeypatch.setattr(access_log, "MOST_WAITING", 1000)
    log = AccessLog(write)
    call, row = ended_call()
    async with asyncio.timeout(30):
        while not log.dropped:  # the pipe takes some 64 KiB
            log.ended(call, row)
            await asyncio.sleep(0)
    assert len(log._waiting) <= 1000
    assert log.dropped
    async with asyncio.timeout(30):  # it goes on where it stood
        lines = b""
        while log._waiting:
            lines += all_of(read)
            await asyncio.sleep(0.01)
    await log.close()
    lines += all_of(read)
    assert all(json.loads(line)["id"] for line in lines.splitlines())
