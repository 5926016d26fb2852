"""A backend that sends whatever bytes the test says. Its probes are good, so that it is sent calls."""

import asyncio
from typing import Self

import orjson


class HostileBackend:
    """Has one model; answers calls for it with a chunked NDJSON stream of given pieces."""

    def __init__(self, model: str) -> None:
        listed = {"name": model, "model": model, "digest": "d" * 64, "details": {}}
        self._probes = {
            b"/api/version": {"version": "0.33.0"},
            b"/api/tags": {"models": [listed]},
            b"/api/ps": {"models": []},
        }
        self._pieces: tuple[bytes, ...] = ()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.requests = 0  # that are no probes
        self.sent = 0  # bytes of the last stream

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer_with(self, *pieces: bytes) -> None:
        self._pieces = pieces

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1]
                if path in self._probes:
                    body = orjson.dumps(self._probes[path])
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                    continue
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                await self._stream(writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            del self._open[task]
            writer.transport.abort()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        self.sent = 0
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in self._pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)
            self.sent += len(piece)
        writer.write(b"0\r\n\r\n")
