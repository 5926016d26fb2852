"""A kept answer in the caller's mode: a stream as a stream or in one piece, and the other way round. Pure.

What comes out names the model as the backend does, as what came in. None: the answer has not the expected form, and is
better asked for again.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from proxy.cache.entries import Entry
from proxy.dialects.base import go_json
from proxy.metering.events import data_of, without_usage

NDJSON = b"application/x-ndjson"
EVENTS = b"text/event-stream"
# As Ollama has it on its own routes, and on those of others.
JSON = {True: b"application/json; charset=utf-8", False: b"application/json"}

Object = dict[str, Any]


class OddForm(Exception):
    """What a backend sent cannot be brought into the other mode."""


def replayed(entry: Entry, path: str, *, stream: bool, hides_usage: bool) -> tuple[bytes, bytes] | None:
    """(body, content type) for a caller. `hides_usage`: it did not ask for the usage that the entry has."""
    if entry.stream == stream:
        body = without_reports(entry.body) if stream and hides_usage else entry.body
        return body, entry.content_type
    try:
        if not stream:
            return _WHOLE[path](entry.body), JSON[path.startswith("/api/")]
        kind = NDJSON if path.startswith("/api/") else EVENTS
        body = b"".join(_PIECES[path](orjson.loads(entry.body)))
        return without_reports(body) if hides_usage else body, kind
    except (OddForm, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return None


def without_reports(events: bytes) -> bytes:
    """Whole events of OpenAI's as they are where nobody asked for usage."""
    if b'"usage":{' not in events:
        return events
    return b"".join(
        without_usage(event) if b'"usage":{' in event else event
        for event in (part + b"\n\n" for part in events.removesuffix(b"\n\n").split(b"\n\n"))
    )


# Ollama's own


def _whole_native(body: bytes) -> bytes:
    lines = [orjson.loads(line) for line in body.split(b"\n") if line.strip()]
    final = lines[-1]
    if final.get("done") is not True:
        raise OddForm
    logprobs = [entry for line in lines for entry in line.get("logprobs") or ()]
    if "message" in final:
        final["message"] = _joined([line["message"] for line in lines], ("content", "thinking"))
    else:
        final = _joined(lines, ("response", "thinking"), final)
    if logprobs:
        final["logprobs"] = logprobs
    return go_json(final)


def _joined(parts: list[Object], texts: tuple[str, ...], whole: Object | None = None) -> Object:
    """The parts of a text in one; `whole`: what else there is, if not that of the last part."""
    last = dict(parts[-1] if whole is None else whole)
    joined = {name: "".join(part.get(name) or "" for part in parts) for name in texts}
    always, optional = texts
    last[always] = joined[always]
    if joined[optional]:
        last[optional] = joined[optional]
    if tools := [tool for part in parts for tool in part.get("tool_calls") or ()]:
        last["tool_calls"] = tools
    return last


def _native_pieces(whole: Object) -> Iterator[bytes]:
    """The answer, and the final object without it."""
    if whole.get("done") is not True:
        raise OddForm
    head = {"model": whole["model"], "created_at": whole["created_at"]}
    rest = {name: value for name, value in whole.items() if name not in _SAID}
    if "message" in whole:
        said: Object = {"message": whole["message"]}
        nothing: Object = {"message": {"role": whole["message"]["role"], "content": ""}}
    else:
        said = {name: whole[name] for name in ("response", "thinking", "tool_calls") if name in whole}
        nothing = {"response": ""}
    if "logprobs" in whole:
        said["logprobs"] = whole["logprobs"]
    yield go_json({**head, **said, "done": False}) + b"\n"
    yield go_json({**head, **nothing, **rest}) + b"\n"


_SAID = frozenset(("model", "created_at", "message", "response", "thinking", "tool_calls", "logprobs"))


# OpenAI's


