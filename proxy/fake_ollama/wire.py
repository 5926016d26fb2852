"""The bytes of an answer: head, framing, packets, and how they can break."""

import asyncio
import gzip
import zlib
from collections.abc import Sequence
from http import HTTPStatus
from itertools import cycle
from typing import Any, Protocol

from proxy.fake_ollama.calls import SeenCall
from proxy.fake_ollama.clock import Stamps
from proxy.fake_ollama.errors import Cut
from proxy.fake_ollama.faults import NO_FAULT, Fault

# Go buffers this much of a body before it decides for chunks.
BUFFERED = 2048
REASONS = {status.value: status.phrase for status in HTTPStatus}
BODILESS = (204, 304)
Headers = Sequence[tuple[str, str]]


class Line(Protocol):
    """What an answer needs of its connection."""

    def write(self, data: bytes) -> None: ...
    async def drained(self) -> None: ...
    async def flushed(self) -> None: ...


class Packets:
    """Writes in the sizes that the fault asks for, and stops where it says so."""

    def __init__(self, line: Line, fault: Fault) -> None:
        self.line = line
        self.fault = fault
        self.counted = 0
        self.sizes = cycle(fault.write_sizes or [1])
        self.splits = bool(fault.trickle or fault.write_sizes)

    async def write(self, data: bytes, *, head: bool = False) -> None:
        budget = self.fault.cut_after_bytes
        if budget is None or (head and self.fault.cut_counts_body_only):
            await self._split(data)
            return
        left = budget - self.counted
        self.counted += len(data)
        await self._split(data[:left])
        if len(data) >= left:
            raise Cut(reset=self.fault.cut_with == "rst")

    async def _split(self, data: bytes) -> None:
        if not self.splits:
            await self._packet(data)
            return
        at = 0
        while at < len(data):
            size = 1 if self.fault.trickle else max(1, next(self.sizes))
            await self._packet(data[at : at + size])
            at += size

    async def _packet(self, data: bytes) -> None:
        self.line.write(data)
        await self.line.flushed()
        if self.fault.packet_gap:
            await asyncio.sleep(self.fault.packet_gap)


class Answer:
    """One response on one connection: whole, or begun, chunked and ended."""

    def __init__(self, line: Line, seen: SeenCall, *, head_only: bool, http11: bool, keep_alive: bool) -> None:
        self.line = line
        self.seen = seen
        self.fault = NO_FAULT
        self.head_only = head_only
        self.http11 = http11
        self.keep_alive = keep_alive
        self.extra: Headers = ()
        self.begun = False
        self.chunks = 0
        self._packets: Packets | None = None
        self._held: list[bytes] = []
        self._zip: Any = None

    def spoil(self, fault: Fault) -> None:
        self.fault = fault
        if fault.shapes_packets:
            self._packets = Packets(self.line, fault)

    async def whole(self, status: int, content_type: str | None, body: bytes = b"", headers: Headers = ()) -> None:
        self.begun = True
        self.seen.status = status
        fault = self.fault
        if fault.gzip or fault.gzip_bomb_mb:
            body = gzip.compress(bytes(fault.gzip_bomb_mb << 20) or body)
        chunked = (len(body) > BUFFERED or fault.both_framings) and self.http11 and not self.head_only
        if status in BODILESS:
            framing = b""
        elif chunked:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            framing = b"Content-Length: %d\r\n" % len(body)
        if fault.both_framings:
            framing += b"Content-Length: 7\r\n"
        head = self._head(status, content_type, headers, framing)
        if self.head_only or status in BODILESS:
            body = b""
        elif chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        await self._send(head, body)

    async def begin(self, content_type: str, headers: Headers = ()) -> None:
        self.begun = True
        self.seen.status = 200
        if self.fault.gzip:
            self._zip = zlib.compressobj(wbits=31)
        framing = b"Transfer-Encoding: chunked\r\n" if self.http11 else b""
        self.keep_alive = self.keep_alive and self.http11
        if self.fault.both_framings:
            framing += b"Content-Length: 7\r\n"
        await self._send(self._head(200, content_type, headers, framing), b"")

    async def chunk(self, data: bytes) -> None:
        """Written and flushed by itself, as the handler of Ollama does after each object."""
        if self.fault.coalesce > 1:
            self._held.append(data)
            if len(self._held) < self.fault.coalesce:
                return
            data = self._take_held()
        await self._chunk(data)

    async def end(self) -> None:
        if self._held:
            await self._chunk(self._take_held())
        if self._zip:
            await self._write(self._framed(self._zip.flush()))
        if self.http11:
            # No turn of the loop after it: the caller may leave now, and has seen it all.
            await self._send(b"", b"0\r\n\r\n")

    def _take_held(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        return data

    async def _chunk(self, data: bytes) -> None:
        if self._zip:
            data = self._zip.compress(data) + self._zip.flush(zlib.Z_SYNC_FLUSH)
        framed = self._framed(data)
        fault = self.fault
        if fault is not NO_FAULT and self.chunks in (fault.reset_mid_chunk, fault.truncate_chunk):
            await self._write(framed[: len(framed) // 2])
            raise Cut(reset=self.chunks == fault.reset_mid_chunk)
        self.chunks += 1
        await self._write(framed)

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self.http11 else data

    async def _send(self, head: bytes, body: bytes) -> None:
        if self._packets:
            if head:
                await self._packets.write(head, head=True)
            if body:
                await self._packets.write(body)
            return
        self.line.write(head + body)
        await self.line.drained()

    async def _write(self, data: bytes) -> None:
        if self._packets:
            await self._packets.write(data)
            return
        self.line.write(data)
        await self.line.drained()
        # uvloop writes at the end of a turn of the loop: without one, chunks would leave together.
        await asyncio.sleep(0)

    def _head(self, status: int, content_type: str | None, headers: Headers, framing: bytes) -> bytes:
        if self.fault.reshapes_head:
            return self._odd_head(status, content_type, headers, framing)
        version = b"HTTP/1.1" if self.http11 else b"HTTP/1.0"
        parts = [b"%b %d %b\r\n" % (version, status, REASONS.get(status, "status code").encode())]
        parts.extend(f"{name}: {value}\r\n".encode("latin-1") for name, value in (*self.extra, *headers))
        if content_type:
            parts.append(b"Content-Type: %b\r\n" % content_type.encode("latin-1"))
        parts.append(Stamps.date_header())
        parts.append(framing)
        parts.append(b"\r\n" if self.keep_alive else b"Connection: close\r\n\r\n")
        return b"".join(parts)

    def _odd_head(self, status: int, content_type: str | None, headers: Headers, framing: bytes) -> bytes:
        fault = self.fault
        status = fault.http_status or status
        self.seen.status = status
        line = fault.garbage_status_line or f"HTTP/1.1 {status} {REASONS.get(status, 'Odd')}"
        early = f"HTTP/1.1 {fault.early_status} Early\r\nX-Early: 1\r\n\r\n" * fault.early_responses
        fields = [*self.extra, *headers, *fault.extra_headers]
        if fault.gzip:
            fields.append(("Content-Encoding", "gzip"))
        kind = fault.content_type or content_type
        if kind:
            fields.append(("Content-Type", kind))
        text = early + line + "\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
        end = b"\r\n" if self.keep_alive else b"Connection: close\r\n\r\n"
        return text.encode("latin-1") + Stamps.date_header() + framing + end
