"""Bytes to and from a gateway, in the loop of the test, so that a fake in that loop goes on answering."""

import asyncio
from dataclasses import dataclass
from typing import Self

PATIENCE = 20


@dataclass
class RawAnswer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class RawClient:
    """One connection, made anew when the other side has closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def send(self, data: bytes) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26)
        self._streams[1].write(data)
        await self._streams[1].drain()

    async def ask(
        self, method: str | bytes, target: str | bytes, *headers: tuple[bytes, bytes], body: bytes = b""
    ) -> RawAnswer:
        """One request and its answer. Host and length are added, everything else is as given."""
        method, target = (part if isinstance(part, bytes) else part.encode() for part in (method, target))
        lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: 127.0.0.1", *(b"%b: %b" % pair for pair in headers)]
        lines.append(b"Content-Length: %d" % len(body))
        await self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        return await self.answer(method)

    async def answer(self, method: bytes = b"GET") -> RawAnswer:
        assert self._streams is not None
        reader = self._streams[0]
        async with asyncio.timeout(PATIENCE):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            headers = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]
            answer = RawAnswer(int(first.split(" ")[1]), headers, b"")
            if method != b"HEAD" and answer.status not in (204, 304):
                answer.body = await self._body(reader, answer)
        if "close" in answer.all("connection"):
            self._close()
        return answer

    async def _body(self, reader: asyncio.StreamReader, answer: RawAnswer) -> bytes:
        if answer.all("transfer-encoding") == ["chunked"]:
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                assert await reader.readexactly(2) == b"\r\n"
            assert await reader.readexactly(2) == b"\r\n"
            return body
        return await reader.readexactly(int((answer.all("content-length") or ["0"])[0]))


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"Authorization", b"Bearer " + key.encode()
