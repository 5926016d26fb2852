"""From a backend's answer to the client: what passes, what is mended, what becomes an error."""

import logging
import re

import orjson

from proxy import headers as header_rules
from proxy.call import Call
from proxy.client import Client, Headers
from proxy.dialects.base import go_json
from proxy.errors import BadGateway, BrokenAnswer, Interruption, Refusal, Unavailable
from proxy.metering import LineMeter, Meter
from proxy.upstream.wire import Answer

logger = logging.getLogger(__name__)

# A unary answer up to this size is held until it is whole, so that a broken one becomes a clean error.
HELD_BYTES = 1 << 20
MAX_ERROR_TEXT = 4096
# Lines beyond the cap before a stream is cut: with `format`, a thinking model generates twice (ollama-api §2.4).
CEILING_FACTOR, CEILING_EXTRA = 2, 256

_PATHS = re.compile(r"(?<![\w.:/])(?:/[\w.@+-]+){2,}/?|\b[A-Za-z]:\\\S+")
_ADDRESSES = re.compile(r"\b[a-z]+://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\[[0-9a-f:]+\](?::\d+)?", re.IGNORECASE)


class OwnRefusal(Refusal):
    """A backend's refusal of the client's fault, passed on with its text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__("backend_refused", message)
        self.status = status


def scrubbed(text: str) -> str:
    """A backend's text without the paths and addresses of its machine (B9)."""
    return _ADDRESSES.sub("…", _PATHS.sub("…", text[:MAX_ERROR_TEXT]))


async def refusal_of(answer: Answer, call: Call) -> Refusal:
    """What a backend's error answer is to our client: 4xx with their text, anything else 502 (design §11)."""
    raw = b""
    while len(raw) < MAX_ERROR_TEXT and (chunk := await answer.read()):
        raw += chunk
    text = _error_text(raw[: 2 * MAX_ERROR_TEXT])
    if 400 <= answer.status < 500:
        return OwnRefusal(answer.status, scrubbed(text))
    name = call.backend.name if call.backend else ""
    logger.warning("Backend %s answered %d to %s: %s", name, answer.status, call.id, text[:500])
    return BadGateway("backend_error", f"The backend failed ({answer.status}). Our request id is {call.id}.")


def busy() -> Refusal:
    return Unavailable(
        "backend_busy", "server busy, please try again.  maximum pending requests exceeded", retry_after=1
    )


def _error_text(raw: bytes) -> str:
    try:
        error = orjson.loads(raw).get("error")
    except (orjson.JSONDecodeError, AttributeError):
        return raw.decode("utf-8", "replace").strip()
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else raw.decode("utf-8", "replace").strip()


class Relay:
    """Passes one good answer on. `run` raises BrokenAnswer only while nothing was sent to the client."""

    def __init__(self, call: Call, client: Client, answer: Answer, headers: Headers, gap_seconds: float) -> None:
        self.call = call
        self.client = client
        self.answer = answer
        self.headers = headers
        self.gap_seconds = gap_seconds

    async def run(self, meter: Meter) -> None:
        """Relays to the end; sets the call's outcome."""
        call = self.call
        call.meter = meter
        self._check()
        call.expect_within(self.gap_seconds, Interruption.GAP)
        if isinstance(meter, LineMeter):
            await self._stream(meter)
        else:
            await self._unary(meter)

    def _check(self) -> None:
        names = dict(self.answer.headers)
        if names.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
            raise BrokenAnswer("an encoded answer, though identity was asked for")
        kind = header_rules.content_type_for_client(names.get(b"content-type", b""))
        if kind is None:
            raise BrokenAnswer("an answer of a type that is not passed on")
        self.headers.append((b"content-type", kind))
        self.headers += header_rules.towards_client(self.answer.headers)

    async def _stream(self, meter: LineMeter) -> None:
        call, answer, client = self.call, self.answer, self.client
        call.status = 200
        call.headers_sent = True
        await client.start(200, self.headers)
        if not answer.ready:
            await client.write(b"")  # the head must not wait for the first token
        ceiling = call.output_cap * CEILING_FACTOR + CEILING_EXTRA
        try:
            while chunk := await answer.read():
                if not call.first_byte_at:
                    call.note_first_byte()
                meter.feed(chunk)
                if b'{"error"' in chunk:
                    chunk = self._scrubbed(chunk)
                call.expect_within(self.gap_seconds, Interruption.GAP)
                call.bytes_out += len(chunk)
                if meter.counted > ceiling:
                    raise BrokenAnswer("the backend generates past the cap it was given")
                if answer.at_end:
                    meter.finish()
                    if meter.complete or meter.error:
                        await client.end(chunk)
                        self._ended(meter)
                        return
                await client.write(chunk)
        except BrokenAnswer as exc:
            await self._broken_stream(str(exc))
            return
        meter.finish()
        if meter.complete or meter.error:
            await client.end()
            self._ended(meter)
        else:
            await self._broken_stream("the stream ended without its last object")

    def _scrubbed(self, chunk: bytes) -> bytes:
        """The chunk with a backend's error line in words that may leave the house."""
        lines = chunk.split(b"\n")
        for number, line in enumerate(lines):
            if line.startswith(b'{"error"'):
                try:
                    error = orjson.loads(line)["error"]
                except (orjson.JSONDecodeError, KeyError):
                    continue
                logger.warning("Backend %s failed in mid-stream of %s: %.500s", self._backend, self.call.id, error)
                lines[number] = go_json({"error": scrubbed(str(error))})
        return b"\n".join(lines)

    def _ended(self, meter: Meter) -> None:
        self.call.outcome = "failed" if meter.error else "ok"
        if meter.error:
            self.call.error = "backend_error"

    async def _broken_stream(self, why: str) -> None:
        call = self.call
        logger.warning("Backend %s broke off %s: %s", self._backend, call.id, why)
        call.outcome, call.error = "failed", "broken_stream"
        message = f"The backend broke off its answer. Our request id is {call.id}."
        await self.client.end(call.dialect.stream_error(502, "broken_stream", message, call.id))

    async def _unary(self, meter: Meter) -> None:
        call, answer = self.call, self.answer
        held: list[bytes] = []
        size = 0
        while chunk := await answer.read():
            if not call.first_byte_at:
                call.note_first_byte()
            meter.feed(chunk)
            call.expect_within(self.gap_seconds, Interruption.GAP)
            size += len(chunk)
            if call.headers_sent:
                await self._write(chunk)
                continue
            held.append(chunk)
            if size > HELD_BYTES:
                await self._start()
                await self._write(b"".join(held))
                held.clear()
        meter.finish()
        if not meter.whole:
            raise BrokenAnswer("an answer that is not whole")
        if call.headers_sent:
            await self.client.end()
        else:
            self.headers.append((b"content-length", b"%d" % size))
            await self._start()
            call.bytes_out += size
            await self.client.end(held[0] if len(held) == 1 else b"".join(held))
        call.outcome = "ok" if meter.complete else "failed"
        if not meter.complete:
            call.error = "incomplete"

    async def _start(self) -> None:
        self.call.status = 200
        self.call.headers_sent = True
        await self.client.start(200, self.headers)

    async def _write(self, chunk: bytes) -> None:
        self.call.bytes_out += len(chunk)
        await self.client.write(chunk)

    @property
    def _backend(self) -> str:
        return self.call.backend.name if self.call.backend else ""
