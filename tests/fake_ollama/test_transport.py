import base64
import json
import struct

import pytest

from .conftest import chat, read_answer, request_bytes

JSON_UTF8 = "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("method", "target", "status", "content_type"),
    [
        ("GET", "/", 200, "text/plain; charset=utf-8"),
        ("HEAD", "/", 200, "text/plain; charset=utf-8"),
        ("HEAD", "/api/version", 200, JSON_UTF8),
        ("GET", "/api/version?x=1", 200, JSON_UTF8),
        ("GET", "/api/%76ersion", 200, JSON_UTF8),
        ("GET", "/api/status", 200, JSON_UTF8),
        ("HEAD", "/api/tags", 200, JSON_UTF8),
        ("GET", "/v1/models", 200, "application/json"),
        ("GET", "/v1/models/LLAMA3.2", 200, "application/json"),
        ("GET", "/v1/models/user%2Fm", 404, "text/plain"),
        ("GET", "/v1/models/nope", 404, "application/json"),
        ("GET", "/healthz", 404, "text/plain"),
        ("POST", "/v1/messages/count_tokens", 404, "text/plain"),
        ("GET", "/api/chat", 405, "text/plain"),
        ("OPTIONS", "/api/chat", 405, "text/plain"),
        ("POST", "/api/me", 401, JSON_UTF8),
        ("POST", "/api/signout", 401, JSON_UTF8),
        ("DELETE", "/api/user/keys/abc", 401, JSON_UTF8),
        ("GET", "/api/%zz", 400, "text/plain; charset=utf-8"),
    ],
)
async def test_status_and_content_type(wire, method, target, status, content_type):
    answer = await wire.call(method, target)
    assert (answer.status, answer.header("Content-Type")) == (status, content_type)


async def test_wrong_method_names_the_right_ones(wire):
    answer = await wire.call("PUT", "/api/version")
    assert (answer.status, answer.header("Allow"), answer.body) == (405, "GET, HEAD", b"405 method not allowed")


@pytest.mark.parametrize(
    ("method", "target", "status", "location"),
    [
        ("GET", "/api/tags/?a=1", 301, "/api/tags?a=1"),
        ("POST", "/api/chat/", 307, "/api/chat"),
        ("POST", "//api/chat", 307, "/api/chat"),
        ("POST", "/api/x/../chat", 307, "/api/chat"),
        ("POST", "/api/%2e%2e/api/chat", 307, "/api/chat"),
        ("GET", "/api/./tags", 301, "/api/tags"),
    ],
)
async def test_paths_that_are_redirected(wire, method, target, status, location):
    answer = await wire.call(method, target)
    assert (answer.status, answer.header("Location")) == (status, location)


async def test_trailing_slash_of_another_method_is_not_found(wire):
    assert (await wire.call("POST", "/api/tags/")).status == 404


async def test_small_bodies_have_a_length_and_large_ones_are_chunked(fake, wire):
    answer = await wire.post("/api/show", {"model": "m"})
    assert answer.header("Content-Length") == str(len(answer.body))
    for number in range(20):
        fake.add_model(f"more{number}")
    answer = await wire.call("GET", "/api/tags")
    assert answer.header("Content-Length") is None
    assert answer.header("Transfer-Encoding") == "chunked"
    assert len(answer.lines[0]["models"]) == 25


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1:8443", "app://obsidian", "http://a.example"]
)
async def test_allowed_origins(wire, origin):
    answer = await wire.call("GET", "/api/version", headers=[("Origin", origin), ("Host", "a.example")])
    # Same origin passes the first check, then the foreign host is refused.
    assert answer.status == 403
    answer = await wire.call("GET", "/api/version", headers=[("Origin", origin)])
    if origin == "http://a.example":
        assert answer.status == 403
    else:
        assert (answer.status, answer.header("Access-Control-Allow-Origin")) == (200, origin)
        assert answer.header("Vary") == "Origin"


async def test_preflight(wire):
    headers = [("Origin", "http://localhost:3000"), ("Access-Control-Request-Method", "POST")]
    answer = await wire.call("OPTIONS", "/api/chat", headers=headers)
    assert answer.status == 204
    assert answer.header("Access-Control-Max-Age") == "43200"
    assert answer.header("Access-Control-Allow-Methods") == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    allowed = answer.header("Access-Control-Allow-Headers").lower()
    assert "authorization" in allowed and "x-stainless-arch" in allowed
    assert "x-api-key" not in allowed and "anthropic-version" not in allowed


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("x.localhost:11434", 200),
        ("nas.local", 200),
        ("10.1.2.3", 200),
        ("[::1]:11434", 200),
        ("evil.example", 403),
        ("8.8.8.8", 403),
    ],
)
async def test_hosts(wire, host, status):
    assert (await wire.call("GET", "/api/version", headers=[("Host", host)])).status == status


async def test_calls_on_one_connection_are_answered_in_order(wire):
    reader, writer = await wire.connect()
    writer.write(request_bytes("GET", "/api/version") + request_bytes("POST", "/api/chat", chat()))
    writer.write(request_bytes("GET", "/"))
    assert (await read_answer(reader)).lines == [{"version": "0.33.0"}]
    assert (await read_answer(reader)).lines[-1]["done"] is True
    assert (await read_answer(reader)).body == b"Ollama is running"


async def test_expect_continue(wire):
    reader, writer = await wire.connect()
    body = json.dumps(chat(stream=False)).encode()
    writer.write(
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await read_answer(reader)).status == 200