def _events(body: bytes) -> list[Object]:
    """The data of the events of a stream, in order; [DONE] is none."""
    return [said for part in body.split(b"\n\n") if (said := data_of(part))]


def _whole_chat(body: bytes) -> bytes:
    chunks = _events(body)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [choice["delta"] for choice in choices]
    message: Object = {"role": "assistant", "content": "".join(delta.get("content") or "" for delta in deltas)}
    if reasoning := "".join(delta.get("reasoning") or "" for delta in deltas):
        message["reasoning"] = reasoning
    if tools := [tool for delta in deltas for tool in delta.get("tool_calls") or ()]:
        message["tool_calls"] = [{**tool, "index": index} for index, tool in enumerate(tools)]
    choice: Object = {"index": 0, "message": message, "finish_reason": _reason(choices)}
    if logprobs := [entry for each in choices for entry in (each.get("logprobs") or {}).get("content") or ()]:
        choice["logprobs"] = {"content": logprobs}
    head = {**_head(chunks[0]), "object": "chat.completion"}
    return go_json({**head, "choices": [choice], "usage": _usage(chunks)}) + b"\n"


def _whole_completion(body: bytes) -> bytes:
    chunks = _events(body)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice.get("text") or "" for choice in choices)
    choice = {"text": text, "index": 0, "finish_reason": _reason(choices)}
    return go_json({**_head(chunks[0]), "choices": [choice], "usage": _usage(chunks)}) + b"\n"


def _head(chunk: Object) -> Object:
    return {name: value for name, value in chunk.items() if name not in ("choices", "usage")}


def _reason(choices: list[Object]) -> str:
    """Raises StopIteration where none is given."""
    reason: str = next(choice["finish_reason"] for choice in reversed(choices) if choice.get("finish_reason"))
    return reason


