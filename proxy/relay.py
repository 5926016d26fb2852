"""From a backend's answer to the client: what passes, what is mended, what becomes an error."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from proxy import headers as header_rules
from proxy.call import Call
from proxy.client import Client, Headers
from proxy.dialects.base import go_json
from proxy.errors import BadGateway, BrokenAnswer, Interruption, LoopDetected, Refusal, Unavailable
from proxy.metering import Meter, StreamMeter
from proxy.upstream.wire import Answer

logger = logging.getLogger(__name__)

# A unary answer up to this size is held until it is whole, so that a broken one becomes a clean error.
HELD_BYTES = 1 << 20
# Of a larger one the end is held, which may name the model: longer than any name, and what follows it.
TAIL_BYTES = 2048
# Of an error of a backend: characters in a line of the log, and where what it quotes begins (no apostrophe).
MAX_LOGGED = 200
_QUOTE = re.compile(r"""["`“‘«{\[<\r\n]|(?<![A-Za-z]{2})'""")
MAX_ERROR_TEXT = 4096
# Lines beyond the cap before a stream is cut: with `format`, a thinking model generates twice (ollama-api §2.4).
CEILING_FACTOR, CEILING_EXTRA = 2, 256

_DATA = b"data: "  # what a line of server-sent events begins with, as Ollama writes it

# Repetitions are bounded: a hostile text must not take quadratic time.
_PRIVATE = re.compile(
    r"""
      \b[a-z][a-z0-9+.-]{0,15}://\S+                          # URLs
    | \b[\w.+-]{1,64}@[\w.-]{1,255}                           # accounts
    | \b[a-z]:\\\S+ | (?<![\w./])~?(?:/[\w.@+~-]+)+/?        # paths
    | \b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b                  # IPv4
    | \[[0-9a-f:.]{2,45}(?:%\w{1,15})?\](?::\d+)?            # IPv6
    | (?<![\w:])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{1,4}\b
    | \b(?:localhost|(?:[\w-]{1,63}\.){1,8}[a-z]{2,63}):\d+\b | (?<=lookup\ )\S+   # hosts
    """,
    re.IGNORECASE | re.VERBOSE,
)


class OwnRefusal(Refusal):
    """A backend's refusal of the client's fault, passed on with its text."""

    def __init__(self, status: int, message: str, said: Mapping[str, Any], retry_after: float | None) -> None:
        super().__init__("backend_refused", message, retry_after=retry_after)
        self.status = status
        self.said = said


def scrubbed(text: str) -> str:
    """A backend's text without the paths, addresses and accounts of its machine (B9)."""
    return _PRIVATE.sub("…", text[:MAX_ERROR_TEXT])


def own_words(text: str) -> str:
    """The beginning of a backend's error, for the log: what it goes on to quote may be a prompt or an answer (L7)."""
    if text.startswith("{"):  # a JSON document in a text: so Ollama passes on an error of its runner (§4)
        text, _ = _error_in(text.encode())
    own = _QUOTE.split(text, maxsplit=1)[0].strip()[:MAX_LOGGED]
    return own if len(own) == len(text) else f"{own} …"


async def refusal_of(answer: Answer, call: Call) -> Refusal:
    """What a backend's error answer is to our client: 4xx with their text, anything else 502 (design §11)."""
    check_encoding(answer)
    raw = b""
    while len(raw) < MAX_ERROR_TEXT and (chunk := await answer.read()):
        raw += chunk
    text, said = _error_in(raw[: 2 * MAX_ERROR_TEXT])
    if 400 <= answer.status < 500:
        wait = answer.header(b"retry-after")
        return OwnRefusal(answer.status, scrubbed(text), said, int(wait) if wait.isdigit() and len(wait) < 9 else None)
    if answer.status == 508:
        return LoopDetected("loop", "The backends of this gateway lead back to itself. Check their addresses.")
    name = call.backend.name if call.backend else ""
    logger.warning("Backend %s answered %d to %s: %s", name, answer.status, call.id, own_words(text))
    return BadGateway("backend_error", f"The backend failed ({answer.status}). Our request id is {call.id}.")


def check_encoding(answer: Answer) -> None:
    """Raises BrokenAnswer for a compressed answer: identity was asked for, and we do not expand bombs (B7)."""
    if answer.header(b"content-encoding").strip().lower() not in (b"", b"identity"):
        raise BrokenAnswer("an encoded answer, though identity was asked for")


def busy() -> Refusal:
    return Unavailable(
        "backend_busy", "server busy, please try again.  maximum pending requests exceeded", retry_after=1
    )


