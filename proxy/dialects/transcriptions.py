"""OpenAI's /v1/audio/transcriptions as Ollama speaks it (ollama-api §2.11). Pure."""

import secrets
from collections.abc import Mapping
from typing import Any

import orjson

from proxy.body import Schema
from proxy.dialects import weight
from proxy.dialects.base import Endpoint, Governed, Pin, Request, Usage
from proxy.errors import BadRequest, BrokenAnswer
from proxy.forms import Form
from proxy.metering import MAX_LINE, Meter

TEXTS = ("language", "prompt", "response_format")


def read(form: Form) -> Request:
    """The fields that Ollama looks at; all others are dropped. Raises BadRequest."""
    if form.file is None:
        raise BadRequest('"file" is required: the audio, as a part of the form')
    if not form.file:
        raise BadRequest("audio file is empty")
    fields = {name: form.fields[name] for name in ("model", *TEXTS) if form.fields.get(name)}
    return {**fields, "file": form.file}


def weigh(request: Request, size: int) -> int:
    texts = sum(len(request[name].encode()) for name in TEXTS if name in request)
    return texts + 4 * weight.of_sound(len(request["file"]))


def govern(request: Request, pin: Pin) -> Governed:
    # Ollama offers no field for a cap: this is what is set aside.
    return Governed(pin.capped(None))


def written(request: Request) -> tuple[bytes, bytes]:
    """A form of our own: only what was understood, between boundaries that no sender can know."""
    boundary = secrets.token_hex(24).encode()
    parts: list[bytes] = []
    for name, value in request.items():
        head = b'--%b\r\nContent-Disposition: form-data; name="%b"' % (boundary, name.encode())
        if name == "file":
            head += b'; filename="audio"\r\nContent-Type: application/octet-stream'
        parts += (head, b"\r\n\r\n", value if name == "file" else value.encode(), b"\r\n")
    return b"multipart/form-data; boundary=" + boundary, b"".join([*parts, b"--", boundary, b"--\r\n"])


class TranscriptMeter(Meter):
    """A text, plain or as the one member of an object; four of its bytes are a token. Nothing reports its usage."""

    __slots__ = ("_json", "_raw", "_size")

    def __init__(self, content_type: bytes, prompt_bytes: int) -> None:
        super().__init__(lambda answer: Usage(done=True), prompt_bytes, reports=False)
        self._json = b"json" in content_type
        self._raw = bytearray()
        self._size = 0

    def feed(self, chunk: bytes) -> bytes:
        self._size += len(chunk)
        self.counted = -(-self._size // 4)
        if self._json:
            self._raw += chunk
            if self._size > MAX_LINE:
                raise BrokenAnswer(f"an answer of more than {MAX_LINE} bytes")
        return chunk

    def finish(self) -> None:
        if not self._json:
            self.whole = self.complete = True
            return
        try:
            said: Any = orjson.loads(self._raw)
        except orjson.JSONDecodeError:
            return
        if not isinstance(said, dict):
            return
        self.whole = True
        text = said.get("text")
        self.complete = isinstance(text, str)
        self.counted = -(-len(text.encode()) // 4) if isinstance(text, str) else 0
        self.error = str(said["error"])[:4096] if said.get("error") else ""


def _meter(content_type: bytes, prompt_bytes: int, hides_usage: bool) -> Meter:
    return TranscriptMeter(content_type, prompt_bytes)


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/audio/transcriptions": Endpoint(
        schema=Schema({}),
        read_form=read,
        weigh=weigh,
        govern=govern,
        meter=_meter,
        written=written,
    )
}
