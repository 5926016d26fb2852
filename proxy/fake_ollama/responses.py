"""/v1/responses, without state."""

import time
from collections.abc import Iterable, Iterator
from random import randrange
from typing import Any

import orjson

from proxy.fake_ollama import requests
from proxy.fake_ollama.call import EVENTS, Call
from proxy.fake_ollama.errors import ApiError
from proxy.fake_ollama.generation import CONTENT, THINKING, Generation, Outcome, Piece, ToolUse, Wish
from proxy.fake_ollama.gojson import encode
from proxy.fake_ollama.openai import completing, think_of
from proxy.fake_ollama.streams import Stream, stream_generation
from proxy.fake_ollama.text import size_of


async def create(call: Call) -> None:
    body = call.bind(requests.ResponsesRequest)
    asked, model = completing(call, body, "chat")
    limit = body.get("max_output_tokens")
    wish = Wish(model, limit=limit if limit and limit > 0 else None)
    wish.think = think_of(body, model, asked)
    wish.tools = [{"function": tool} for tool in body.get("tools") or () if tool.get("type") == "function"]
    wish.format = format_of(body.get("text"))
    read_input(wish, body)
    shape = Response(asked, body)
    if body.get("stream"):
        await stream_generation(call, wish, ResponseStream(shape))
        return
    async with Generation(call, wish) as generation:
        outcome = await generation.rest()
    shape.output = list(items(shape, outcome))
    await call.reply_line(shape.value("completed", usage_of(generation)))


def format_of(text: Any) -> Any:
    wanted = (text or {}).get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_schema":
        return wanted.get("schema")
    return "json" if wanted.get("type") == "json_object" else None


def read_input(wish: Wish, body: dict[str, Any]) -> None:
    given = body.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise ApiError(400, "input is required")
    wish.size = size_of(body.get("instructions") or "")
    for item in given:
        if not isinstance(item, dict):
            raise ApiError(400, "invalid input item")
        text = content_text(item.get("content", item.get("output")))
        wish.size += size_of(text)
        if item.get("role") == "user" or item.get("type") == "function_call_output":
            wish.last_user_text = text


