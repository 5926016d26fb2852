"""Anthropic's dialect as Ollama speaks it: messages and errors (ollama-api §2.9, §4.1). Pure."""

from collections.abc import Mapping
from typing import Any

import orjson

from proxy import body
from proxy.body import Schema
from proxy.dialects import ollama, openai, web_search, weight
from proxy.dialects.base import NOTHING, Endpoint, Governed, Pin, Request, Usage, go_json
from proxy.errors import BadRequest
from proxy.metering import EventForm

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


# Fields


def content(name: str, value: Any) -> Any:
    return value if isinstance(value, str) else body.list_of(BLOCK)(name, value)


def result(name: str, value: Any) -> Any:
    """The content of a tool's result: a text or blocks; of a search that failed, one object."""
    return value if isinstance(value, dict) else content(name, value)


_SOURCE = Schema(dict.fromkeys(("type", "media_type", "data", "url"), body.text))
BLOCK = Schema(
    {
        **dict.fromkeys(("type", "text", "id", "name", "tool_use_id", "thinking", "signature"), body.text),
        "source": body.nested(_SOURCE),
        "content": result,
        "is_error": body.boolean,
    }
)
MESSAGE = Schema({"role": body.text, "content": content})
TOOL = Schema(
    {
        **dict.fromkeys(("type", "name", "description"), body.text),
        "input_schema": body.obj,
        "max_uses": body.integer,
    }
)
REQUEST = Schema(
    {
        "model": body.text,
        **dict.fromkeys(openai.OF_OLLAMA, body.anything),
        "max_tokens": body.integer,
        "messages": body.list_of(MESSAGE),
        "system": content,
        "stream": body.boolean,
        "temperature": body.number,
        "top_p": body.number,
        "top_k": body.integer,
        "stop_sequences": body.texts,
        "tools": body.list_of(TOOL),
        "thinking": body.nested(Schema({"type": body.text, "budget_tokens": body.integer})),
        "output_config": body.nested(Schema({"effort": body.text})),
        "tool_choice": body.nested(
            Schema({"type": body.text, "name": body.text, "disable_parallel_tool_use": body.boolean})
        ),
        "metadata": body.nested(Schema({"user_id": body.text})),
    }
)


# Policy


def govern(request: Request, pin: Pin) -> Governed:
    asked = request.get("max_tokens")
    if not asked or asked < 0:
        raise BadRequest("max_tokens is required and must be positive")
    if not request.get("messages"):
        raise BadRequest("messages is required")
    changed = openai.without_native(request)
    web_search.strip(request, pin, changed)
    return Governed(openai.write_cap(request, "max_tokens", asked, pin, changed), changed)


def end_user(request: Request) -> str:
    return (request.get("metadata") or {}).get("user_id") or ""


# Counts


def usage(answer: dict[str, Any]) -> Usage:
    """Of a message, or of the event message_delta; what message_start says is a guess."""
    reported = answer.get("usage")
    counts = reported if isinstance(reported, dict) else {}
    done = bool(answer.get("stop_reason"))
    return Usage(done, counts.get("input_tokens"), counts.get("output_tokens"), error=answer.get("error"))


def generated(answer: dict[str, Any]) -> int:
    """Bytes of what was generated in an answer in one piece."""
    size = 0
    for block in openai.objects(answer.get("content")):
        texts = (block.get("text"), block.get("thinking"))
        size += sum(len(text.encode()) for text in texts if isinstance(text, str))
        size += len(orjson.dumps(block["input"])) if block.get("input") else 0
    return size


def token_count(request: Request) -> int:
    """An estimate of the prompt: four bytes are a token, as Ollama itself guesses. There is nobody to ask."""
    texts = 0
    images = 0
    waiting: list[Any] = [request.get("system"), request.get("messages"), request.get("tools")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            texts += len(value.encode())
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            if value.get("type") == "image":
                images += 1
                continue
            waiting += [value.get(name) for name in ("content", "text", "thinking", "name", "description")]
            texts += sum(len(orjson.dumps(value[name])) for name in ("input", "input_schema") if value.get(name))
    return -(-texts // 4) + images * weight.TOKENS_PER_IMAGE


def leave(request: Request, pin: Pin) -> Governed:
    if not request.get("messages"):
        raise BadRequest("messages is required")
    return Governed()


EVENTS = EventForm(
    token=b"event: content_block_delta\n",
    reporting=(b"event: message_delta\n",),
    last=(b"event: message_stop\n",),
    usage=usage,
)


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/messages": Endpoint(
        schema=REQUEST,
        govern=govern,
        weigh=weight.weigh,
        meter=openai.meter_of(EVENTS, generated),
        wants_stream=openai.wants_stream,
        end_user=end_user,
        takes_zstd=True,
    ),
    # Ollama has no such route; we answer it.
    "/v1/messages/count_tokens": Endpoint(schema=REQUEST, govern=leave, meter=ollama.nothing_to_meter, takes_zstd=True),
}


# Errors


class Anthropic:
    name = "anthropic"
    id_headers: tuple[bytes, ...] = (b"x-request-id", b"request-id")

    def error(self, status: int, code: str, message: str, request_id: str, said: Mapping[str, Any] = NOTHING) -> bytes:
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return go_json({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})

    def stream_error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        return b"event: error\ndata: " + self.error(status, code, message, request_id) + b"\n\n"