def _usage(chunks: list[Object]) -> Object:
    usage: Object = next(chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage"))
    return usage


def _data(value: Object) -> bytes:
    return b"data: " + go_json(value) + b"\n\n"


_DONE = b"data: [DONE]\n\n"


def _chat_pieces(whole: Object) -> Iterator[bytes]:
    head, (choice,) = {**_head(whole), "object": "chat.completion.chunk"}, whole["choices"]
    said = {"index": 0, "delta": choice["message"], "finish_reason": None}
    if "logprobs" in choice:
        said["logprobs"] = choice["logprobs"]
    yield _data({**head, "choices": [said]})
    yield _data({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    yield _data({**head, "choices": [], "usage": whole["usage"]})
    yield _DONE


def _completion_pieces(whole: Object) -> Iterator[bytes]:
    (choice,) = whole["choices"]
    yield _data({**_head(whole), "choices": [choice]})
    yield _data({**_head(whole), "choices": [], "usage": whole["usage"]})
    yield _DONE


def _whole_response(body: bytes) -> bytes:
    last = _events(body)[-1]
    if last.get("type") not in ("response.completed", "response.incomplete"):
        raise OddForm
    return go_json(last["response"]) + b"\n"


def _response_pieces(whole: Object) -> Iterator[bytes]:
    number = 0

    def event(name: str, **value: Any) -> bytes:
        nonlocal number
        kind = f"response.{name}"
        said = {**value, "sequence_number": number, "type": kind}
        number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), go_json(said))

    begun = {**whole, "status": "in_progress", "completed_at": None, "output": [], "usage": None}
    yield event("created", response=begun)
    yield event("in_progress", response=begun)
    for index, item in enumerate(whole["output"]):
        place = {"item_id": item["id"], "output_index": index}
        kind = item["type"]
        if kind == "message":
            yield event("output_item.added", item={**item, "content": [], "status": "in_progress"}, output_index=index)
            for at, part in enumerate(item["content"]):
                where = {**place, "content_index": at}
                yield event("content_part.added", part={**part, "text": ""}, **where)
                yield event("output_text.delta", delta=part["text"], logprobs=[], **where)
                yield event("output_text.done", text=part["text"], logprobs=[], **where)
                yield event("content_part.done", part=part, **where)
        elif kind == "reasoning":
            added = {"id": item["id"], "summary": [], "type": "reasoning"}
            yield event("output_item.added", item=added, output_index=index)
            for at, part in enumerate(item["summary"]):
                where = {**place, "summary_index": at}
                yield event("reasoning_summary_text.delta", delta=part["text"], **where)
                yield event("reasoning_summary_text.done", text=part["text"], **where)
        elif kind == "function_call":
            added = {**item, "arguments": "", "status": "in_progress"}
            yield event("output_item.added", item=added, output_index=index)
            yield event("function_call_arguments.delta", delta=item["arguments"], **place)
            yield event("function_call_arguments.done", arguments=item["arguments"], **place)
        else:
            raise OddForm
        yield event("output_item.done", item=item, output_index=index)
    yield event("completed", response=whole)


# Anthropic's


def _whole_message(body: bytes) -> bytes:
    events = _events(body)
    message: Object = dict(events[0]["message"])
    blocks: list[Object] = []
    texts: list[list[str]] = []
    usage: Object = {}
    reason = None
    for said in events[1:]:
        kind = said["type"]
        if kind == "content_block_start":
            blocks.append(dict(said["content_block"]))
            texts.append([])
        elif kind == "content_block_delta":
            delta = said["delta"]
            texts[said["index"]].append(delta[_OF_DELTA[delta["type"]]])
        elif kind == "message_delta":
            usage, reason = said["usage"], said["delta"]["stop_reason"]
        elif kind not in ("content_block_stop", "message_stop", "ping"):
            raise OddForm
    for block, pieces in zip(blocks, texts, strict=True):
        if pieces:
            text = "".join(pieces)
            block[_OF_BLOCK[block["type"]]] = orjson.loads(text) if block["type"] == "tool_use" else text
    del message["usage"]
    return go_json({**message, "content": blocks or None, "stop_reason": reason, "usage": usage}) + b"\n"


_OF_DELTA = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
_OF_BLOCK = {"text": "text", "thinking": "thinking", "tool_use": "input"}
_DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
_EMPTY: Mapping[str, Any] = {"text": "", "thinking": "", "tool_use": {}}


def _message_pieces(whole: Object) -> Iterator[bytes]:
    usage = {**whole["usage"], "output_tokens": 0}
    begun = {name: value for name, value in whole.items() if name != "stop_reason"}
    yield _event("message_start", message={**begun, "content": [], "usage": usage})
    for index, block in enumerate(whole["content"] or ()):
        kind = block["type"]
        field = _OF_BLOCK[kind]
        yield _event("content_block_start", index=index, content_block={**block, field: _EMPTY[kind]})
        said = orjson.dumps(block[field]).decode() if kind == "tool_use" else block[field]
        delta = {"type": _DELTAS[kind], _OF_DELTA[_DELTAS[kind]]: said}
        yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    yield _event("message_delta", delta={"stop_reason": whole["stop_reason"]}, usage=whole["usage"])
    yield _event("message_stop")


def _event(name: str, **value: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), go_json({"type": name, **value}))


_WHOLE: Mapping[str, Callable[[bytes], bytes]] = {
    "/api/chat": _whole_native,
    "/api/generate": _whole_native,
    "/v1/chat/completions": _whole_chat,
    "/v1/completions": _whole_completion,
    "/v1/responses": _whole_response,
    "/v1/messages": _whole_message,
}
_PIECES: Mapping[str, Callable[[Object], Iterator[bytes]]] = {
    "/api/chat": _native_pieces,
    "/api/generate": _native_pieces,
    "/v1/chat/completions": _chat_pieces,
    "/v1/completions": _completion_pieces,
    "/v1/responses": _response_pieces,
    "/v1/messages": _message_pieces,
}
