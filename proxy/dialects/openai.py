"""OpenAI's dialect as Ollama speaks it: chat, completions, embeddings, errors (ollama-api §2.5–2.7, §4.1). Pure."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from proxy import body
from proxy.body import Schema
from proxy.dialects import ollama, weight
from proxy.dialects.base import NOTHING, Endpoint, Governed, Pin, Request, Usage, go_json
from proxy.errors import BadRequest
from proxy.metering import AnswerMeter, EmbeddingMeter, EventForm, EventMeter, Meter

# Ollama ignores them on its OpenAI routes. A release that would not must find nothing there (M3).
OF_OLLAMA = frozenset(("keep_alive", "options", "num_ctx", "shift"))

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}
_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}\Z")


# Fields


def part(name: str, value: Any) -> None:
    """A piece of a message. Its keys are looked up as they are: Go's rule is for structs, and this is a map."""
    if not isinstance(value, dict):
        raise BadRequest(f'"{name}" must be an object')
    body.text(f"{name}.type", value.get("type"))
    if value.get("type") == "text" and not isinstance(value.get("text"), str):
        raise BadRequest(f'"{name}.text" must be a string')
    if value.get("type") == "image_url":
        image = value.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url.startswith("data:"):
            raise BadRequest(f'"{name}.image_url" must be a data: URI with the image in base64; URLs are not fetched')


def content(name: str, value: Any) -> Any:
    if isinstance(value, list):
        for item in value:
            part(f"{name}[]", item)
        return value
    if value is not None and not isinstance(value, str):
        raise BadRequest(f'"{name}" must be a string or a list of parts')
    return value


_CALLED = Schema({"name": body.text, "arguments": body.text})
TOOL_CALL = Schema({"id": body.text, "index": body.integer, "type": body.text, "function": body.nested(_CALLED)})
MESSAGE = Schema(
    {
        "role": body.text,
        "content": content,
        "reasoning": body.text,
        "tool_calls": body.list_of(TOOL_CALL),
        "name": body.text,
        "tool_call_id": body.text,
    }
)
REASONING = Schema(dict.fromkeys(("effort", "summary", "generate_summary"), body.text))
FORMAT = Schema({"type": body.text, "json_schema": body.nested(Schema({"schema": body.obj}))})

_COMMON = {"model": body.text, **dict.fromkeys(OF_OLLAMA, body.anything)}
_GENERATION = {
    **_COMMON,
    "stream": body.boolean,
    "stream_options": body.nested(Schema({"include_usage": body.boolean})),
    "max_tokens": body.integer,
    "max_completion_tokens": body.integer,
    "seed": body.integer,
    "stop": body.text_or_texts,
    "_debug_render_only": body.boolean,
}
CHAT = Schema(
    {
        **_GENERATION,
        **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), body.number),
        "messages": body.list_of(MESSAGE),
        "response_format": body.nested(FORMAT),
        "tools": body.list_of(ollama.TOOL),
        "reasoning": body.nested(REASONING),
        "reasoning_effort": body.text,
        "logprobs": body.boolean,
        "top_logprobs": body.top_logprobs,
    }
)
COMPLETIONS = Schema(
    {
        **_GENERATION,
        **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), body.small_number),
        "prompt": body.text,
        "suffix": body.text,
        "logprobs": body.integer,
    }
)


def embedded(name: str, value: Any) -> Any:
    if value in (None, "", []):
        raise BadRequest("invalid input")
    if not (isinstance(value, str) or (isinstance(value, list) and all(type(item) is str for item in value))):
        raise BadRequest('invalid input type: "input" must be a string or a list of strings, not of token numbers')
    return value


def encoding(name: str, value: Any) -> Any:
    if body.text(name, value) and value.lower() not in ("float", "base64"):
        raise BadRequest(f'"{name}" must be "float" or "base64"')
    return value


EMBEDDINGS = Schema({**_COMMON, "input": embedded, "dimensions": body.integer, "encoding_format": encoding})


# Policy


def govern_chat(request: Request, pin: Pin) -> Governed:
    if not request.get("messages"):
        raise BadRequest("[] is too short - 'messages'")
    return govern_generation(request, pin)


def govern_generation(request: Request, pin: Pin) -> Governed:
    changed = without_native(request)
    if request.pop("_debug_render_only", None) is not None:
        changed.append("_debug_render_only")
    # Ollama ignores the newer name; who gives both means both.
    given = [request.get("max_tokens"), request.pop("max_completion_tokens", None)]
    cap = write_cap(request, "max_tokens", min((cap for cap in given if cap and cap > 0), default=None), pin, changed)
    return Governed(cap, changed, hides_usage=_ask_for_usage(request))


def without_native(request: Request) -> list[str]:
    """Takes Ollama's own switches out; returns the names of those that were there."""
    given = sorted(OF_OLLAMA & request.keys())
    for name in given:
        del request[name]
    return given