def content_text(content: Any) -> str:
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    for part in content:
        if isinstance(part, dict) and part.get("type") == "input_file":
            raise ApiError(400, "input_file is not supported")
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def usage_of(generation: Generation) -> dict[str, Any] | None:
    counts = (generation.prompt_tokens, generation.eval_count)
    usage = {
        "input_tokens": counts[0],
        "output_tokens": counts[1],
        "total_tokens": sum(counts),
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    fault = generation.call.fault
    return (fault.altered(usage) or None) if fault.alters_usage else usage


class Response:
    """The response object, as far as it has come."""

    def __init__(self, asked: str, body: dict[str, Any]) -> None:
        number = randrange(999_999)  # noqa: S311
        self.number = number
        self.asked = asked
        self.body = body
        self.created = int(time.time())
        self.output: list[dict[str, Any]] = []

    def value(self, status: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        body = self.body
        return {
            "id": f"resp_{self.number}",
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "incomplete_details": None,
            "model": self.asked,
            "previous_response_id": None,
            "instructions": body.get("instructions"),
            "output": self.output,
            "error": None,
            "tools": body.get("tools") or [],
            "tool_choice": "auto",
            "truncation": body.get("truncation") or "disabled",
            "parallel_tool_calls": True,
            "text": body.get("text") or {"format": {"type": "text"}},
            "top_p": 1.0 if body.get("top_p") is None else body["top_p"],
            "temperature": 1.0 if body.get("temperature") is None else body["temperature"],
            "usage": usage,
            "max_output_tokens": body.get("max_output_tokens"),
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
        }

    def id(self, kind: str) -> str:
        return f"{kind}_{self.number}_{len(self.output)}"


def items(shape: Response, outcome: Outcome) -> Iterator[dict[str, Any]]:
    if outcome.thinking:
        yield reasoning(shape.id("rs"), outcome.thinking)
    if outcome.tools:
        # Text beside tool calls is dropped.
        yield from (function_call(shape.id("fc"), tool, "completed") for tool in outcome.tools)
    else:
        yield message(shape.id("msg"), outcome.content, "completed")


def reasoning(item: str, text: str) -> dict[str, Any]:
    return {
        "encrypted_content": text,
        "id": item,
        "summary": [{"text": text, "type": "summary_text"}],
        "type": "reasoning",
    }


def message(item: str, text: str, status: str) -> dict[str, Any]:
    return {"content": [part(text)], "id": item, "role": "assistant", "status": status, "type": "message"}


def part(text: str) -> dict[str, Any]:
    return {"annotations": [], "logprobs": [], "text": text, "type": "output_text"}


def function_call(item: str, tool: ToolUse, status: str) -> dict[str, Any]:
    arguments = orjson.dumps(tool.arguments).decode() if status == "completed" else ""
    return {
        "arguments": arguments,
        "call_id": tool.id,
        "id": item,
        "name": tool.name,
        "status": status,
        "type": "function_call",
    }


class ResponseStream(Stream):
    content_type = EVENTS
    headers = (("Cache-Control", "no-cache"), ("Connection", "keep-alive"))

    def __init__(self, shape: Response) -> None:
        self.shape = shape
        self.sequence = 0
        self.open: str | None = None
        self.item = ""
        self.text = ""

    def event(self, name: str, **value: Any) -> bytes:
        name = "response." + name
        payload = dict(sorted({**value, "sequence_number": self.sequence, "type": name}.items()))
        self.sequence += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(payload))

    @property
    def index(self) -> int:
        return len(self.shape.output)

    def opening(self, generation: Generation) -> Iterable[bytes]:
        for name in ("created", "in_progress"):
            yield self.event(name, response=self.shape.value("in_progress", None))

    def piece(self, piece: Piece) -> bytes:
        kind, value = piece
        before = b"" if self.open == kind else self.close()
        if kind is CONTENT:
            return before + self.text_delta(value)
        if kind is THINKING:
            return before + self.thinking_delta(value)
        return before + b"".join(self.function(value))

    def closing(self, generation: Generation) -> Iterable[bytes]:
        if self.open is None and not self.shape.output:
            yield self.text_delta("")
        if self.open is not None:
            yield self.close()
        last = self.event("completed", response=self.shape.value("completed", usage_of(generation)))
        yield from [last] * generation.call.fault.repeat_final

    def failure(self, text: str) -> None:
        return None

    def text_delta(self, value: str) -> bytes:
        before = b"" if self.open else self.start_text()
        self.text += value
        if not value:
            return before
        place = self.place() | {"content_index": 0}
        return before + self.event("output_text.delta", delta=value, logprobs=[], **place)

    def start_text(self) -> bytes:
        self.open, self.text, self.item = CONTENT, "", self.shape.id("msg")
        added = message(self.item, "", "in_progress") | {"content": []}
        place = self.place() | {"content_index": 0}
        return self.event("output_item.added", item=added, output_index=self.index) + self.event(
            "content_part.added", part=part(""), **place
        )

    def thinking_delta(self, value: str) -> bytes:
        before = b""
        if self.open is None:
            self.open, self.text, self.item = THINKING, "", self.shape.id("rs")
            added = {"id": self.item, "summary": [], "type": "reasoning"}
            before = self.event("output_item.added", item=added, output_index=self.index)
        self.text += value
        place = self.place() | {"summary_index": 0}
        return before + self.event("reasoning_summary_text.delta", delta=value, **place)

    def function(self, tool: ToolUse) -> Iterator[bytes]:
        self.item = self.shape.id("fc")
        done = function_call(self.item, tool, "completed")
        added = function_call(self.item, tool, "in_progress")
        yield self.event("output_item.added", item=added, output_index=self.index)
        yield self.event("function_call_arguments.delta", delta=done["arguments"], **self.place())
        yield self.event("function_call_arguments.done", arguments=done["arguments"], **self.place())
        yield self.event("output_item.done", item=done, output_index=self.index)
        self.shape.output.append(done)

    def close(self) -> bytes:
        if self.open is None:
            return b""
        if self.open is THINKING:
            done = reasoning(self.item, self.text)
            data = self.event("reasoning_summary_text.done", text=self.text, summary_index=0, **self.place())
        else:
            done = message(self.item, self.text, "completed")
            place = self.place() | {"content_index": 0}
            data = self.event("output_text.done", text=self.text, logprobs=[], **place)
            data += self.event("content_part.done", part=part(self.text), **place)
        data += self.event("output_item.done", item=done, output_index=self.index)
        self.shape.output.append(done)
        self.open = None
        return data

    def place(self) -> dict[str, Any]:
        return {"item_id": self.item, "output_index": self.index}
