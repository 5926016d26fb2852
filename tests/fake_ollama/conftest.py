import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from proxy.fake_ollama import FakeOllama, Model
from tests.no_tls import NO_TLS


@dataclass
class RawAnswer:
    """A response as bytes: what a client library would tidy up is still to be seen."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    chunks: list[bytes] = field(default_factory=list)
    ended: bool = True

    def header(self, name):
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def names(self):
        return [name for name, _ in self.headers if name != "Date"]

    @property
    def lines(self):
        return [json.loads(line) for line in self.body.split(b"\n") if line]

    @property
    def events(self):
        """(event name, data) of each SSE frame."""
        frames = []
        for frame in self.body.split(b"\n\n"):
            fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if line)
            if fields:
                data = fields[b"data"]
                frames.append((fields.get(b"event", b"").decode(), data if data == b"[DONE]" else json.loads(data)))
        return frames


async def read_answer(reader, method="GET"):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *rest = head.rstrip("\r\n").split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in rest]
    answer = RawAnswer(int(first.split(" ")[1]), headers, b"")
    if method == "HEAD" or answer.status in (204, 304):
        return answer
    if answer.header("Transfer-Encoding") == "chunked":
        await read_chunks(reader, answer)
    elif (length := answer.header("Content-Length")) is not None:
        answer.body = await reader.readexactly(int(length))
    else:
        answer.body = await reader.read()
    return answer


async def read_chunks(reader, answer):
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            answer.chunks.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        answer.ended = False
    answer.body = b"".join(answer.chunks)


def request_bytes(method, target, body=b"", headers=()):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1"]
    if not any(name.lower() == "host" for name, _ in headers):
        lines.append("Host: 127.0.0.1")
    lines.extend(f"{name}: {value}" for name, value in headers)
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Wire:
    """Calls the fake with bytes of the test's own making, each on a connection of its own."""

    def __init__(self, fake):
        self.fake = fake
        self.writers = []

    async def connect(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.fake.port, limit=1 << 24)
        self.writers.append(writer)
        return reader, writer

    async def send(self, method, target, body=b"", headers=()):
        reader, writer = await self.connect()
        writer.write(request_bytes(method, target, body, headers))
        return reader, writer

    async def call(self, method, target, body=b"", headers=()):
        reader, _ = await self.send(method, target, body, headers)
        return await read_answer(reader, method)

    async def post(self, target, body, headers=()):
        return await self.call("POST", target, body, headers)

    async def all_bytes(self, method, target, body=b""):
        """Everything until the end of the connection, and whether that was a reset."""
        reader, _ = await self.send(method, target, body)
        data = b""
        try:
            while part := await reader.read(65536):
                data += part
        except ConnectionResetError:
            return data, True
        return data, False

    async def close(self):
        for writer in self.writers:
            writer.close()
        for writer in self.writers:
            try:
                await writer.wait_closed()
            except OSError:
                pass


@asynccontextmanager
async def serving(**settings):
    """A fake with settings of its own, and a wire to it."""
    async with FakeOllama(**settings) as fake:
        wire = Wire(fake)
        try:
            yield fake, wire
        finally:
            await wire.close()


@pytest.fixture
async def fake():
    models = [
        Model("llama3.2", embedding_length=3072),
        "qwen3:8b",
        "nomic-embed-text",
        "llava",
        "m",
    ]
    async with FakeOllama(models=models) as server:
        yield server


@pytest.fixture
async def wire(fake):
    wire = Wire(fake)
    yield wire
    await wire.close()


@pytest.fixture
async def client(fake):
    async with httpx.AsyncClient(base_url=fake.url, trust_env=False, verify=NO_TLS, timeout=10) as client:
        yield client


def chat(model="llama3.2", text="hi", **fields):
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}
