"""/v1/messages."""

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from proxy.fake_ollama import requests
from proxy.fake_ollama.call import EVENTS, Call
from proxy.fake_ollama.errors import ApiError
from proxy.fake_ollama.generation import CONTENT, THINKING, Generation, Outcome, Piece, Wish, random_id
from proxy.fake_ollama.gojson import encode
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.options import check_images
from proxy.fake_ollama.streams import Stream, stream_generation
from proxy.fake_ollama.text import size_of

HEX = "0123456789abcdef"
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


async def messages(call: Call) -> None:
    body = call.bind(requests.MessagesRequest)
    asked, limit, given = body.get("model") or "", body.get("max_tokens") or 0, body.get("messages") or []
    if not asked:
        raise ApiError(400, "model is required")
    if limit <= 0:
        raise ApiError(400, "max_tokens is required and must be positive")
    if not given:
        raise ApiError(400, "messages is required")
    model = call.model(asked)
    if not model.can("completion"):
        raise ApiError(400, f'"{asked}" does not support chat')
    wish = Wish(model, limit=limit, stops=body.get("stop_sequences") or ())
    wish.tools = tools_of(body, model)
    wish.think = model.can("thinking") and (body.get("thinking") or {}).get("type") != "disabled"
    read_messages(wish, body, given)
    if body.get("stream"):
        await stream_generation(call, wish, MessageStream(asked, len(call.request.body) // 4))
    else:
        await answer_whole(call, wish, asked)


def tools_of(body: dict[str, Any], model: Model) -> list[dict[str, Any]]:
    tools = [tool for tool in body.get("tools") or () if isinstance(tool, dict)]
    if tools and not model.can("tools"):
        raise ApiError(400, f"{model.stored.full} does not support tools")
    return [{"function": {"name": tool.get("name"), "parameters": tool.get("input_schema")}} for tool in tools]


def read_messages(wish: Wish, body: dict[str, Any], given: list[dict[str, Any]]) -> None:
    images: list[str] = []
    wish.size = size_of(block_text(body.get("system"), images))
    for message in given:
        text = block_text(message.get("content"), images)
        wish.size += size_of(text)
        if (message.get("role") or "").lower() == "user":
            wish.last_user_text = text
    check_images(images, wish.model)


def block_text(content: Any, images: list[str]) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        if block.get("type") == "image":
            images.append(str((block.get("source") or {}).get("data", "")))
        elif block.get("type") == "tool_result":
            texts.append(block_text(block.get("content"), images))
        else:
            texts.append(str(block.get("text") or block.get("thinking") or ""))
    return "".join(texts)


async def answer_whole(call: Call, wish: Wish, asked: str) -> None:
    async with Generation(call, wish) as generation:
        outcome = await generation.rest()
    value = head(asked, list(blocks(outcome)) or None)
    value["stop_reason"] = stop_reason(generation, tools=bool(outcome.tools))
    value["usage"] = usage_of(generation)
    await call.reply_line(value)


def head(asked: str, content: Any) -> dict[str, Any]:
    return {
        "id": "msg_" + random_id(24, HEX),
        "type": "message",
        "role": "assistant",
        "model": asked,
        "content": content,
    }


def blocks(outcome: Outcome) -> Iterator[dict[str, Any]]:
    if outcome.thinking:
        yield {"type": "thinking", "thinking": outcome.thinking}
    if outcome.content:
        yield {"type": "text", "text": outcome.content}
    for tool in outcome.tools:
        yield {"type": "tool_use", "id": tool.id, "name": tool.name, "input": tool.arguments}


def stop_reason(generation: Generation, *, tools: bool) -> str:
    return "tool_use" if tools else STOP_REASONS[generation.done_reason]


def usage_of(generation: Generation) -> dict[str, Any]:
    usage: dict[str, Any] = {"input_tokens": generation.prompt_tokens, "output_tokens": generation.eval_count}
    fault = generation.call.fault
    return fault.altered(usage) if fault.alters_usage else usage


def event(name: str, **value: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name, **value}))


class MessageStream(Stream):
    content_type = EVENTS
    headers = (("Cache-Control", "no-cache"), ("Connection", "keep-alive"))

    def __init__(self, asked: str, guess: int) -> None:
        self.asked = asked
        self.guess = guess
        self.index = 0
        self.open: str | None = None
        self.called_tools = False

    def opening(self, generation: Generation) -> Iterable[bytes]:
        message = head(self.asked, [])
        message["usage"] = {"input_tokens": self.guess, "output_tokens": 0}
        yield event("message_start", message=message)

    def piece(self, piece: Piece) -> bytes:
        kind, value = piece
        if kind is CONTENT:
            return self.delta("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": value})
        if kind is THINKING:
            block = {"type": "thinking", "thinking": ""}
            return self.delta("thinking", block, {"type": "thinking_delta", "thinking": value})
        self.called_tools = True
        call: dict[str, Any] = {"type": "tool_use", "id": value.id, "name": value.name, "input": {}}
        arguments = orjson.dumps(value.arguments).decode()
        return self.delta(value.id, call, {"type": "input_json_delta", "partial_json": arguments})

    def closing(self, generation: Generation) -> Iterable[bytes]:
        if self.open is not None:
            yield self.stop()
        delta = {"stop_reason": stop_reason(generation, tools=self.called_tools)}
        usage = {} if generation.call.fault.no_usage else {"usage": usage_of(generation)}
        yield from [event("message_delta", delta=delta, **usage)] * generation.call.fault.repeat_final
        yield event("message_stop")

    def failure(self, text: str) -> None:
        return None

    def delta(self, kind: str, block: dict[str, Any], delta: dict[str, Any]) -> bytes:
        before = b""
        if self.open != kind:
            before = self.stop() if self.open is not None else b""
            before += event("content_block_start", index=self.index, content_block=block)
            self.open = kind
        return before + event("content_block_delta", index=self.index, delta=delta)

    def stop(self) -> bytes:
        data = event("content_block_stop", index=self.index)
        self.index += 1
        self.open = None
        return data
