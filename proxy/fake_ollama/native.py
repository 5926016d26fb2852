"""/api/chat and /api/generate."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from proxy.fake_ollama import requests
from proxy.fake_ollama.call import NDJSON, Call
from proxy.fake_ollama.clock import Stamps
from proxy.fake_ollama.errors import ApiError
from proxy.fake_ollama.generation import CONTENT, THINKING, TOOL, Generation, Outcome, Piece, ToolUse, Wish
from proxy.fake_ollama.gojson import encode
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.options import (
    check_images,
    check_options,
    check_top_logprobs,
    format_of,
    keep_alive_of,
    limit_of,
    load_options,
    seed_of,
    think_of,
)
from proxy.fake_ollama.streams import Stream, stream_generation
from proxy.fake_ollama.text import size_of

FIRST_TOKEN_ID = 128_000
RAW_MODE = "raw mode does not support template, system, or context"


async def chat(call: Call) -> None:
    body = call.bind(requests.ChatRequest)
    asked = body.get("model") or ""
    if not asked:
        raise ApiError(400, "model is required")
    check_top_logprobs(body)
    keep_alive = keep_alive_of(body)
    model = call.model(asked)
    messages = body.get("messages") or []
    if not messages and keep_alive == 0:
        await unload(call, model, asked, ChatShape)
        return
    if not model.can("completion"):
        raise ApiError(400, f'"{asked}" does not support chat')
    tools = body.get("tools") or ()
    if tools and not model.can("tools"):
        raise ApiError(400, f"{model.stored.full} does not support tools")
    wish = read_wish(body, model, asked, keep_alive)
    if not messages:
        await load(call, wish, asked, ChatShape)
        return
    wish.tools = tools
    wish.size = sum(size_of(message.get("content") or "") for message in messages)
    wish.last_user_text = last_user_text(messages)
    check_images([image for message in messages for image in message.get("images") or ()], model)
    await answer(call, body, wish, ChatShape(asked))


async def generate(call: Call) -> None:
    body = call.bind(requests.GenerateRequest)
    asked = body.get("model") or ""
    check_top_logprobs(body)
    keep_alive = keep_alive_of(body)
    if not asked:
        raise ApiError(404, "model '' not found")
    model = call.model(asked)
    prompt, suffix = body.get("prompt") or "", body.get("suffix") or ""
    if not prompt and keep_alive == 0:
        await unload(call, model, asked, GenerateShape)
        return
    raw = bool(body.get("raw"))
    if raw and (body.get("template") or body.get("system") or body.get("context")):
        raise ApiError(400, RAW_MODE)
    if not model.can("completion"):
        raise ApiError(400, f'"{asked}" does not support generate')
    if suffix and not model.can("insert"):
        raise ApiError(400, f"{model.stored.full} does not support insert")
    wish = read_wish(body, model, asked, keep_alive)
    if not prompt:
        await load(call, wish, asked, GenerateShape)
        return
    context = body.get("context") or ()
    wish.size = size_of(prompt) + size_of(suffix) + size_of(body.get("system") or "") + 4 * len(context)
    wish.last_user_text = prompt
    check_images(body.get("images") or (), model)
    await answer(call, body, wish, GenerateShape(asked, raw=raw))


def read_wish(body: dict[str, Any], model: Model, asked: str, keep_alive: float | None) -> Wish:
    wish = Wish(model, keep_alive=keep_alive)
    options = body.get("options")
    if options:
        check_options(options)
        wish.limit = limit_of(options)
        wish.seed = seed_of(options)
        wish.stops = options.get("stop") or ()
    if options or body.get("shift") is False:
        wish.load = load_options(options or {}, shift=body.get("shift"))
    wish.think = think_of(body, model, asked)
    wish.format = format_of(body)
    wish.truncate = body.get("truncate") is not False
    return wish


def last_user_text(messages: Sequence[dict[str, Any]]) -> str:
    """What it is to answer: a tool's result ends the turn in which it called the tool."""
    for message in reversed(messages):
        if (message.get("role") or "").lower() in ("user", "tool"):
            return message.get("content") or ""
    return ""


