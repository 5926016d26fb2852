"""/v1/chat/completions, /v1/completions, /v1/models."""

import time
from collections.abc import Iterable, Sequence
from random import randrange
from typing import Any

import orjson

from proxy.fake_ollama import requests
from proxy.fake_ollama.call import EVENTS, Call
from proxy.fake_ollama.errors import ApiError
from proxy.fake_ollama.generation import CONTENT, THINKING, Generation, Outcome, Piece, ToolUse, Wish
from proxy.fake_ollama.gojson import encode
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.options import check_images, check_top_logprobs
from proxy.fake_ollama.scheduler import AUTOMATIC
from proxy.fake_ollama.streams import Stream, stream_generation
from proxy.fake_ollama.text import size_of

NO_MESSAGES = "[] is too short - 'messages'"
DONE = b"data: [DONE]\n\n"
EFFORTS = {"minimal", "low", "medium", "high", "max", "xhigh", "ultra"}
IMAGE_TYPES = tuple(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp"))
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


async def chat(call: Call) -> None:
    body = call.bind(requests.ChatCompletionRequest)
    messages = body.get("messages") or []
    if not messages:
        raise ApiError(400, NO_MESSAGES)
    check_top_logprobs(body)
    asked, model = completing(call, body, "chat")
    if body.get("tools") and not model.can("tools"):
        raise ApiError(400, f"{model.stored.full} does not support tools")
    wish = read_wish(body, model)
    wish.think = think_of(body, model, asked)
    wish.tools = body.get("tools") or ()
    read_messages(wish, messages)
    wish.format = format_of(body.get("response_format"))
    if body.get("stream"):
        await stream_generation(call, wish, ChatStream(asked, wants_usage(body)))
    else:
        await answer_chat(call, wish, asked)


async def completions(call: Call) -> None:
    body = call.bind(requests.CompletionRequest)
    asked, model = completing(call, body, "generate")
    wish = read_wish(body, model)
    wish.think = model.can("thinking")
    wish.last_user_text = body.get("prompt") or ""
    wish.size = size_of(wish.last_user_text) + size_of(body.get("suffix") or "")
    stream = CompletionStream(asked, wants_usage(body))
    if not wish.last_user_text:
        await load(call, wish, stream)
    elif body.get("stream"):
        await stream_generation(call, wish, stream)
    else:
        async with Generation(call, wish) as generation:
            outcome = await generation.rest()
        usage = {"usage": usage_of(generation)}
        await call.reply_line(stream.whole(outcome.content, reason_of(generation), usage))


async def models(call: Call) -> None:
    data = [entry(model, model.name) for model in call.server.library.newest_first()]
    await call.reply_line({"object": "list", "data": data or None})


async def model(call: Call) -> None:
    await call.reply_line(entry(call.model(call.parameter), call.parameter))


def entry(model: Model, shown: str) -> dict[str, Any]:
    created = int(model.modified_at.timestamp())
    return {"id": shown, "object": "model", "created": created, "owned_by": model.stored.namespace}


def completing(call: Call, body: dict[str, Any], what: str) -> tuple[str, Model]:
    asked = body.get("model") or ""
    if not asked and what == "generate":
        raise ApiError(404, "model '' not found")
    if not asked:
        raise ApiError(400, "model is required")
    found = call.model(asked)
    if not found.can("completion"):
        raise ApiError(400, f'"{asked}" does not support {what}')
    return asked, found


def read_wish(body: dict[str, Any], model: Model) -> Wish:
    limit, seed = body.get("max_tokens"), body.get("seed")
    return Wish(
        model,
        AUTOMATIC,
        limit=limit if limit and limit > 0 else None,
        seed=seed if seed is not None and seed >= 0 else None,
        stops=stops_of(body.get("stop")),
    )


def stops_of(stop: Any) -> Sequence[str]:
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise ApiError(400, f"invalid type for 'stop' field: {type(stop).__name__}")
    return stops


def wants_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def think_of(body: dict[str, Any], model: Model, asked: str) -> bool:
    effort = (body.get("reasoning") or {}).get("effort") or body.get("reasoning_effort") or ""
    if effort and effort != "none" and effort not in EFFORTS:
        raise ApiError(
            400,
            f'invalid reasoning value: "{effort}" (must be "high", "medium", "low", "max", or "none")',
        )
    if model.can("thinking"):
        return effort != "none"
    if effort and effort != "none":
        raise ApiError(400, f'"{asked}" does not support thinking')
    return False


def format_of(wanted: Any) -> Any:
    if not isinstance(wanted, dict):
        return None
    kind = str(wanted.get("type", "")).lower()
    if kind == "json_object":
        return "json"
    if kind == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema")
    return None


def read_messages(wish: Wish, messages: Sequence[dict[str, Any]]) -> None:
    images: list[str] = []
    for message in messages:
        text = content_text(message.get("content"), images)
        wish.size += size_of(text)
        if (message.get("role") or "").lower() in ("user", "tool"):
            wish.last_user_text = text
    check_images(images, wish.model)


def content_text(content: Any, images: list[str]) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ApiError(400, f"invalid message content type: {go_type(content)}")
    return "".join(part_text(part, images) for part in content)


def part_text(part: Any, images: list[str]) -> str:
    if not isinstance(part, dict):
        raise ApiError(400, "invalid message format")
    kind = part.get("type")
    if kind == "text":
        return str(part.get("text", ""))
    if kind == "image_url":
        given = part.get("image_url")
        url = given.get("url", "") if isinstance(given, dict) else str(given)
        if not url.startswith(IMAGE_TYPES):
            raise ApiError(400, "invalid image input")
        images.append(url.partition(",")[2])
    elif kind != "input_audio":
        raise ApiError(400, "invalid message format")
    return ""


def go_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return "map[string]interface {}" if isinstance(value, dict) else "float64"


def usage_of(generation: Generation) -> dict[str, Any]:
    counts = (0, 0) if generation.silent else (generation.prompt_tokens, generation.eval_count)
    usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
    fault = generation.call.fault
    return fault.altered(usage) if fault.alters_usage else usage


def reason_of(generation: Generation, outcome: Outcome | None = None) -> str | None:
    if generation.silent:
        return None
    return "tool_calls" if outcome and outcome.tools else generation.done_reason


def tool_call(index: int, tool: ToolUse) -> dict[str, Any]:
    arguments = orjson.dumps(tool.arguments).decode()
    function = {"name": tool.name, "arguments": arguments}
    return {"id": tool.id, "index": index, "type": "function", "function": function}


async def answer_chat(call: Call, wish: Wish, asked: str) -> None:
    async with Generation(call, wish) as generation:
        outcome = await generation.rest()
    message: dict[str, Any] = {"role": "assistant", "content": outcome.content}
    if outcome.thinking:
        message["reasoning"] = outcome.thinking
    if outcome.tools:
        message["tool_calls"] = [tool_call(index, tool) for index, tool in enumerate(outcome.tools)]
    choice = {"index": 0, "message": message, "finish_reason": reason_of(generation, outcome)}
    await call.reply_line(
        {
            "id": f"chatcmpl-{randrange(999)}",  # noqa: S311
            "object": "chat.completion",
            "created": int(time.time()),
            "model": asked,
            "system_fingerprint": "fp_ollama",
            "choices": [choice],
            "usage": usage_of(generation),
        }
    )


def event(value: Any) -> bytes:
    return b"data: %b\n\n" % encode(value)


class ChatStream(Stream):
    content_type = EVENTS

    def __init__(self, asked: str, wants_usage: bool) -> None:
        self.asked = asked
        self.wants_usage = wants_usage
        self.id = f"chatcmpl-{randrange(999)}"  # noqa: S311
        self.first = True
        self.called_tools = False

    def piece(self, piece: Piece) -> bytes:
        kind, value = piece
        delta: dict[str, Any] = {"role": "assistant"} if self.first else {}
        self.first = False
        if kind is CONTENT:
            delta["content"] = value
        elif kind is THINKING:
            delta |= {"content": "", "reasoning": value}
        else:
            self.called_tools = True
            delta |= {"content": "", "tool_calls": [tool_call(0, value)]}
        return self.chunk(delta)

    def closing(self, generation: Generation) -> Iterable[bytes]:
        yield self.chunk({}, "tool_calls" if self.called_tools else generation.done_reason)
        if self.wants_usage and not generation.call.fault.no_usage:
            last = event(self.head() | {"choices": [], "usage": usage_of(generation)})
            yield from [last] * generation.call.fault.repeat_final
        yield DONE

    def failure(self, text: str) -> bytes:
        # The text is lost, as the middleware loses it.
        self.asked = ""
        return self.chunk({"content": ""})

    def head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self.asked,
            "system_fingerprint": "fp_ollama",
        }

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return event(self.head() | {"choices": [choice]})