def _without_private(line: bytes) -> tuple[str, bytes]:
    """(what a line of a stream says went wrong, the line as it may leave the house); ("", line) where all is well."""
    prefix = _DATA if line.startswith(_DATA) else b""
    try:
        said = orjson.loads(line[len(prefix) :])
    except orjson.JSONDecodeError:
        return "", line
    holder = said.get("response") if isinstance(said, dict) and isinstance(said.get("response"), dict) else said
    error = holder.get("error") if isinstance(holder, dict) else None
    if not error:
        return "", line
    if isinstance(error, dict):
        text = str(error.get("message", ""))
        error["message"] = scrubbed(text)
        return text or str(error), prefix + go_json(said)
    return str(error), prefix + go_json({"error": scrubbed(str(error))})


def _error_in(raw: bytes) -> tuple[str, Mapping[str, Any]]:
    """(text, error object if there is one) of an error answer: Ollama's shape also comes on the routes of others."""
    try:
        error = orjson.loads(raw).get("error")
    except (orjson.JSONDecodeError, AttributeError):
        error = None
    said = error if isinstance(error, dict) else {}
    text = said.get("message") if said else error
    return text if isinstance(text, str) else raw.decode("utf-8", "replace").strip(), said


Renaming = tuple[bytes, bytes]


def renaming(named: str, asked: str) -> Renaming | None:
    """How a backend's answer names the model and how the client did, where it used another spelling or an alias."""
    return None if asked == named else (b'"model":' + go_json(named), b'"model":' + go_json(asked))


def renamed(line: bytes, names: Renaming) -> bytes:
    """A line that names the model, with the name that the client asked by (design §11)."""
    named, asked = names
    # Ollama's own lines begin with it, and may hold any object further on; elsewhere the first one is it.
    if line.startswith(b'{"model":') and not line.startswith(named, 1):
        return line
    return line.replace(named, asked, 1) if line.startswith((b"{", _DATA)) else line


def all_renamed(lines: bytes, names: Renaming | None) -> bytes:
    if names is None:
        return lines
    return b"\n".join([renamed(line, names) for line in lines.split(b"\n")])


