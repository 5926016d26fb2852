"""/v1/audio/transcriptions."""

from email.message import Message
from email.parser import BytesParser

from proxy.fake_ollama.call import JSON, Call
from proxy.fake_ollama.errors import ApiError
from proxy.fake_ollama.generation import Generation, Wish
from proxy.fake_ollama.gojson import encode


async def transcribe(call: Call) -> None:
    fields = form(call)
    asked = fields.get("model", b"").decode("utf-8", "replace")
    if not asked:
        raise ApiError(400, "model is required")
    if "file" not in fields:
        raise ApiError(400, "file is required: http: no such file")
    if not fields["file"]:
        raise ApiError(400, "audio file is empty")
    model = call.model(asked)
    wish = Wish(model, size=len(fields.get("prompt", b"")) + len(fields["file"]) // 8)
    async with Generation(call, wish) as generation:
        outcome = await generation.rest()
    if fields.get("response_format") == b"text":
        await call.reply_text(200, outcome.content, "text/plain; charset=utf-8")
        return
    await call.answer.whole(200, JSON, encode({"text": outcome.content}) + b"\n")


def form(call: Call) -> dict[str, bytes]:
    kind = call.request.header(b"content-type") or b""
    if not kind.lower().startswith(b"multipart/form-data"):
        raise ApiError(400, "failed to parse multipart form: request Content-Type isn't multipart/form-data")
    parsed = BytesParser().parsebytes(b"Content-Type: " + kind + b"\r\n\r\n" + call.request.body)
    parts = parsed.get_payload()
    if not isinstance(parts, list):
        raise ApiError(400, "failed to parse multipart form: no multipart boundary param in Content-Type")
    return dict(map(field, (part for part in parts if isinstance(part, Message))))


def field(part: Message) -> tuple[str, bytes]:
    name = part.get_param("name", "", header="content-disposition")
    payload = part.get_payload(decode=True)
    return str(name), payload if isinstance(payload, bytes) else b""