class ChatShape(Stream):
    """Where the text of a chat stands in its JSON."""

    content_type = NDJSON

    def __init__(self, asked: str, *, raw: bool = True) -> None:
        self.asked = asked
        self.raw = raw
        self.head = b'{"model":%b,"created_at":"' % encode(asked)

    @staticmethod
    def texts(outcome: Outcome) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": outcome.content}
        if outcome.thinking:
            message["thinking"] = outcome.thinking
        if outcome.tools:
            message["tool_calls"] = [tool_call(index, tool) for index, tool in enumerate(outcome.tools)]
        return {"message": message}

    def piece(self, piece: Piece) -> bytes:
        kind, value = piece
        if kind is CONTENT:
            return b'%b%b","message":{"role":"assistant","content":%b},"done":false}\n' % (
                self.head,
                Stamps.now().encode(),
                encode(value),
            )
        return self.line(self.texts(as_outcome(piece)), {"done": False})

    def closing(self, generation: Generation) -> Iterable[bytes]:
        fault = generation.call.fault
        last = self.line(self.texts(Outcome()), final(generation), self.context(generation))
        return [last] * fault.repeat_final

    def failure(self, text: str) -> bytes:
        return encode({"error": text}) + b"\n"

    def line(self, *parts: dict[str, Any]) -> bytes:
        return encode(self.whole(*parts)) + b"\n"

    def whole(self, *parts: dict[str, Any]) -> dict[str, Any]:
        value: dict[str, Any] = {"model": self.asked, "created_at": Stamps.now()}
        for part in parts:
            value.update(part)
        return value

    def context(self, generation: Generation) -> dict[str, Any]:
        length = generation.call.fault.final_context
        if length is None and not self.raw:
            length = generation.prompt_tokens + generation.made
        return {} if not length else {"context": token_ids(length)}


class GenerateShape(ChatShape):
    @staticmethod
    def texts(outcome: Outcome) -> dict[str, Any]:
        value: dict[str, Any] = {"response": outcome.content}
        if outcome.thinking:
            value["thinking"] = outcome.thinking
        return value

    def piece(self, piece: Piece) -> bytes:
        kind, value = piece
        if kind is CONTENT:
            return b'%b%b","response":%b,"done":false}\n' % (self.head, Stamps.now().encode(), encode(value))
        return self.line(self.texts(as_outcome(piece)), {"done": False})


def as_outcome(piece: Piece) -> Outcome:
    kind, value = piece
    outcome = Outcome()
    if kind is THINKING:
        outcome.thinking = value
    elif kind is TOOL:
        outcome.tools.append(value)
    else:
        outcome.content = value
    return outcome


def tool_call(index: int, tool: ToolUse) -> dict[str, Any]:
    return {"id": tool.id, "function": {"index": index, "name": tool.name, "arguments": tool.arguments}}


@lru_cache(64)
def token_ids(length: int) -> list[int]:
    return list(range(FIRST_TOKEN_ID, FIRST_TOKEN_ID + length))


def final(generation: Generation) -> dict[str, Any]:
    durations = generation.durations()
    metrics: dict[str, Any] = {
        "total_duration": durations["total_duration"],
        "load_duration": durations["load_duration"],
        "prompt_eval_count": generation.prompt_tokens,
        "prompt_eval_duration": durations["prompt_eval_duration"],
        "eval_count": generation.eval_count,
        "eval_duration": durations["eval_duration"],
    }
    metrics = {name: value for name, value in metrics.items() if value}
    fault = generation.call.fault
    if fault.alters_usage:
        metrics = fault.altered(metrics)
    return {"done": True, "done_reason": generation.done_reason, **metrics}


async def answer(call: Call, body: dict[str, Any], wish: Wish, shape: ChatShape) -> None:
    if body.get("_debug_render_only"):
        rendered = {"rendered_template": f"{wish.model.system}\n{wish.last_user_text}", "image_count": 0}
        await call.reply(shape.whole(shape.texts(Outcome()), {"done": False, "_debug_info": rendered}))
    elif body.get("stream") is False:
        await answer_whole(call, wish, shape)
    else:
        await stream_generation(call, wish, shape)


async def answer_whole(call: Call, wish: Wish, shape: ChatShape) -> None:
    async with Generation(call, wish) as generation:
        outcome = await generation.rest()
    if not generation.silent:
        await call.reply(shape.whole(shape.texts(outcome), final(generation), shape.context(generation)))
    elif generation.made:
        await call.reply(shape.whole(shape.texts(outcome), {"done": False}))
    else:
        await call.reply_empty()


async def load(call: Call, wish: Wish, asked: str, shape: type[ChatShape]) -> None:
    scheduler = call.server.scheduler
    runner = await scheduler.acquire(wish.model, wish.load, wish.keep_alive, call.fault)
    scheduler.release(runner)
    await call.reply(shape(asked).whole(shape.texts(Outcome()), {"done": True, "done_reason": "load"}))


async def unload(call: Call, model: Model, asked: str, shape: type[ChatShape]) -> None:
    call.server.scheduler.expire(model)
    await call.reply(shape(asked).whole(shape.texts(Outcome()), {"done": True, "done_reason": "unload"}))