async def test_http_1_0_gets_no_chunks(wire):
    reader, writer = await wire.connect()
    body = json.dumps(chat()).encode()
    writer.write(b"POST /api/chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    data = await reader.read()
    assert data.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"chunked" not in data
    assert json.loads(data.rstrip().split(b"\n")[-1])["done"] is True


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_requests_that_are_no_requests(wire, data):
    reader, writer = await wire.connect()
    writer.write(data)
    assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_copy_delete_and_blobs(wire):
    answer = await wire.post("/api/copy", {"source": "llama3.2", "destination": "mine"})
    assert (answer.status, answer.body, answer.names) == (200, b"", ["Content-Length"])
    tags = (await wire.call("GET", "/api/tags")).lines[0]["models"]
    assert tags[0]["name"] == "mine:latest"
    assert tags[0]["digest"] == next(tag["digest"] for tag in tags if tag["name"] == "llama3.2:latest")
    answer = await wire.call("DELETE", "/api/delete", {"model": "mine"})
    assert (answer.status, answer.body) == (200, b"")
    answer = await wire.call("DELETE", "/api/delete", {"name": "mine"})
    assert (answer.status, answer.lines) == (404, [{"error": "model 'mine' not found"}])

    digest = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    assert (await wire.call("HEAD", f"/api/blobs/{digest}")).status == 404
    assert (await wire.post(f"/api/blobs/{digest}", b"foo")).status == 201
    assert (await wire.post(f"/api/blobs/{digest}", b"foo")).status == 200
    assert (await wire.call("HEAD", f"/api/blobs/{digest}")).status == 200
    assert (await wire.post("/api/blobs/nope", b"foo")).lines == [{"error": "invalid digest format"}]
    answer = await wire.post("/api/blobs/sha256:" + "0" * 64, b"foo")
    assert answer.status == 400
    assert answer.lines[0]["error"].startswith('digest mismatch, expected "sha256:000')


async def test_pull_push_and_create(fake, wire):
    fake.pullable.add("registry.ollama.ai/library/new:latest")
    answer = await wire.post("/api/pull", {"name": "new"})
    assert [line["status"] for line in answer.lines][-1] == "success"
    assert answer.lines[1]["completed"] < answer.lines[1]["total"]
    answer = await wire.post("/api/pull", {"model": "nope", "stream": False})
    assert (answer.status, answer.header("Content-Type")) == (500, "application/json")
    assert answer.lines == [{"error": "pull model manifest: file does not exist"}]
    answer = await wire.post("/api/push", {"model": "new", "stream": False})
    assert answer.lines == [{"status": "success"}]
    answer = await wire.post("/api/create", {"model": "mine", "from": "llama3.2", "system": "Be kind."})
    assert answer.lines[-1] == {"status": "success"}
    assert (await wire.post("/api/show", {"name": "mine"})).lines[0]["system"] == "Be kind."
    answer = await wire.post("/api/create", {"model": "mine"})
    assert answer.lines == [{"error": "neither 'from' or 'files' was specified"}]


async def test_embeddings(wire):
    answer = await wire.post("/api/embed", {"model": "nomic-embed-text", "input": ["a" * 8, "b"]})
    value = answer.lines[0]
    assert value["prompt_eval_count"] == 3
    for vector in value["embeddings"]:
        assert sum(item * item for item in vector) == pytest.approx(1, abs=1e-6)
    legacy = (await wire.post("/api/embeddings", {"model": "nomic-embed-text", "prompt": "a" * 8})).lines[0]
    assert legacy.keys() == {"embedding"}
    scale = legacy["embedding"][0] / value["embeddings"][0][0]
    assert legacy["embedding"] == pytest.approx([item * scale for item in value["embeddings"][0]], rel=1e-4)
    cut = (await wire.post("/api/embed", {"model": "nomic-embed-text", "input": "b", "dimensions": 2})).lines[0]
    assert sum(item * item for item in cut["embeddings"][0]) == pytest.approx(1, abs=1e-6)
    for empty in ("", [], None):
        answer = await wire.post("/api/embed", {"model": "nomic-embed-text", "input": empty})
        assert answer.lines == [{"model": "nomic-embed-text", "embeddings": []}]
    answer = await wire.post("/api/embed", {"model": "nomic-embed-text", "input": [1]})
    assert (answer.status, answer.lines[0]["error"]) == (400, "invalid input type")
    answer = await wire.post("/api/embed", {"model": "nomic-embed-text", "input": "x" * 99_999, "truncate": False})
    assert (answer.status, answer.lines[0]["error"]) == (400, "the input length exceeds the context length")


async def test_openai_embeddings_as_base64(wire):
    body = {"model": "nomic-embed-text", "input": "a"}
    floats = (await wire.post("/v1/embeddings", body)).lines[0]
    assert floats["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
    packed = (await wire.post("/v1/embeddings", body | {"encoding_format": "base64"})).lines[0]
    numbers = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert floats["data"][0]["embedding"] == pytest.approx(numbers, rel=1e-6)
    for given, text in (([], "invalid input"), ([1, 2], "invalid input type")):
        answer = await wire.post("/v1/embeddings", body | {"input": given})
        assert (answer.status, answer.lines[0]["error"]["message"]) == (400, text)


async def test_transcription(wire, client):
    files = {"file": ("a.wav", b"RIFF" * 100)}
    answer = await client.post("/v1/audio/transcriptions", files=files, data={"model": "llama3.2"})
    assert (answer.status_code, answer.json().keys()) == (200, {"text"})
    data = {"model": "llama3.2", "response_format": "text"}
    answer = await client.post("/v1/audio/transcriptions", files=files, data=data)
    assert answer.headers["content-type"].startswith("text/plain")
    answer = await client.post("/v1/audio/transcriptions", files=files, data={"prompt": "x"})
    assert answer.json()["error"]["message"] == "model is required"