class Relay:
    """Passes one good answer on. `run` raises BrokenAnswer only while nothing was sent to the client."""

    def __init__(
        self,
        call: Call,
        client: Client,
        answer: Answer,
        headers: Headers,
        gap_seconds: float,
        before_end: Callable[[], None],
    ) -> None:
        """`before_end` is called when the outcome is known, before the last bytes leave."""
        self.call = call
        self.client = client
        self.answer = answer
        self.headers = headers
        self.gap_seconds = gap_seconds
        self.before_end = before_end
        self.renaming = renaming(call.model.served.upstream, call.asked) if call.model is not None else None
        self.names_at_end = False  # as OpenAI's embeddings do, after megabytes of vectors

    def run(self, meter: Meter) -> Awaitable[None]:
        """Relays to the end; sets the call's outcome."""
        call = self.call
        call.meter = meter
        self._check()
        call.expect_within(self.gap_seconds, Interruption.GAP)
        return self._stream(meter) if isinstance(meter, StreamMeter) else self._unary(meter)

    def _check(self) -> None:
        check_encoding(self.answer)
        kind = header_rules.content_type_for_client(self.answer.header(b"content-type"))
        if kind is None:
            raise BrokenAnswer("an answer of a type that is not passed on")
        self.headers.append((b"content-type", kind))
        self.headers += header_rules.towards_client(self.answer.headers)

    async def _stream(self, meter: StreamMeter) -> None:
        call, answer, client = self.call, self.answer, self.client
        call.status = 200
        call.headers_sent = True
        await client.start(200, self.headers)
        if not answer.ready:
            await client.write(b"")  # the head must not wait for the first token
        ceiling = call.output_cap * CEILING_FACTOR + CEILING_EXTRA
        lines, broken = b"", ""
        try:
            while chunk := await answer.read():
                if not call.first_byte_at:
                    call.note_first_byte()
                lines = meter.feed(chunk)
                if meter.counted > ceiling:
                    broken = "it generates past the cap it was given"
                    break
                if answer.at_end:
                    break  # goes out together with the end
                if lines:
                    # As _write(self._mended(lines)) does; without their frames for each chunk of a stream.
                    if self.renaming is not None or b'"error"' in lines:
                        lines = self._mended(lines)
                    call.bytes_out += len(lines)
                    call.deadline = 0.0
                    await client.write(lines)
                    lines = b""
                call.expect_within(self.gap_seconds, Interruption.GAP)
        except BrokenAnswer as exc:
            broken = str(exc)
        except asyncio.CancelledError:
            # A client may leave as soon as it has the last object, before the backend has ended its answer.
            knows_the_last = not meter.rest and not meter.ends_with_connection
            if call.interruption is Interruption.CLIENT_GONE and knows_the_last and self._has_ended(meter):
                self.before_end()
            raise
        if self._has_ended(meter) and not (broken and meter.ends_with_connection):
            await self._end(self._mended(lines + meter.rest))
        else:
            await self._break_off(lines, broken or meter.fault)

    def _has_ended(self, meter: StreamMeter) -> bool:
        """Whether the last object was seen, which tells whether the answer is whole; the connection does not (B3)."""
        meter.finish()
        if not meter.complete and not meter.error:
            return False
        self.call.outcome = "failed" if meter.error else "ok"
        self.call.error = "backend_error" if meter.error else ""
        return True

    def _mended(self, lines: bytes) -> bytes:
        """Whole lines of a stream as the client gets them."""
        return self._scrubbed(all_renamed(lines, self.renaming))

    def _scrubbed(self, lines: bytes) -> bytes:
        """The lines with a backend's errors in words that may leave the house."""
        # Within a JSON text quotes are escaped: these stand for themselves.
        if b'"error"' not in lines:
            return lines
        mended = lines.split(b"\n")
        for number, line in enumerate(mended):
            if b'"error"' in line:
                error, mended[number] = _without_private(line)
                if error:
                    said = own_words(error)
                    logger.warning("Backend %s failed in mid-stream of %s: %s", self._backend, self.call.id, said)
        return b"\n".join(mended)

    async def _break_off(self, lines: bytes, broken: str) -> None:
        """Ends a stream that has no end. `broken`: what the connection did; "": the backend ended it in order.

        The latter is no fault of the backend: Ollama does so when a model repeats itself (ollama-api §2.4).
        """
        call = self.call
        why = broken or "the stream ended without its last object"
        logger.warning("Backend %s broke off %s: %s", self._backend, call.id, why)
        call.outcome, call.error = "failed", "broken_stream" if broken else "incomplete"
        message = f"The backend broke off its answer. Our request id is {call.id}."
        await self._end(self._mended(lines) + call.dialect.stream_error(502, call.error, message, call.id))

    async def _unary(self, meter: Meter) -> None:
        call, answer = self.call, self.answer
        held = bytearray()
        while chunk := await answer.read():
            if not call.first_byte_at:
                call.note_first_byte()
            held += meter.feed(chunk)
            if call.headers_sent or len(held) > HELD_BYTES:
                if not call.headers_sent:
                    held = self._named(held)
                    await self._start()
                await self._write(bytes(held[:-TAIL_BYTES]))
                del held[:-TAIL_BYTES]
            call.expect_within(self.gap_seconds, Interruption.GAP)
        meter.finish()
        if not meter.whole:
            raise BrokenAnswer("an answer that is not whole")
        if meter.error and not call.headers_sent:
            raise BrokenAnswer(f"an error in a good answer: {own_words(meter.error)}")
        call.outcome = "ok" if meter.complete else "failed"
        call.error = "" if meter.complete else "incomplete"
        if not call.headers_sent:
            held = self._named(held)
            self.headers.append((b"content-length", b"%d" % len(held)))
            await self._start()
        elif self.names_at_end:
            held = self._named(held)
        await self._end(bytes(held))

    def _named(self, held: bytearray) -> bytearray:
        """The piece of an answer in which the model's name stands, with the name that the client asked by."""
        if self.renaming is None:
            return held
        if self.names_at_end:
            return held.replace(*self.renaming, 1)
        self.names_at_end = held.startswith(b'{"object":"list"')
        return bytearray(renamed(bytes(held), self.renaming))

    async def _start(self) -> None:
        self.call.status = 200
        self.call.headers_sent = True
        await self.client.start(200, self.headers)

    async def _write(self, chunk: bytes) -> None:
        call = self.call
        call.bytes_out += len(chunk)
        # How long a client may take to read is its server's to judge (N6), and no fault of the backend.
        call.deadline = 0.0
        await self.client.write(chunk)

    async def _end(self, chunk: bytes) -> None:
        self.call.bytes_out += len(chunk)
        self.call.deadline = 0.0
        self.before_end()
        await self.client.end(chunk)

    @property
    def _backend(self) -> str:
        return self.call.backend.name if self.call.backend else ""