def write_cap(request: Request, name: str, asked: int | None, pin: Pin, changed: list[str]) -> int:
    cap = request[name] = pin.capped(asked)
    if cap != asked:
        changed.append(f"{name}={cap}")
    return cap


def _ask_for_usage(request: Request) -> bool:
    """A stream tells what it used only if asked. Returns whether it was not the client who asked."""
    if not request.get("stream"):
        return False
    options = request.get("stream_options") or {}
    hides = not options.get("include_usage")
    request["stream_options"] = {**options, "include_usage": True}
    return hides


def govern_embeddings(request: Request, pin: Pin) -> Governed:
    if "input" not in request:
        raise BadRequest("invalid input")
    return Governed(0, without_native(request))


def wants_stream(request: Request) -> bool:
    return request.get("stream") is True


def end_user(request: Request) -> str:
    """The app's own id of whom it calls for, under the newer or the older name."""
    for name in ("safety_identifier", "user"):
        if isinstance(user := request.get(name), str) and user:
            return user
    return ""


# Counts


def usage(answer: dict[str, Any]) -> Usage:
    reported = answer.get("usage")
    counts = reported if isinstance(reported, dict) else {}
    choices = answer.get("choices")
    # Where a model repeats itself Ollama stops it, gives no reason and counts nothing (ollama-api §2.4).
    done = not choices or any(choice.get("finish_reason") for choice in objects(choices))
    return Usage(done, counts.get("prompt_tokens"), counts.get("completion_tokens"), error=answer.get("error"))


def generated(answer: dict[str, Any]) -> int:
    """Bytes of what was generated in an answer in one piece."""
    size = 0
    for choice in objects(answer.get("choices")):
        message = choice.get("message")
        source = message if isinstance(message, dict) else choice
        texts = (source.get("content"), source.get("reasoning"), source.get("text"))
        size += sum(len(text.encode()) for text in texts if isinstance(text, str))
        if tools := source.get("tool_calls"):
            size += len(orjson.dumps(tools))
    return size


def objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


CHAT_EVENTS = EventForm(
    token=b'"delta":{"',
    blank=b'"content":""}',
    reporting=(b"data: ",),
    last=(b"data: [DONE]",),
    usage=usage,
)
COMPLETION_EVENTS = EventForm(
    token=b'"finish_reason":null',
    reporting=(b"data: ",),  # all events, with zeros but for the last
    last=(b"data: [DONE]",),
    usage=usage,
)


def meter_of(events: EventForm, generated: Callable[[Request], int]) -> Callable[[bytes, int, bool], Meter]:
    """An endpoint's `meter`. `generated`: bytes of what an answer in one piece says."""

    def meter(content_type: bytes, prompt_bytes: int, hides_usage: bool) -> Meter:
        # By what the answer is: an empty prompt loads the model, which never streams.
        if b"event-stream" in content_type:
            return EventMeter(events, prompt_bytes, hides_usage=hides_usage)
        return AnswerMeter(events.usage, prompt_bytes, generated)

    return meter


def _embedding_meter(content_type: bytes, prompt_bytes: int, hides_usage: bool) -> Meter:
    return EmbeddingMeter(usage, prompt_bytes)


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(
        schema=CHAT,
        govern=govern_chat,
        weigh=weight.weigh,
        meter=meter_of(CHAT_EVENTS, generated),
        wants_stream=wants_stream,
        end_user=end_user,
        takes_zstd=True,
    ),
    "/v1/completions": Endpoint(
        schema=COMPLETIONS,
        govern=govern_generation,
        meter=meter_of(COMPLETION_EVENTS, generated),
        wants_stream=wants_stream,
        end_user=end_user,
        takes_zstd=True,
    ),
    "/v1/embeddings": Endpoint(
        schema=EMBEDDINGS,
        govern=govern_embeddings,
        meter=_embedding_meter,
        end_user=end_user,
        takes_zstd=True,
    ),
}


# Errors


class OpenAI:
    name = "openai"
    id_headers: tuple[bytes, ...] = (b"x-request-id",)

    def error(self, status: int, code: str, message: str, request_id: str, said: Mapping[str, Any] = NOTHING) -> bytes:
        return go_json({"error": self._described(status, code, message, said)})

    def _described(
        self, status: int, code: str, message: str, said: Mapping[str, Any] = NOTHING
    ) -> dict[str, str | None]:
        kind = _word(said.get("type")) or _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {
            "message": message,
            "type": kind,
            "param": _word(said.get("param")),
            "code": _word(said.get("code")) or code,
        }

    def stream_error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        return b"data: " + self.error(status, code, message, request_id) + b"\n\n"


def _word(value: Any) -> str | None:
    """What a backend says where a name belongs; None if it is none."""
    return value if isinstance(value, str) and _WORD.match(value) else None