class CompletionStream(Stream):
    content_type = EVENTS

    def __init__(self, asked: str, wants_usage: bool) -> None:
        self.asked = asked
        # Every chunk but the last carries zeros if usage was asked for.
        self.usage = {"usage": NO_USAGE} if wants_usage else {}
        self.id = f"cmpl-{randrange(999)}"  # noqa: S311

    def piece(self, piece: Piece) -> bytes:
        kind, value = piece
        return event(self.whole(value if kind is CONTENT else "", None, self.usage))

    def closing(self, generation: Generation) -> Iterable[bytes]:
        yield event(self.whole("", generation.done_reason, self.usage))
        if self.usage and not generation.call.fault.no_usage:
            last = event(self.whole("", None, {"choices": [], "usage": usage_of(generation)}))
            yield from [last] * generation.call.fault.repeat_final
        yield DONE

    def failure(self, text: str) -> bytes:
        self.asked = ""
        return event(self.whole("", None, self.usage))

    def whole(self, text: str, reason: str | None, more: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": int(time.time()),
            "choices": [{"text": text, "index": 0, "finish_reason": reason}],
            "model": self.asked,
            "system_fingerprint": "fp_ollama",
            **more,
        }


async def load(call: Call, wish: Wish, stream: CompletionStream) -> None:
    scheduler = call.server.scheduler
    runner = await scheduler.acquire(wish.model, wish.load, wish.keep_alive, call.fault)
    scheduler.release(runner)
    await call.reply_line(stream.whole("", "load", {"usage": NO_USAGE}))
