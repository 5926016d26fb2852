"""Uploads of blobs and long progress: bodies are weighed while they come, and never kept."""

import asyncio
import hashlib
import json

import pytest

from tests.fake_ollama.conftest import read_answer

BLOB = b"weights " * 50_000
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
PATH = f"/api/blobs/{DIGEST}"


async def test_a_blob_is_weighed_in_pieces_and_not_kept(fake, wire):
    reader, writer = await wire.connect()
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(BLOB)}\r\n\r\n".encode())
    writer.write(BLOB[:1000])
    await fake.log.until(lambda: fake.calls[-1:] and fake.calls[-1].received == 1000, 5)
    writer.write(BLOB[1000:])
    assert (await read_answer(reader, "POST")).status == 201
    assert (fake.calls[-1].received, fake.calls[-1].body) == (len(BLOB), b"")
    assert (await wire.call("HEAD", PATH)).status == 200


async def test_a_blob_in_chunks_and_the_next_request_on_the_same_connection(fake, wire):
    reader, writer = await wire.connect()
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    writer.write(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BLOB), BLOB))
    assert (await read_answer(reader, "POST")).status == 201
    writer.write(b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await read_answer(reader, "GET")).status == 200


async def test_a_blob_that_is_there_is_answered_before_the_body_and_ends_the_connection(fake, wire):
    fake.library.blobs.add(DIGEST)
    reader, writer = await wire.connect()
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000\r\n\r\n".encode())
    answer = await read_answer(reader, "POST")
    assert answer.status == 200
    async with asyncio.timeout(5):
        assert await reader.read() == b""


@pytest.mark.parametrize("fault", [{"answers_before_body": 507}, {"hang_before_body": True}])
async def test_uploads_that_go_wrong_on_demand(fake, wire, fault):
    fake.faults(path="/api/blobs/*", **fault)
    reader, writer = await wire.connect()
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(BLOB)}\r\n\r\n".encode())
    if "hang_before_body" in fault:
        await fake.saw("hung")
        fake.release()
        writer.write(BLOB)
    assert (await read_answer(reader, "POST")).status == fault.get("answers_before_body", 201)


async def test_megabytes_of_progress_are_whole_lines(fake, wire):
    fake.faults(path="/api/pull", progress_mb=1)
    answer = await wire.post("/api/pull", {"model": "llama3.2"})
    lines = answer.body.splitlines()
    assert len(answer.body) > 1_000_000
    assert [json.loads(line)["status"] for line in (lines[0], lines[-1])] == ["pulling manifest", "success"]


async def test_a_model_made_with_a_remote_host_is_a_stub(fake, wire):
    body = {"model": "stub", "from": "llama3.2", "remote_host": "https://ollama.com", "stream": False}
    assert (await wire.post("/api/create", body)).status == 200
    listed = json.loads((await wire.call("GET", "/api/tags")).body)["models"]
    assert listed[0]["remote_host"] == "https://ollama.com"
